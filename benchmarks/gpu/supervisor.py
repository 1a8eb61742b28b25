"""Runs a bench in processes of its own and takes their rows as they come.

A case that its process dies of, or hangs in, has failed, and a new process goes on behind it. Where
it was a peer of the case, the row is kept and only the peer has failed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from benchmarks.gpu.harness import Failure, Row
from benchmarks.gpu.processes import DEVICE_LOST, Ending, Line, watch
from benchmarks.gpu.worker import Job


class Keeper(Protocol):
    """Who keeps what is measured."""

    def add(self, row: Row) -> None: ...

    def add_failure(self, failure: Failure) -> None: ...


@dataclass(slots=True)
class BenchRun:
    """job: what to run; rows, and what it skips, grow with what was done. silent_s: how long a case
    or a peer may take. environment: of its processes, which run in `folder`."""

    job: Job
    keeper: Keeper
    log: Path  # of each process, but for a number
    folder: Path
    environment: Mapping[str, str]
    silent_s: float
    say: Callable[[str], None] = lambda text: None
    num_failed: int = 0
    _case: Line | None = None
    _peer: str | None = None
    _num_lines: int = 0
    _num_processes: int = 0
    _rows: dict[str, Row] = field(default_factory=dict)
    _skipped: list[str] = field(default_factory=list)

    def run(self, seconds: float) -> bool:
        """For at most so long; False where cases are left."""
        end = time.monotonic() + seconds
        self._rows, self._skipped = dict(self.job.rows), list(self.job.skipped)
        while time.monotonic() < end:
            ending, has_worked = self._run_process(end)
            if ending.status == 0:
                return True
            if ending.status is None and not ending.is_hung:
                return False
            if self._case is not None and ending.status != DEVICE_LOST:
                self._blame(ending)
            elif not has_worked:
                self._fail({"case": "all cases", "operator": "", "shape": {}}, _tell(ending))
                return True
        return False

    def _run_process(self, end: float) -> tuple[Ending, bool]:
        self._case = self._peer = None
        self._num_lines = 0
        self._num_processes += 1
        log = self.log.with_suffix(f".{self._num_processes}.log")
        job = replace(self.job, rows=self._rows, skipped=self._skipped)
        job_file = self.log.with_suffix(".job")
        job_file.write_text(job.to_json(), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.gpu.worker", str(job_file), str(log)]
        ending = watch(
            command, log, folder=self.folder, environment=self.environment,
            silent_s=self.silent_s, end=end, on_line=self._take,
        )  # fmt: skip
        return ending, self._num_lines > 0

    def _take(self, line: Line) -> None:
        self._num_lines += 1
        if "case" in line:
            self._case, self._peer = line, None
            self.say(f"{self.job.bench}: {line['case']}")
        elif "peer" in line:
            self._peer = line["peer"]
        elif "row" in line:
            self._keep(Row.from_json(line["row"]))
            self._peer = None
        elif "failed" in line:
            assert self._case is not None, "it began"
            self._fail(self._case, line["error"])
            self._case = None
        elif "done" in line:
            self._case = None

    def _blame(self, ending: Ending) -> None:
        """Name what the process was at when it ended."""
        assert self._case is not None
        row = self._rows.get(self._case["case"])
        if self._peer is None or row is None:
            self._fail(self._case, _tell(ending))
            return
        self.say(f"{self._peer}: {ending}")
        self._keep(replace(row, failures={**row.failures, self._peer: _tell(ending)}))

    def _keep(self, row: Row) -> None:
        self._rows[row.key] = row
        self.keeper.add(row)

    def _fail(self, case: Mapping[str, Any], error: str) -> None:
        self.num_failed += 1
        self._skipped.append(case["case"])
        failure = Failure(
            self.job.bench, case["case"], case["operator"], dict(case["shape"]), error
        )
        self.say(f"{failure.bench}: {failure.key} failed\n{error}")
        self.keeper.add_failure(failure)


def _tell(ending: Ending) -> str:
    """What it was, last and in a line, behind what was printed."""
    return f"{ending.output.strip()}\n{ending}".strip()
