"""A pytest plugin: no package of the web, the database or the cloud can be found.

The engine, the adapters and the kernels run on bare GPU images; `make test` runs their tests so.
Named by `-p`, it is imported before any conftest.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

FORBIDDEN = frozenset(
    {"alembic", "boto3", "fastapi", "redis", "sqlalchemy", "starlette", "uvicorn"}
)


class _Finder(PathFinder):
    """Finds what is installed, but for the forbidden: as if those were not, so that a library that
    asks whether one is there goes on without it."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] in FORBIDDEN:
            return None
        return super().find_spec(fullname, path, target)


def _hide() -> None:
    loaded = FORBIDDEN & {name.partition(".")[0] for name in sys.modules}
    assert not loaded, f"already imported: {sorted(loaded)}"
    index = sys.meta_path.index(PathFinder)
    sys.meta_path[index] = _Finder


_hide()
