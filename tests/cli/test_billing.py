"""`weft price`, `weft usage` and `weft billing` on a data folder."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tests.billing.books import AUGUST, Books
from tests.billing.stripe_server import KEY, stripe_server
from typer.testing import CliRunner

from weft.billing.periods import HOUR_S
from weft.cli import app
from weft.db.database import Database
from weft.db.ids import now
from weft.db.urls import sqlite_url

LAST_HOUR = now() // HOUR_S * HOUR_S - 2 * HOUR_S


@pytest.fixture
def weft(tmp_path: Path) -> Any:
    """Run a command on a data folder of the test's own."""

    def run(*args: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, [*args, "--data", str(tmp_path / "data"), "--json"])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout) if result.stdout else result.stderr

    return run


@pytest.fixture
def acme(weft: Any, tmp_path: Path) -> str:
    """A tenant that used a million tokens of input and a thousand of output in August, and a few
    in an hour that has just ended."""
    weft("tenant", "create", "other")

    async def use() -> str:
        database = Database(sqlite_url(tmp_path / "data" / "weft.db"))
        books = Books(database)
        await books.open()
        tenant_id = await books.add_tenant("acme")
        await books.use(tenant_id, AUGUST.start_at, (1_000_000, 0, 1_000))
        await books.use(tenant_id, LAST_HOUR, (5, 0, 1))
        await database.close()
        return tenant_id

    return asyncio.run(use())


def test_a_month_from_prices_to_exports(weft: Any, acme: str, tmp_path: Path) -> None:
    weft("price", "set", "tiny", "--input", "2.5", "--output", "10", "--tenant", "acme")
    assert [row["input"] for row in weft("price", "list")] == ["2.500003", "2.5"]
    (day,) = weft("usage", "acme", "--since", "2026-08-01", "--until", "2026-08-31")
    assert (day["day"], day["model"], day["cost_usd"]) == ("2026-08-01", "bot@v3", "2.510003007")
    assert weft("billing", "issuer", "--name", "Weft AI")[0]["name"] == "Weft AI"
    assert weft("billing", "close", "2026-08")["payable"] == "2.51"
    (invoice,) = weft("billing", "invoices", "2026-08")
    assert (invoice["tenant_id"], invoice["issuer"]) == (acme, "Weft AI")
    made = weft("billing", "export", "acme", "2026-08", "--format", "csv")
    assert made["is_new"] is True
    assert (tmp_path / "data" / "exports") in Path(made["location"]).parents
    assert weft("billing", "export", "acme", "2026-08", "--format", "csv")["is_new"] is False
    (Path(made["location"]) / "part-00000.csv").write_text("altered")
    found = {row["check"]: row for row in weft("billing", "verify", code=1)}
    assert found["exports"]["result"] == "DIFFERS"
    assert (found["invoices"]["result"], found["periods"]["result"]) == ("ok", "ok")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("billing", "close", "2026-8"), "such as 2026-11"),
        (("billing", "close", "2999-01"), "can be closed from"),
        (("billing", "export", "acme", "2026-08", "--format", "xls"), "format"),
        (("billing", "export", "acme", "2026-08", "--to", "http://x"), "s3://"),
        (("billing", "export", "nobody", "2026-08"), "nobody"),
        (("billing", "issuer", "--name", "=x"), "name"),
        (("price", "set", "tiny", "--input", "x", "--output", "1"), "dollars per million"),
        (("usage", "acme", "--since", "August"), "2026-11-01"),
        (("usage", "acme", "--since", "2026-08-02", "--until", "2026-08-01"), "after start_time"),
    ],
)
def test_what_makes_no_sense_is_refused(
    weft: Any, acme: str, args: tuple[str, ...], said: str
) -> None:
    assert said in weft(*args, code=1)


def test_usage_goes_to_stripe(weft: Any, acme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEFT_STRIPE_API_KEY", raising=False)
    assert "WEFT_STRIPE_API_KEY" in weft("billing", "send", code=1)
    monkeypatch.setenv("WEFT_STRIPE_API_KEY", KEY)
    assert weft("billing", "customer", "acme", "cus_acme")[0]["tenant_id"] == acme
    with stripe_server() as server:
        assert weft("billing", "send", "--url", server.url)[0]["sent"] == 2
        assert server.total("weft_input_tokens", "cus_acme") == 5
        server.faults = ["500"]
        assert weft("billing", "send", "--url", server.url)[0]["sent"] == 0
