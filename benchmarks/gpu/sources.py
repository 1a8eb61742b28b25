"""Which code a result is of: a digest of the files that it depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = ("kernels", "adapters", "platform/weft/engine", "benchmarks/gpu")
TESTS = ("tests/kernels", "tests/engine", "tests/conftest.py", "tests/oracle.py")
_SUFFIXES = (".py", ".json", ".cpp", ".h", ".ini")


def digest_of(folders: Iterable[str], root: Path = ROOT) -> str:
    """12 hex digits over the names and contents of all source files below the folders."""
    total = hashlib.sha256()
    for folder in folders:
        top = root / folder
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.suffix in _SUFFIXES and path.is_file():
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                total.update(f"{path.relative_to(root)}\0{content}\n".encode())
    return total.hexdigest()[:12]
