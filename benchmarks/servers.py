"""Engines on the dense base of `benchmarks.models`, for benchmarks of speed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.models import create_dense_base, write_adapter

from weft.engine.build import BuiltEngine, build_engine, warm_up
from weft.engine.config import EngineConfig
from weft.engine.offline import register_folder
from weft_adapters.store import FolderStore


def create_base(root: Path) -> Path:
    base_dir = root / "base"
    if not base_dir.exists():
        create_dense_base(base_dir)
    return base_dir


def build_cpu_engine(root: Path, **options: Any) -> BuiltEngine:
    """An engine in float32 over the base and the store below `root`, past its first request."""
    settings = {"dtype": "float32", "device": "cpu", **options}
    built = build_engine(EngineConfig(create_base(root), root / "store", **settings))
    warm_up(built.engine)
    return built


def register_random_adapters(
    built: BuiltEngine,
    root: Path,
    count: int,
    rank: int,
    on_progress: Callable[[int], None] = lambda num_done: None,
) -> tuple[str, ...]:
    """Digests of `count` distinct adapters on the attention projections, validated and stored as
    uploads are."""
    store, folder = FolderStore(root / "store"), root / "upload"
    digests = []
    for i in range(count):
        folder.mkdir()
        write_adapter(built.base, folder, seed=i, rank=rank)
        digests.append(register_folder(built, store, folder))
        shutil.rmtree(folder)
        on_progress(i + 1)
    return tuple(digests)
