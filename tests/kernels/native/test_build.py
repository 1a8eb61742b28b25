"""The library is compiled once for a machine, and what fails says why."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from weft_kernels.native.build import NativeBuildError, build
from weft_kernels.native.library import library


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("WEFT_CACHE_DIR", str(folder))
    return folder


def write_compiler(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_it_is_compiled_once_for_all_who_ask_at_a_time(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = tmp_path / "calls"
    compiler = write_compiler(tmp_path / "c++", f'echo x >> {calls}; exec c++ "$@"')
    monkeypatch.setenv("CXX", str(compiler))
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: build(), range(2))
    assert first == second
    ctypes.CDLL(str(first))
    num_calls = len(calls.read_text().splitlines())
    assert build() == first
    # asking for its version is how the compiler is told from another
    assert len(calls.read_text().splitlines()) == num_calls + 1
    assert [path.name for path in cache.iterdir()] == [first.name]
    assert cache.stat().st_mode & 0o777 == 0o700


def test_another_compiler_makes_another_library(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build()
    monkeypatch.setenv("CXX", str(write_compiler(tmp_path / "other", 'exec c++ "$@"')))
    assert build() != first


def test_a_compiler_that_fails_leaves_nothing_and_says_what_it_said(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = write_compiler(tmp_path / "broken", "echo 'no such target' >&2; exit 1")
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(NativeBuildError, match="no such target"):
        build()
    assert list(cache.iterdir()) == []


def test_a_missing_compiler_and_a_missing_folder_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "missing"))
    with pytest.raises(NativeBuildError, match="missing not found"):
        build()
    monkeypatch.delenv("CXX")
    (tmp_path / "file").touch()
    monkeypatch.setenv("WEFT_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(NativeBuildError, match="no cache folder"):
        build()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what is loaded")
def test_it_shares_torchs_team_of_threads() -> None:
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))
    library()
    maps = Path("/proc/self/maps").read_text().split()
    runtimes = {word for word in maps if "libgomp" in word or "libiomp" in word or "libomp" in word}
    assert len(runtimes) == 1, f"two OpenMP runtimes would fight for the cores: {runtimes}"
