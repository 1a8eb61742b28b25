"""A pytest plugin: no package of the web, the database or the cloud can be imported.

The engine, the adapters and the kernels run on bare GPU images; `make test` runs their tests so.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

FORBIDDEN = frozenset(
    {"alembic", "boto3", "fastapi", "redis", "sqlalchemy", "starlette", "uvicorn"}
)


class _Refusal(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] in FORBIDDEN:
            raise ModuleNotFoundError(f"{name} is not there for the engine", name=name)
        return None


def pytest_configure() -> None:
    loaded = FORBIDDEN & {name.partition(".")[0] for name in sys.modules}
    assert not loaded, f"already imported: {sorted(loaded)}"
    sys.meta_path.insert(0, _Refusal())
