"""The `weft` command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from weft.cli import app
from weft.settings import ServerSettings, base_url


@pytest.fixture
def weft(tmp_path: Path) -> Any:
    """Run a command on a data folder of the test's own."""

    def run(*args: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, [*args, "--data", str(tmp_path / "data"), "--json"])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout) if code == 0 else result.stderr

    return run


def test_tenants_and_keys_live_in_the_data_folder(weft: Any) -> None:
    tenant = weft("tenant", "create", "acme")
    assert tenant["id"].startswith("tnt_")
    assert "exists already" in weft("tenant", "create", "acme", code=1)
    assert [row["name"] for row in weft("tenant", "list")] == ["acme"]
    key = weft("key", "create", "acme", "--scope", "inference", "--expires-in-days", "2")
    assert key["value"].startswith("weft_live_")
    assert key["scopes"] == ["inference"]
    (listed,) = weft("key", "list", tenant["id"])
    assert "value" not in listed
    assert weft("key", "revoke", "acme", key["id"])["revoked_at"] is not None
    assert "no scope" in weft("key", "create", "acme", "--scope", "root", code=1)
    assert weft("tenant", "delete", "acme")["deleted"] is True
    assert weft("tenant", "list") == []
    assert "No tenant" in weft("key", "list", "acme", code=1)


def test_projects_and_keys_of_all_kinds_live_in_the_data_folder(weft: Any) -> None:
    weft("tenant", "create", "acme")
    project = weft("project", "create", "acme", "search")
    key = weft("key", "create", "acme", "--project", "search")
    assert key["project_id"] == project["id"]
    rotated = weft("key", "rotate", "acme", key["id"], "--grace-hours", "0")
    assert (rotated["id"], rotated["previous_expires_at"]) == (key["id"], None)
    assert rotated["value"] not in ("", key["value"])
    change = ("--name", "web", "--grant", "inference", "--block")
    changed = weft("key", "update", "acme", key["id"], *change)
    assert (changed["name"], changed["scopes"], changed["status"]) == (
        "web",
        ["inference"],
        "blocked",
    )
    admin = weft("key", "create", "acme", "--admin", "--role", "billing")
    assert admin["value"].startswith("weft_admin_")
    assert weft("key", "list", "acme", "--admin")[0]["role"] == "billing"
    assert weft("key", "revoke", "acme", admin["id"])["status"] == "revoked"
    assert "no role" in weft("key", "create", "acme", "--admin", "--role", "king", code=1)
    assert weft("project", "archive", "acme", "search")["status"] == "archived"
    assert [row["name"] for row in weft("project", "list", "acme")] == ["default"]
    assert len(weft("project", "list", "acme", "--archived")) == 2
    assert weft("tenant", "suspend", "acme")["status"] == "suspended"
    assert weft("tenant", "resume", "acme")["status"] == "active"
    assert weft("tenant", "update", "acme", "--obfuscation")["include_obfuscation"] is True
    assert weft("tenant", "update", "acme", "--no-obfuscation")["include_obfuscation"] is False
    operator = weft("key", "operator", "create", "--permission", "tenants:read")
    assert operator["value"].startswith("weft_operator_")
    weft("key", "operator", "rotate", operator["id"])
    assert weft("key", "operator", "revoke", operator["id"])["status"] == "revoked"
    assert [row["id"] for row in weft("key", "operator", "list")] == [operator["id"]]
    told = {row["type"] for row in weft("audit", "list", "acme")}
    assert {"api_key.rotated", "admin_api_key.deleted", "project.archived"} <= told


def test_migrate_says_what_it_did(weft: Any) -> None:
    first = weft("migrate")
    assert first["from"] is None
    assert weft("migrate") == {**first, "from": first["to"]}


def test_importing_the_command_brings_in_neither_torch_nor_the_web() -> None:
    code = (
        "import sys, weft.cli; "
        "print([m for m in ('torch', 'fastapi', 'sqlalchemy', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_tables_are_for_people(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    CliRunner().invoke(app, ["tenant", "create", "acme", "--data", data])
    listed = CliRunner().invoke(app, ["tenant", "list", "--data", data])
    assert "acme" in listed.output
    key = CliRunner().invoke(app, ["key", "create", "acme", "--data", data])
    assert key.stdout.startswith("weft_live_")
    assert "not shown again" in key.stderr


def test_a_bad_setting_names_its_key(tmp_path: Path) -> None:
    base = str(tmp_path)
    result = CliRunner().invoke(app, ["serve", "--base", base, "--port", "99999"])
    assert result.exit_code == 1
    assert "port must be" in result.stderr
    with pytest.raises(ValueError, match="max_body_bytes must be above 0"):
        ServerSettings(base_dir=tmp_path, max_body_bytes=0)
    with pytest.raises(ValueError, match="dtype must be one of"):
        ServerSettings(base_dir=tmp_path, dtype="int3")
    with pytest.raises(ValueError, match="quantization must be one of int8, int4, not 'int3'"):
        ServerSettings(base_dir=tmp_path, quantization="int3")
    with pytest.raises(ValueError, match="kv_dtype must be one of auto, int8, not 'int4'"):
        ServerSettings(base_dir=tmp_path, kv_dtype="int4")


def test_the_clients_address_is_reachable() -> None:
    assert base_url("0.0.0.0", 8000) == "http://127.0.0.1:8000/v1"
