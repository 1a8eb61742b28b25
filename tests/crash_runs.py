"""Crash tests run by themselves: they fork, which a process with threads must not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]


def play(module: str, *arguments: object, **environment: str) -> str:
    """Run a module of tests to its end, which must be a good one: what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=_ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*sys.path, str(_ROOT)]),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-12_000:]
    return done.stdout
