"""A pytest plugin, `-p benchmarks.gpu.check_log`: a line in a log for each test, as it begins and
as it ends (`--check-log FILE`, see `processes`).

    {"case": id}
    {"done": id, "outcome": "passed" | "skipped" | "failed", "error": text}

Tests that the log has are not run, so that a new process goes on where one died. A failed test that
took the device with it ends the process with `DEVICE_LOST`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from benchmarks.gpu import device
from benchmarks.gpu.processes import DEVICE_LOST, read_lines, write_line

_KEPT_ERROR = 2000
_outcomes: dict[str, tuple[str, str]] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--check-log", type=Path, required=True)


def _log(config: pytest.Config) -> Path:
    path = config.getoption("--check-log")
    assert isinstance(path, Path)
    return path


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    begun = {line.get("case") for line in read_lines(_log(config))}
    items[:] = [item for item in items if item.nodeid not in begun]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> object:
    log = _log(item.config)
    write_line(log, case=item.nodeid)
    result = yield
    outcome, error = _outcomes.pop(item.nodeid, ("passed", ""))
    write_line(log, done=item.nodeid, outcome=outcome, error=error)
    if outcome == "failed" and device.is_lost():
        # nothing that ends in an orderly way can be trusted to end
        os._exit(DEVICE_LOST)
    return result


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Of setup, call and teardown: the worst counts."""
    if report.failed:
        _outcomes[report.nodeid] = ("failed", report.longreprtext[-_KEPT_ERROR:])
    elif report.skipped:
        _outcomes.setdefault(report.nodeid, ("skipped", ""))
