"""What tenants and operators do is in the audit trail, told over HTTP and by command."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from weft.cli import app


def logs(site: Any, tenant: str | None = None, **params: Any) -> list[dict[str, Any]]:
    named = {} if tenant is None else {"tenant": tenant}
    answer = site.operator("GET", "/admin/v1/audit_logs", params={**named, **params})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


def test_an_adapters_life_is_on_record(
    site: Any, acme: str, lora: Callable[..., dict[str, bytes]]
) -> None:
    site.create_adapter(acme, "bot")
    for seed in (1, 2):
        site.upload(acme, "bot", lora(seed)).raise_for_status()
    site.upload(acme, "bot", lora(2)).raise_for_status()  # there already: nothing changes
    alias = "/v1/adapters/bot/aliases/prod"
    site.call(acme, "PUT", alias, json={"version": 1}).raise_for_status()
    refused = site.call(acme, "PUT", alias, json={"version": 2, "expected_version": 2})
    assert refused.status_code == 409
    site.call(acme, "DELETE", alias).raise_for_status()
    version = "/v1/adapters/bot/versions/1"
    for action in (":pin", ":unpin"):
        site.call(acme, "POST", version + action).raise_for_status()
    site.call(acme, "DELETE", version).raise_for_status()
    site.call(acme, "DELETE", "/v1/adapters/bot").raise_for_status()
    entries = [log for log in logs(site, "acme", limit=100) if log["type"].startswith("adapter")]
    assert [entry["type"] for entry in reversed(entries)] == [
        "adapter.created",
        "adapter.version.created",
        "adapter.version.created",
        "adapter.alias.updated",
        "adapter.alias.deleted",
        "adapter.version.pinned",
        "adapter.version.unpinned",
        "adapter.version.deleted",
        "adapter.deleted",
    ]
    key = entries[0]["actor"]["api_key"]
    assert key["id"] == acme.split("_")[2]
    assert key["ip_address"] == "127.0.0.1"
    assert "python-httpx" in key["user_agent"]
    (moved,) = (entry for entry in entries if entry["type"] == "adapter.alias.updated")
    assert moved["adapter.alias.updated"]["changes_requested"] == {
        "adapter": "bot",
        "alias": "prod",
        "version": 1,
    }


def test_what_an_operator_does_to_the_platform_is_on_record(site: Any, acme: str) -> None:
    site.operator("POST", "/admin/v1/adapters:purge", json={"retention_s": 7}).raise_for_status()
    (entry,) = (log for log in logs(site) if log["type"] == "adapters.purged")
    assert entry["actor"]["type"] == "operator"
    assert entry["adapters.purged"]["data"]["retention_s"] == 7


def test_entries_are_paged_and_filtered(site: Any, acme: str) -> None:
    for number in range(5):
        site.create_adapter(acme, f"bot{number}")
    wanted = {"event_types[]": "adapter.created"}
    everything = logs(site, "acme", limit=100, **wanted)
    names = [log["adapter.created"]["data"]["name"] for log in everything]
    assert names == [f"bot{number}" for number in reversed(range(5))]
    first = logs(site, "acme", limit=2, **wanted)
    second = logs(site, "acme", limit=2, after=first[-1]["id"], **wanted)
    assert first + second == everything[:4]
    assert logs(site, "acme", limit=2, before=second[-1]["id"], **wanted) == everything[1:3]
    at_s = everything[0]["effective_at"]
    assert logs(site, "acme", **wanted, **{"effective_at[gt]": at_s}) == []
    assert len(logs(site, "acme", **wanted, **{"effective_at[lte]": at_s})) == 5
    one = everything[2]
    assert logs(site, "acme", **{"resource_ids[]": one["adapter.created"]["id"]}) == [one]
    assert logs(site, "acme", **{"actor_ids[]": "nobody"}) == []
    bad = site.operator("GET", "/admin/v1/audit_logs", params={"after": "audit_log_x"})
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "after")


def test_a_project_key_and_the_operator_do_not_read_a_tenants_trail(site: Any, acme: str) -> None:
    path = "/v1/organization/audit_logs"
    assert site.call(acme, "GET", path).status_code == 403
    assert site.operator("GET", path).status_code == 403
    assert site.call(acme, "GET", "/admin/v1/audit_logs").status_code == 403


@pytest.fixture
def weft(tmp_path: Path) -> Callable[..., Any]:
    """Run `weft audit` on the server's data folder."""

    def run(*args: str, code: int = 0) -> Any:
        options = ["--data", str(tmp_path / "data"), "--json"]
        result = CliRunner().invoke(app, ["audit", *args, *options])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)

    return run


def test_the_trail_is_verified_by_command(
    site: Any, acme: str, weft: Callable[..., Any], tmp_path: Path
) -> None:
    heads = tmp_path / "heads.json"
    site.create_adapter(acme, "bot")
    assert weft("list", "acme", "--type", "adapter.created")[0]["actor"]["type"] == "api_key"
    done = weft("verify", "--save-heads", str(heads))
    assert done["faults"] == []
    assert done["num_entries"] >= 1
    site.create_adapter(acme, "box")
    assert weft("verify", "--heads", str(heads))["faults"] == []
    with sqlite3.connect(tmp_path / "data" / "weft.db") as connection:
        connection.execute("UPDATE audit_entries SET changes = '{}' WHERE type = 'adapter.created'")
    faults = weft("verify", code=1)["faults"]
    assert len(faults) == 2
    assert all("was altered" in fault for fault in faults)


def test_a_file_that_holds_no_heads_is_refused(site: Any, tmp_path: Path) -> None:
    for text in ("{", "[1]", '[{"chain": 1}]'):
        (tmp_path / "heads").write_text(text)
        options = ["--data", str(tmp_path / "data"), "--heads", str(tmp_path / "heads")]
        result = CliRunner().invoke(app, ["audit", "verify", *options])
        assert result.exit_code == 1
        assert "holds no heads" in result.stderr
