"""Rows of the GPU benches in a file: one a device and day, filled by as many runs as it takes."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from benchmarks.gpu.checks import CheckResult
from benchmarks.gpu.harness import Ceilings, Row
from benchmarks.report import print_table

COLUMNS = (
    "bench", "case", "us", "GB/s", "of roofline", "error", "peers: time over ours",
)  # fmt: skip


def default_path() -> Path:
    """`benchmarks/results/<device>/<date>.json`."""
    device = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    folder = Path(__file__).parents[1] / "results" / device
    return folder / f"{datetime.now(UTC):%Y-%m-%d}.json"


class Results:
    """The rows of a file, written after each one, so that a run that ends early keeps them.

    A result counts as long as the code is what it was: `source` is a digest of it, and a result of
    other code is made again and replaced.
    """

    def __init__(self, path: Path, source: str = "") -> None:
        self._path, self._source = path, source
        self._content: dict[str, Any] = {"runs": [], "checks": [], "rows": []}
        if path.exists():
            self._content |= json.loads(path.read_text(encoding="utf-8"))

    def start_run(self, machine: Mapping[str, object], ceilings: Ceilings, part: str) -> None:
        """What the rows of this run have in common. ValueError for a file of another machine."""
        if self._content["runs"]:
            first = self._content["runs"][0]
            for key, value in machine.items():
                if first[key] != value:
                    raise ValueError(
                        f"{self._path} was measured with {key} {first[key]}, not {value}: "
                        "name another file"
                    )
        self._content["runs"].append(
            {
                **machine,
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "part": part,
                "copy_gb_per_s": ceilings.copy_bandwidth / 1e9,
                "matmul_tflop_per_s": ceilings.matmul_rate / 1e12,
            }
        )

    def has(self, bench: str, key: str) -> bool:
        return any(
            (row["bench"], row["key"], row["source"]) == (bench, key, self._source)
            for row in self._content["rows"]
        )

    def add(self, row: Row) -> None:
        others = [
            r for r in self._content["rows"] if (r["bench"], r["key"]) != (row.bench, row.key)
        ]
        rows = [*others, asdict(replace(row, source=self._source))]
        self._content["rows"] = sorted(rows, key=lambda r: (r["bench"], r["operator"]))
        self._write()

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
        beside = self._path.with_suffix(".part")
        beside.write_text(json.dumps(self._content, indent=1) + "\n", encoding="utf-8")
        beside.replace(self._path)

    def write_table(self) -> Path:
        """The same for readers: `<date>.md` beside the file."""
        runs = self._content["runs"]
        lines = [f"# {runs[0]['device']}", ""] if runs else []
        for run in runs:
            lines.append(
                f"- {run['started']}: part {run['part']}; a copy moves {run['copy_gb_per_s']:.0f} "
                f"GB/s, a product does {run['matmul_tflop_per_s']:.0f} TFLOP/s; driver "
                f"{run['driver']}, "
                + ", ".join(f"{name} {number}" for name, number in run["versions"].items())
            )
        checks = [(c["path"], c["outcome"], c["summary"]) for c in self._content["checks"]]
        lines += ["", "## Tests", "", *_markdown(("file", "outcome", "summary"), checks)]
        lines += ["", "## Benches", "", *_markdown(COLUMNS, [_cells(row) for row in self.rows()])]
        path = self._path.with_suffix(".md")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    def rows(self) -> list[Row]:
        return [Row(**row) for row in self._content["rows"]]


def this_machine() -> dict[str, object]:
    return {
        "device": torch.cuda.get_device_name(),
        "driver": _driver(),
        "versions": {
            "python": platform.python_version(),
            "torch": version("torch"),
            "cuda": torch.version.cuda,
            "triton": version("triton"),
        },
    }


def _driver() -> str:
    run = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return run.stdout.splitlines()[0].strip()


def print_rows(title: str, rows: Iterable[Row]) -> None:
    print_table(title, COLUMNS, [_cells(row) for row in rows])


def _cells(row: Row) -> list[str]:
    peers = [f"{name} {ratio:.2f}x" for name, ratio in row.ratios.items()]
    peers += [f"{name} failed" for name in row.failures]
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
    return ["| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *rows)]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
