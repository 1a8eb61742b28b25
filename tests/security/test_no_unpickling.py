"""Attack class 24, at its root: no source could run a tenant's code by reading its data."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path for root in ("platform", "adapters", "kernels") for path in (ROOT / root).rglob("*.py")
)
MODULES = frozenset(
    {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "tarfile",
     "zipfile"}
)  # fmt: skip
CALLS = frozenset(
    {"torch.load", "np.load", "numpy.load", "shutil.unpack_archive", "eval", "exec", "compile",
     "__import__", "os.system", "torch.hub.load", "yaml.load", "yaml.full_load", "yaml.unsafe_load"}
)  # fmt: skip


def dangers(tree: ast.AST) -> Iterator[str]:
    """Names of modules and functions that turn data into code, or archives into files."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            yield str(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in CALLS:
            yield ast.unparse(node.func)
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "trust_remote_code"):
            yield str(node.arg)


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(f, weights_only=True)",
        "np.load(f)",
        "read(f, allow_pickle=True)",
        "eval(text)",
    ],
)
def test_24_the_search_finds_what_it_is_for(text: str) -> None:
    assert list(dangers(ast.parse(text)))


def test_24_no_source_can_turn_data_into_code() -> None:
    assert len(SOURCES) > 100
    found = {
        (path.relative_to(ROOT).as_posix(), danger)
        for path in SOURCES
        for danger in dangers(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert not found
