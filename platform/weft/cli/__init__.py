"""The `weft` command. Importing it is fast: torch and the web are imported by the commands."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from weft.cli import (
    adapter,
    audit,
    bench,
    billing,
    budget,
    demo,
    generate,
    key,
    limit,
    migrate,
    price,
    project,
    serve,
    tenant,
    usage,
    user,
)

app = typer.Typer(
    name="weft",
    help="Multi-tenant LoRA serving: many adapters, one base model, one batch.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
app.command("serve")(serve.serve)
app.command("migrate")(migrate.migrate)
app.command("demo")(demo.demo)
app.command("generate")(generate.generate)
app.command("bench")(bench.bench)
app.add_typer(tenant.app, name="tenant")
app.add_typer(user.app, name="user")
app.add_typer(project.app, name="project")
app.add_typer(key.app, name="key")
app.add_typer(limit.app, name="limit")
app.add_typer(budget.app, name="budget")
app.add_typer(adapter.app, name="adapter")
app.add_typer(audit.app, name="audit")
app.command("usage")(usage.usage)
app.add_typer(price.app, name="price")
app.add_typer(billing.app, name="billing")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("weft"))
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it and end."),
    ] = False,
) -> None:
    """Multi-tenant LoRA serving: many adapters, one base model, one batch."""


def main() -> None:
    """Entry of the `weft` script."""
    app()
