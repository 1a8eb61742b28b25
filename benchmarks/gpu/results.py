"""What `make gpu` found, in a file: one a device and day, filled by as many runs as it takes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu import targets
from benchmarks.gpu.checks import CheckResult
from benchmarks.gpu.harness import Ceilings, Failure, Row
from benchmarks.gpu.targets import Verdict
from benchmarks.report import print_table

COLUMNS = (
    "bench", "case", "us", "GB/s", "of roofline", "error", "peers: time over ours",
)  # fmt: skip
VERDICT_COLUMNS = ("target", "asked", "verdict", "measured")


def default_path(device: str) -> Path:
    """`benchmarks/results/<device>/<date>.json`."""
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    folder = Path(__file__).parents[1] / "results" / name
    return folder / f"{datetime.now(UTC):%Y-%m-%d}.json"


class Results:
    """A file of rows, of cases that failed, of tests, and of the verdicts that they come to. It is
    written after each one, so that a run that ends early keeps them.

    A result counts as long as the code is what it was: `source` is a digest of it, and a result of
    other code is made again and replaced.
    """

    def __init__(self, path: Path, source: str = "") -> None:
        self._path, self._source = path, source
        self._content: dict[str, Any] = {
            "runs": [], "verdicts": [], "checks": [], "failures": [], "rows": [],
        }  # fmt: skip
        if path.exists():
            self._content |= json.loads(path.read_text(encoding="utf-8"))

    def start_run(
        self, machine: Mapping[str, object], ceilings: Ceilings | None, part: str
    ) -> None:
        """What the rows of this run have in common. ValueError for a file of another machine."""
        if self._content["runs"]:
            first = self._content["runs"][0]
            for key, value in machine.items():
                if first[key] != value:
                    raise ValueError(
                        f"{self._path} was measured with {key} {first[key]}, not {value}: "
                        "name another file"
                    )
        run = {
            **machine,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "part": part,
            "copy_gb_per_s": None if ceilings is None else ceilings.copy_bandwidth / 1e9,
            "matmul_tflop_per_s": None if ceilings is None else ceilings.matmul_rate / 1e12,
        }
        self._content["runs"].append(run)

    def current_rows(self, bench: str) -> dict[str, Row]:
        """The bench's rows of this code, by key."""
        return {
            row.key: row for row in self.rows() if (row.bench, row.source) == (bench, self._source)
        }

    def current_failures(self) -> list[Failure]:
        """The cases of this code that failed."""
        failures = [Failure(**failure) for failure in self._content["failures"]]
        return [failure for failure in failures if failure.source == self._source]

    def add(self, row: Row) -> None:
        self._forget("failures", row.bench, row.key)
        self._forget("rows", row.bench, row.key)
        rows = [*self._content["rows"], asdict(replace(row, source=self._source))]
        self._content["rows"] = sorted(rows, key=lambda r: (r["bench"], r["operator"]))
        self._write()

    def add_failure(self, failure: Failure) -> None:
        self._forget("failures", failure.bench, failure.key)
        self._content["failures"].append(asdict(replace(failure, source=self._source)))
        self._write()

    def _forget(self, kind: str, bench: str, key: str) -> None:
        self._content[kind] = [
            item for item in self._content[kind] if (item["bench"], item["key"]) != (bench, key)
        ]

    def verdicts(self) -> list[Verdict]:
        """Of what was measured of this code."""
        rows = [row for row in self.rows() if row.source == self._source]
        return list(targets.judge(rows, self.current_failures()))

    def has_passed(self, path: str, source: str) -> bool:
        """Whether the test file passed, when its tests and the code were as they are now."""
        return any(
            (check["path"], check["source"], check["outcome"]) == (path, source, "passed")
            for check in self._content["checks"]
        )

    def add_check(self, check: CheckResult) -> None:
        others = [c for c in self._content["checks"] if c["path"] != check.path]
        self._content["checks"] = sorted([*others, asdict(check)], key=lambda c: c["path"])
        self._write()

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._content["verdicts"] = [asdict(verdict) for verdict in self.verdicts()]
        beside = self._path.with_suffix(".part")
        beside.write_text(json.dumps(self._content, indent=1) + "\n", encoding="utf-8")
        beside.replace(self._path)

    def write_table(self) -> Path:
        """The same for readers: `<date>.md` beside the file."""
        runs = self._content["runs"]
        lines = [f"# {runs[0]['device']}", ""] if runs else []
        lines += [_describe(run) for run in runs]
        verdicts = map(_verdict_cells, self.verdicts())
        lines += ["", "## Targets", "", *_markdown(VERDICT_COLUMNS, verdicts)]
        checks = [(c["path"], c["outcome"], c["summary"]) for c in self._content["checks"]]
        lines += ["", "## Tests", "", *_markdown(("file", "outcome", "summary"), checks)]
        failures = [(f.bench, f.key, f.reason) for f in self.current_failures()]
        if failures:
            lines += ["", "## Failed", "", *_markdown(("bench", "case", "why"), failures)]
        lines += ["", "## Benches", "", *_markdown(COLUMNS, [_cells(row) for row in self.rows()])]
        path = self._path.with_suffix(".md")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    def rows(self) -> list[Row]:
        return [Row.from_json(row) for row in self._content["rows"]]


def _describe(run: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    reached = "the device's ceilings were not measured"
    if run["copy_gb_per_s"] is not None:
        reached = (
            f"a copy moves {run['copy_gb_per_s']:.0f} GB/s, a product does "
            f"{run['matmul_tflop_per_s']:.0f} TFLOP/s"
        )
    return f"- {run['started']}: part {run['part']}; {reached}; driver {run['driver']}, {versions}"


def print_rows(title: str, rows: Iterable[Row]) -> None:
    print_table(title, COLUMNS, [_cells(row) for row in rows])


def print_verdicts(verdicts: Iterable[Verdict]) -> None:
    print_table("targets", VERDICT_COLUMNS, map(_verdict_cells, verdicts))


def _verdict_cells(verdict: Verdict) -> list[str]:
    return [verdict.target, verdict.limit, verdict.outcome, verdict.reason or verdict.measured]


def _cells(row: Row) -> list[str]:
    peers = [f"{name} {ratio:.2f}x" for name, ratio in row.ratios.items()]
    peers += [f"{name} ran" for name in row.ran] + [f"{name} failed" for name in row.failures]
    return [
        row.bench.removeprefix("bench_"),
        row.key,
        _number(row.microseconds, ".2f"),
        _number(row.gb_per_s, ".0f"),
        _number(row.roofline_fraction, ".0%"),
        f"{row.error:.1e}",
        ", ".join(peers),
    ]


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    table = (columns, ["---"] * len(columns), *rows)
    return [f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |" for cells in table]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
