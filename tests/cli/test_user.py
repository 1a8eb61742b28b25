"""`weft user`: accounts without a server, and their passwords."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from weft.cli import app

EMAIL, PASSWORD = "root@weft.example", "correct horse battery staple"


@pytest.fixture
def weft(sqlite_database_url: str, tmp_path: Path) -> Any:
    """Run a command on a data folder of the test's own, which has its tables."""

    def run(*args: str, code: int = 0, stdin: str = "") -> Any:
        command = [*args, "--data", str(tmp_path), "--json"]
        result = CliRunner().invoke(app, command, input=stdin)
        assert result.exit_code == code, result.output
        assert PASSWORD not in result.output
        return json.loads(result.stdout) if code == 0 else result.stderr

    return run


def test_the_first_operator_is_made_without_a_server(weft: Any) -> None:
    user = weft("user", "create", EMAIL, "--operator", stdin=f"{PASSWORD}\n")
    assert user["is_operator"]
    assert user["has_password"]
    assert "already" in weft("user", "create", EMAIL, code=1, stdin=f"{PASSWORD}\n")
    assert [each["email"] for each in weft("user", "list")] == [EMAIL]
    assert "last operator" in weft("user", "disable", EMAIL, code=1)


def test_a_member_is_made_with_a_role(weft: Any) -> None:
    weft("tenant", "create", "acme")
    create = ("user", "create", "ada@acme.example", "--tenant")
    assert "no role" in weft(*create, "acme", "--role", "x", code=1, stdin=f"{PASSWORD}\n")
    assert "No tenant" in weft(*create, "nowhere", code=1, stdin=f"{PASSWORD}\n")
    assert weft("user", "list") == []
    weft(*create, "acme", stdin=f"{PASSWORD}\n")
    user = weft("user", "disable", "ada@acme.example")
    assert user["disabled_at"] is not None
    assert weft("user", "enable", user["id"])["disabled_at"] is None


def test_passwords_are_judged_and_set(weft: Any) -> None:
    assert "characters" in weft("user", "create", EMAIL, code=1, stdin="short\n")
    weft("user", "create", EMAIL, stdin=f"{PASSWORD}\n")
    assert "easy to guess" in weft("user", "set-password", EMAIL, code=1, stdin="rootrootroot\n")
    weft("user", "set-password", EMAIL, stdin="seven silent purple anchors\n")
    assert weft("user", "reset", EMAIL)["reset_token"].startswith("weft_reset_")
    weft("user", "sign-out", EMAIL)
    assert "No user" in weft("user", "reset", "nobody@weft.example", code=1)
