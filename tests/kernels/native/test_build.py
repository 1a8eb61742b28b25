"""The library is compiled once for a machine, and what fails says why."""

from __future__ import annotations

import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from weft_kernels.memory import Arena
from weft_kernels.native import ops
from weft_kernels.native.binding import library
from weft_kernels.native.build import NativeBuildError, build
from weft_kernels.native.linear import create_native_linear
from weft_kernels.native.lora import LoraRows, Run, SlotParts


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("WEFT_CACHE_DIR", str(folder))
    return folder


# says a version, and writes it where the library is asked for: its last argument
PRETENDED = """
if [ "$1" = --version ]; then echo {version}; exit; fi
for out; do :; done
sleep 0.1
echo {version} > "$out"
"""


def write_compiler(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_it_is_compiled_once_for_all_who_ask_at_a_time(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = tmp_path / "calls"
    script = f"echo x >> {calls}" + PRETENDED.format(version="one")
    monkeypatch.setenv("CXX", str(write_compiler(tmp_path / "c++", script)))
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: build(), range(2))
    assert first == second
    num_calls = len(calls.read_text().splitlines())
    assert build() == first
    # asking for its version is how the compiler is told from another
    assert len(calls.read_text().splitlines()) == num_calls + 1
    assert [path.name for path in cache.iterdir()] == [first.name]
    assert cache.stat().st_mode & 0o777 == 0o700


def test_another_compiler_makes_another_library(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries = []
    for version in ("one", "two"):
        compiler = write_compiler(tmp_path / "c++", PRETENDED.format(version=version))
        monkeypatch.setenv("CXX", str(compiler))
        libraries.append(build())
    assert [path.read_text() for path in libraries] == ["one\n", "two\n"]


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


def test_a_cache_that_others_can_write_to_is_not_trusted(cache: Path) -> None:
    cache.mkdir()
    cache.chmod(0o777)
    with pytest.raises(NativeBuildError, match="not this user's alone"):
        build()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what is loaded")
def test_it_shares_torchs_team_of_threads() -> None:
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))
    library()
    maps = Path("/proc/self/maps").read_text().split()
    runtimes = {word for word in maps if "libgomp" in word or "libiomp" in word or "libomp" in word}
    assert len(runtimes) == 1, f"two OpenMP runtimes would fight for the cores: {runtimes}"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are for x86-64")
def test_a_cpu_of_fewer_registers_computes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, w = torch.randn(9, 70), torch.randn(70, 40)
    a, b = torch.randn(16, 70), torch.randn(16, 40)
    slot = SlotParts.of([[Run(a.data_ptr(), b.data_ptr(), 16, 0, 40, 0.5)]])

    def compute() -> tuple[torch.Tensor, ...]:
        y = create_native_linear(w, Arena()).apply(x)
        LoraRows([slot], [0, -1, 0, 0, 0, 0, -1, 0, 0]).add_(y, x, 0)
        return y, ops.silu_mul(y), ops.add_rms_norm_(y.clone(), y, torch.ones(40), 1e-6)

    want = compute()
    cache = tmp_path / "cache"
    monkeypatch.setenv("WEFT_CACHE_DIR", str(cache))
    compiler = write_compiler(tmp_path / "older", 'exec c++ "$@" -mno-avx512f')
    monkeypatch.setenv("CXX", str(compiler))
    library.cache_clear()
    try:
        got = compute()
    finally:
        library.cache_clear()
    assert len(list(cache.iterdir())) == 1, "another library was compiled"
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
