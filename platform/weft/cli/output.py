"""How commands speak: results on stdout (a table, or JSON with `--json`), the rest on stderr."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

DataOption = Annotated[
    Path, typer.Option("--data", envvar="WEFT_DATA", help="The server's data folder.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: object) -> None:
    """One JSON document, and nothing else, on stdout."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_rows(rows: Sequence[dict[str, object]], columns: Sequence[str], *, as_json: bool) -> None:
    """Rows as a table of `columns`, or whole as JSON."""
    if as_json:
        print_json(list(rows))
        return
    table = Table(*columns)
    for row in rows:
        table.add_row(*(_cell(column, row.get(column)) for column in columns))
    out.print(table)


def _cell(column: str, value: object) -> str:
    if column.endswith("_at") and isinstance(value, int):
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    if isinstance(value, list):
        return escape(", ".join(map(str, value)))
    return "" if value is None else escape(str(value))


def fail(message: str) -> typer.Exit:
    """Say what went wrong; `raise fail(...)` ends with exit code 1."""
    err.print(f"[red]error:[/red] {escape(message)}")
    return typer.Exit(1)


@contextmanager
def spinner(text: str) -> Iterator[None]:
    """Shows that something is under way; silent where stderr is no terminal."""
    with err.status(text):
        yield
