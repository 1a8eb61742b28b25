"""Processes that write a log while they work, watched: a crash or a hang costs what they were at.

The log has a JSON object a line. Whoever writes it says what it begins before it begins, so that
the last line tells what a process died of.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# the exit status of a process whose device can no longer be used: a new process can
DEVICE_LOST = 75
_KEPT_OUTPUT = 4000
_POLL_S = 0.05

Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a process ended. status: its exit status, -N for a signal, None where it was stopped,
    because it wrote nothing for too long (`is_hung`) or because time was up. output: the end of
    what it printed."""

    status: int | None
    is_hung: bool
    output: str

    def __str__(self) -> str:
        if self.is_hung:
            return "stopped: it did not go on"
        if self.status is None:
            return "stopped: time was up"
        if self.status < 0:
            return f"died of {signal.Signals(-self.status).name}"
        return f"ended with status {self.status}"


def write_line(log: Path, **line: object) -> None:
    """At once, so that a line is whole or absent."""
    with log.open("ab", buffering=0) as file:
        file.write(json.dumps(line).encode() + b"\n")


def read_lines(log: Path) -> list[Line]:
    return _Reader(log).read()


@dataclass(slots=True)
class _Reader:
    """Reads what was written since it read last."""

    log: Path
    position: int = 0

    def read(self) -> list[Line]:
        if not self.log.exists():
            return []
        with self.log.open("rb") as file:
            file.seek(self.position)
            whole, end, _ = file.read().rpartition(b"\n")
        self.position += len(whole) + len(end)
        return [json.loads(line) for line in whole.splitlines()]


def watch(
    command: Sequence[str],
    log: Path,
    *,
    folder: Path,
    environment: Mapping[str, str],
    silent_s: float,
    end: float,
    on_line: Callable[[Line], None],
) -> Ending:
    """Run it until it ends, is silent for `silent_s`, or the monotonic clock is at `end`; with all
    that it started. Before its first line, while it imports, it may be silent for three times as
    long. `on_line` gets the log's new lines."""
    output = log.with_suffix(".output")
    reader = _Reader(log)
    reader.read()
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=file,
            stderr=subprocess.STDOUT, process_group=0,
        )  # fmt: skip
    heard, patience_s, is_hung, status = time.monotonic(), 3 * silent_s, False, None
    try:
        while True:
            status = process.poll()
            lines = reader.read()
            for line in lines:
                on_line(line)
            now = time.monotonic()
            if lines:
                heard, patience_s = now, silent_s
            is_hung = status is None and now - heard > patience_s
            if status is not None or is_hung or now >= end:
                break
            time.sleep(_POLL_S)
    finally:
        _kill(process)
    text = output.read_text(encoding="utf-8", errors="replace")
    return Ending(status, is_hung, text[-_KEPT_OUTPUT:])


def _kill(process: subprocess.Popen[bytes]) -> None:
    """With its compilers, which are of its group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
