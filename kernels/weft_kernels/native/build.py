"""Compiles the C++ sources with the machine's compiler, once, into a cache.

They are compiled where they run, for the very CPU (`-march=native`), and need no header of torch or
Python: a few seconds, and nothing to rebuild when torch changes. Without a compiler the engine runs
on torch's operators; who chooses says so.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

_SOURCES = Path(__file__).parent / "src"
_FLAGS = (
    "-O3", "-std=c++17", "-march=native", "-fPIC", "-shared", "-fopenmp",
    "-fno-math-errno", "-fno-trapping-math",  # NaN and infinity keep their meaning
)  # fmt: skip
_TIMEOUT_S = 300


class NativeBuildError(RuntimeError):
    """There is no compiler, or it failed; the message says which."""


def build() -> Path:
    """The shared library of these sources, compiled unless the cache has it.

    The cache is `WEFT_CACHE_DIR`, else `weft` in the user's cache folder; the compiler `CXX`, else
    c++, g++ or clang++. NativeBuildError where it cannot be built.
    """
    compiler = _compiler()
    target = _cache_dir() / f"native-{_key(compiler)}.so"
    if not target.is_file():
        _compile(compiler, target)
    return target


def _compiler() -> str:
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    for name in names:
        if path := shutil.which(name):
            return path
    raise NativeBuildError(f"no C++ compiler: {', '.join(names)} not found")


def _cache_dir() -> Path:
    if folder := os.environ.get("WEFT_CACHE_DIR"):
        path = Path(folder)
    else:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "weft"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as error:
        raise NativeBuildError(f"no cache folder: {error}") from error
    # what lies there is run: nobody else may have put it there
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise NativeBuildError(f"the cache folder {path} is not this user's alone")
    return path


def _key(compiler: str) -> str:
    """A digest of all that the library depends on: sources, flags, compiler and CPU."""
    digest = hashlib.sha256()
    for path in sorted(_SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    version = _run([compiler, "--version"]).stdout
    for part in (*_FLAGS, compiler, version, platform.machine(), _cpu_features()):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:32]


def _cpu_features() -> str:
    """What `-march=native` looks at, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = ("flags", "Features", "model name")
    return "\n".join(sorted({line for line in lines if line.startswith(names)}))


def _compile(compiler: str, target: Path) -> None:
    """Into a file beside it first: several processes may do so at once."""
    handle, path = tempfile.mkstemp(dir=target.parent, prefix=target.stem, suffix=".tmp")
    os.close(handle)
    try:
        sources = [str(path) for path in sorted(_SOURCES.glob("*.cpp"))]
        result = _run([compiler, *_FLAGS, *sources, "-o", path])
        if result.returncode != 0:
            raise NativeBuildError(f"{compiler} failed:\n{result.stderr.strip()[-2000:]}")
        os.replace(path, target)
    finally:
        Path(path).unlink(missing_ok=True)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeBuildError(f"{command[0]} could not be run: {error}") from error
