"""What every benchmark writes: a table, and beside it dated JSON with settings and versions."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

PACKAGES = ("torch", "numpy", "transformers", "peft", "weft")


def settings(**own: object) -> dict[str, object]:
    """The benchmark's own settings, the machine, and the versions of what took part."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **own,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in PACKAGES},
    }


def output_path(json_dir: Path, name: str, suffix: str) -> Path:
    """`json_dir/name-YYYY-MM-DD.suffix`; the folder is made."""
    json_dir.mkdir(parents=True, exist_ok=True)
    return json_dir / f"{name}-{datetime.now(UTC):%Y-%m-%d}.{suffix}"


def write_json(json_dir: Path | None, name: str, result: Mapping[str, object]) -> None:
    """Nothing without a folder."""
    if json_dir is not None:
        text = json.dumps(result, indent=2) + "\n"
        output_path(json_dir, name, "json").write_text(text, encoding="utf-8")


def cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*(cell(value) for value in row))
    # where no terminal says otherwise, rich assumes 80 columns and cuts figures off
    Console(width=None if sys.stdout.isatty() else 130).print(table)


def print_figures(title: str, figures: Mapping[str, object]) -> None:
    """One figure a line."""
    print_table(title, ("figure", "value"), figures.items())


def say(line: str) -> None:
    """Progress, for whoever waits."""
    Console(stderr=True).print(line, highlight=False, markup=False)
