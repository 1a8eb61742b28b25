"""`weft limit` and `weft budget`, on a data folder without a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from weft.cli import app


@pytest.fixture
def weft(tmp_path: Path) -> Any:
    """Run a command on a data folder of the test's own."""

    def run(*args: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, [*args, "--data", str(tmp_path / "data"), "--json"])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout) if code == 0 else result.stderr

    run("tenant", "create", "acme")
    return run


def test_limits_are_set_listed_and_deleted(weft: Any) -> None:
    acme = ("--tenant", "acme")
    limit = weft("limit", "set", *acme, "--requests-per-minute", "10", "--max-adapters", "3")
    assert (limit["requests_per_minute"], limit["tokens_per_minute"]) == (10, None)
    again = weft("limit", "set", *acme, "--tokens-per-minute", "99")
    assert (again["id"], again["requests_per_minute"]) == (limit["id"], None)
    options = ("--project", "default", "--model", "tiny", "--max-running", "2")
    of_model = weft("limit", "set", *acme, *options)
    assert of_model["model"] == "tiny"
    assert [row["id"] for row in weft("limit", "list", *acme)] == [limit["id"], of_model["id"]]
    assert weft("limit", "delete", limit["id"], *acme)["deleted"] is True
    base = weft("limit", "set", "--base", "tiny", "--max-running", "5")
    assert base["tenant_id"] is None
    assert [row["id"] for row in weft("limit", "list")] == [base["id"]]
    assert "No limit" in weft("limit", "delete", base["id"], *acme, code=1)


def test_budgets_are_created_changed_listed_and_deleted(weft: Any) -> None:
    acme = ("--tenant", "acme")
    budget = weft("budget", "create", "12.50", *acme, "--project", "default")
    assert (budget["period"], budget["limit_usd"], budget["spent_usd"]) == ("month", "12.5", "0")
    assert "already" in weft("budget", "create", "1", *acme, "--project", "default", code=1)
    assert weft("budget", "set", budget["id"], "0.000001", *acme)["limit_usd"] == "0.000001"
    assert len(weft("budget", "list", *acme)) == 1
    assert weft("budget", "delete", budget["id"], *acme)["deleted"] is True
    assert weft("budget", "create", "5", "--base", "tiny", "--period", "total")["tenant_id"] is None


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("limit", "set", "--max-running", "1"), "either --tenant or --base"),
        (("limit", "set", "--tenant", "acme"), "at least one"),
        (("limit", "set", "--tenant", "nobody", "--max-running", "1"), "No tenant"),
        (("limit", "set", "--base", "b", "--key", "k", "--max-running", "1"), "--tenant with one"),
        (("budget", "create", "much", "--tenant", "acme"), "no amount"),
        (("budget", "create", "1", "--tenant", "acme", "--period", "year"), "day, month, total"),
        (("budget", "create", "1", "--tenant", "acme", "--adapter", "bot"), "No adapter"),
    ],
)
def test_what_makes_no_sense_is_refused(weft: Any, args: tuple[str, ...], reason: str) -> None:
    assert reason in weft(*args, code=1)
