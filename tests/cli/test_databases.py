"""Commands on the database that WEFT_DATABASE_URL names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.stores import PostgresDatabases
from typer.testing import CliRunner

from weft.cli import app
from weft.db.urls import redacted


def run(*command: str, env: dict[str, str]) -> str:
    result = CliRunner(env=env).invoke(app, list(command))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_commands_work_on_the_database_that_is_named(
    postgres: PostgresDatabases, tmp_path: Path
) -> None:
    url = postgres.create(is_empty=True)
    env, data = {"WEFT_DATABASE_URL": url}, str(tmp_path / "data")
    moved = json.loads(run("migrate", "--json", "--data", data, env=env))
    assert moved["from"] is None
    assert moved["to"] is not None
    assert "already" in run("migrate", "--data", data, env=env)
    run("tenant", "create", "acme", "--data", data, env=env)
    tenants = json.loads(run("tenant", "list", "--json", "--data", data, env=env))
    assert [tenant["name"] for tenant in tenants] == ["acme"]
    assert not (tmp_path / "data" / "weft.db").exists()
    postgres.drop(url)


@pytest.mark.parametrize("command", [["tenant", "list"], ["migrate"]])
def test_a_database_that_is_away_is_said_so_without_its_password(
    command: list[str], tmp_path: Path
) -> None:
    url = "postgresql://weft:hunter2@127.0.0.1:1/weft"
    runner = CliRunner(env={"WEFT_DATABASE_URL": url})
    result = runner.invoke(app, [*command, "--data", str(tmp_path)])
    assert result.exit_code == 1
    said = " ".join(result.stderr.split())
    assert redacted(url) in said
    assert "could not be used" in said
    assert "hunter2" not in said
