"""One run of `make gpu`: its phases, in the order of what matters, until its time is up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.checks import (
    ROOT,
    CheckResult,
    environment,
    find_checks,
    find_long_checks,
    run_checks,
)
from benchmarks.gpu.harness import Ceilings, Failure, Row, Setting
from benchmarks.gpu.results import Results
from benchmarks.gpu.supervisor import BenchRun
from benchmarks.gpu.worker import Job
from benchmarks.report import say

# of the time that is left, what the short tests may take, and later the long ones
_SHORT_SHARE, _LONG_SHARE = 0.4, 0.4
# The benches that targets have rows of, in the order in which these are made, and what each may
# take of the time that is left. The few rows of single kernels come before those of whole models,
# whose many kernels are to be compiled first.
TARGET_SHARES = {
    "bench_attention": 0.15, "bench_moe_lora": 0.15, "bench_lora": 0.35, "bench_engine": 1.0,
}  # fmt: skip
# not worth a new process
_LEAST_S = 25.0
# how long a test, a case or a peer may take, with what it has to compile
_SILENT_S, _INTERPRETED_SILENT_S = 150.0, 900.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, in which part, and in how many seconds."""

    tests: bool
    benches: Sequence[str]
    part: tuple[int, int]
    seconds: float


class Run:
    """`results` keeps what is found, None for an interpreted run. `tests_source` is the digest that
    tests are kept under. After `measure` or `interpret`: what failed, what is left, and the rows
    that are new."""

    def __init__(
        self, plan: Plan, setting: Setting, results: Results | None, logs: Path, tests_source: str
    ) -> None:
        self.failed: list[str] = []
        self.rows: dict[tuple[str, str], Row] = {}
        self._plan, self._setting, self._results, self._logs = plan, setting, results, logs
        self._tests_source = tests_source
        self._end = time.monotonic() + plan.seconds
        self._silent_s = _INTERPRETED_SILENT_S if setting.is_tiny else _SILENT_S
        # of this run; those of earlier ones are tried again
        self._failed_cases: dict[str, list[str]] = {bench: [] for bench in plan.benches}
        self._checks: dict[str, CheckResult] = {}
        self._unfinished = list(plan.benches)

    @property
    def seconds_left(self) -> float:
        return max(0.0, self._end - time.monotonic())

    @property
    def left(self) -> list[str]:
        """Names of benches and files of tests that time was too short for."""
        outcomes = ("timed out", "not run")
        checks = [name for name, check in self._checks.items() if check.outcome in outcomes]
        return [*checks, *self._unfinished]

    def measure(self, ceilings: Ceilings | None) -> None:
        """Without ceilings only the tests."""
        if ceilings is None:
            self._unfinished = []
        self._test(find_checks(), _SHORT_SHARE if self._unfinished else 1.0)
        if ceilings is not None:
            for bench, share in TARGET_SHARES.items():
                if bench in self._plan.benches:
                    self._bench(bench, ceilings, share * self.seconds_left, only_targets=True)
        self._test([*find_checks(), *find_long_checks()], _LONG_SHARE if self._unfinished else 1.0)
        if ceilings is not None:
            self._all_cases(ceilings)

    def interpret(self) -> None:
        self._test(find_checks(), 1.0)
        self._all_cases(None)

    def _all_cases(self, ceilings: Ceilings | None) -> None:
        """In slices, as many rounds as it takes."""
        is_first = True
        while self._unfinished and (is_first or self.seconds_left > _LEAST_S):
            for number, bench in enumerate(list(self._unfinished)):
                num_waiting = len(self._plan.benches if is_first else self._unfinished) - number
                slice_s = self.seconds_left / max(num_waiting, 1)
                if self._bench(bench, ceilings, slice_s):
                    self._unfinished.remove(bench)
            is_first = False

    def _test(self, names: Sequence[str], share: float) -> None:
        """The part's, but those that have passed, or that failed in this run."""
        if not self._plan.tests:
            return
        k, n = self._plan.part
        chosen = [name for name in names[k - 1 :: n] if not self._is_tested(name)]
        run_checks(
            chosen, is_interpreted=self._setting.is_tiny, seconds=share * self.seconds_left,
            source=self._tests_source, logs=self._logs, on_result=self._take_check,
            silent_s=self._silent_s,
        )  # fmt: skip

    def _is_tested(self, name: str) -> bool:
        if name in self._checks:
            return self._checks[name].outcome in ("passed", "skipped", "failed")
        return self._results is not None and self._results.has_passed(name, self._tests_source)

    def _take_check(self, check: CheckResult) -> None:
        self._checks[check.path] = check
        if self._results is not None and check.outcome != "not run":
            self._results.add_check(check)
        say(f"{check.path}: {check.outcome}, {check.summary} in {check.seconds:.0f} s")
        if check.output:
            say(check.output)
        if check.outcome == "failed":
            self.failed.append(f"{check.path}: {check.summary}")

    def _bench(
        self, bench: str, ceilings: Ceilings | None, seconds: float, *, only_targets: bool = False
    ) -> bool:
        """Whether all of its cases are done."""
        failed = self._failed_cases[bench]
        known, earlier = self._known(bench)
        job = Job(
            f"benchmarks.gpu.{bench}", self._setting, ceilings, self._plan.part, only_targets,
            known, skipped=failed, last=earlier,
        )  # fmt: skip
        run = BenchRun(
            job, self, self._logs / f"{bench}{'-targets' * only_targets}", ROOT, environment(),
            self._silent_s, say,
        )  # fmt: skip
        return run.run(seconds)

    def _known(self, bench: str) -> tuple[dict[str, Row], list[str]]:
        """The bench's rows, and the cases that failed in earlier runs."""
        if self._results is None:
            return {row.key: row for row in self.rows.values() if row.bench == bench}, []
        failures = self._results.current_failures()
        return self._results.current_rows(bench), [f.key for f in failures if f.bench == bench]

    def add(self, row: Row) -> None:
        """Of a bench; also a row again, when more is known of it."""
        for peer in row.failures.keys() - self._peers_failed(row):
            self.failed.append(f"{row.bench}: {row.key}: {peer}: {row.failures[peer]}")
        self.rows[row.bench, row.key] = row
        if self._results is not None:
            self._results.add(row)

    def _peers_failed(self, row: Row) -> set[str]:
        before = self.rows.get((row.bench, row.key))
        return set() if before is None else set(before.failures)

    def add_failure(self, failure: Failure) -> None:
        self._failed_cases[failure.bench].append(failure.key)
        self.failed.append(f"{failure.bench}: {failure.key}: {failure.reason}")
        if self._results is not None:
            self._results.add_failure(failure)
