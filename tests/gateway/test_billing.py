"""Periods, invoices and exports over HTTP."""

from __future__ import annotations

import asyncio
import json
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.billing.books import AUGUST, SEPTEMBER, Books
from tests.gateway.site import Site

from weft.db.database import Database
from weft.db.urls import sqlite_url

ISSUER = {"name": "Weft AI", "payment_days": 14, "region_id": "eu-1"}


@pytest.fixture
def site(shared_site: Site) -> Site:
    return shared_site


def use(site: Any, name: str, at: int, tokens: tuple[int, int, int]) -> str:
    """A tenant that used these tokens then; its id."""

    async def work() -> str:
        database = Database(sqlite_url(site.settings.database_file))
        books = Books(database)
        await books.open()
        tenant_id = await books.add_tenant(name)
        await books.use(tenant_id, at, tokens)
        await database.close()
        return tenant_id

    return asyncio.run(work())


def close(site: Any, month: object) -> Any:
    return site.operator("POST", f"/admin/v1/billing_periods/{month}:close")


def test_a_month_is_closed_invoiced_and_exported(site: Any) -> None:
    tenant_id = use(site, "acme", AUGUST.start_at, (1_000_000, 0, 1_000))
    issuer = site.operator("PUT", "/admin/v1/billing_issuer", json=ISSUER).json()
    assert issuer["service_name"] == "LoRA Inference"
    assert site.operator("GET", "/admin/v1/billing_issuer").json() == issuer
    closed = close(site, AUGUST)
    assert closed.status_code == 200
    assert (closed.json()["payable"], closed.json()["num_invoices"]) == ("2.51", 1)
    assert close(site, AUGUST).json() == closed.json()
    (period,) = site.operator("GET", "/admin/v1/billing_periods").json()["data"]
    assert (period["id"], period["status"]) == ("2026-08", "closed")
    params = {"billing_period": "2026-08"}
    (invoice,) = site.operator("GET", "/admin/v1/invoices", params=params).json()["data"]
    assert (invoice["tenant_id"], invoice["payable"]) == (tenant_id, "2.51")
    assert invoice["due_at"] - invoice["issued_at"] == 14 * 86_400
    body = {"tenant": "acme", "billing_period": "2026-08"}
    made = site.operator("POST", "/admin/v1/exports", json=body)
    assert made.status_code == 201
    export = made.json()
    assert (export["is_final"], export["billed"]) == (True, "2.51")
    manifest = json.loads((Path(export["location"]) / "manifest.json").read_text())
    assert manifest["sums"]["USD"]["BilledCost"] == "2.51"
    again = site.operator("POST", "/admin/v1/exports", json=body)
    assert (again.status_code, again.json()["id"]) == (200, export["id"])
    (listed,) = site.operator("GET", "/admin/v1/exports").json()["data"]
    assert listed["id"] == export["id"]


def test_months_that_cannot_be_closed_say_why(site: Any) -> None:
    use(site, "acme", AUGUST.start_at, (1, 0, 0))
    answer = close(site, SEPTEMBER)
    assert answer.status_code == 409
    assert "2026-08 is still open" in answer.json()["error"]["message"]
    assert close(site, "2999-01").status_code == 409
    for name in ("2026-13", "x", "2026-8"):
        assert close(site, name).status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        {"tenant": "acme"},
        {"tenant": "acme", "billing_period": "2026-13"},
        {"tenant": "acme", "billing_period": "2026-08", "target": "/etc"},
        {"tenant": "acme", "billing_period": "2026-08", "focus_version": "1.0"},
        {"tenant": "acme", "billing_period": "2026-08", "dataset": "x"},
        {
            "tenant": "acme", "billing_period": "2026-08", "dataset": "billing_period",
            "focus_version": "1.2",
        },
    ],
)  # fmt: skip
def test_an_export_that_makes_no_sense_is_refused(site: Any, body: dict[str, str]) -> None:
    site.tenant("acme")
    assert site.operator("POST", "/admin/v1/exports", json=body).status_code == 400


def test_an_export_of_nobody_is_not_found(site: Any) -> None:
    body = {"tenant": "nobody", "billing_period": "2026-08"}
    assert site.operator("POST", "/admin/v1/exports", json=body).status_code == 404


@pytest.mark.parametrize("name", ["=cmd", "-1", "a\nb", "", "x" * 200])
def test_a_name_that_no_file_may_hold_is_refused(site: Any, name: str) -> None:
    answer = site.operator("PUT", "/admin/v1/billing_issuer", json={"name": name})
    assert answer.status_code == 400


def test_a_tenants_key_does_nothing_with_billing(site: Any, acme: str) -> None:
    for method, path in (
        ("POST", "/admin/v1/billing_periods/2026-08:close"),
        ("GET", "/admin/v1/billing_periods"),
        ("GET", "/admin/v1/exports"),
        ("PUT", "/admin/v1/billing_issuer"),
        ("GET", "/v1/organization/invoices"),
    ):
        assert site.call(acme, method, path, json={}).status_code == 403


def test_a_tenant_reads_its_own_invoices_and_no_others(site: Any) -> None:
    tenant_id = use(site, "acme", AUGUST.start_at, (1_234_567, 0, 1_000))
    close(site, AUGUST)
    site.tenant("globex")
    invoice_id = f"inv_2026-08_{tenant_id}"
    admins = {
        name: str(
            site.operator(
                "POST", f"/admin/v1/tenants/{name}/admin_api_keys", json={"name": "billing"}
            ).json()["value"]
        )
        for name in ("acme", "globex")
    }
    listed = site.call(admins["acme"], "GET", "/v1/organization/invoices").json()
    assert [row["id"] for row in listed["data"]] == [invoice_id]
    one = site.call(admins["acme"], "GET", f"/v1/organization/invoices/{invoice_id}").json()
    assert one["payable"] == "3.10"
    assert sum(Decimal(line["amount"]) for line in one["lines"]) == Decimal("3.10")
    assert sum(Decimal(line["exact_amount"]) for line in one["lines"]) == Decimal("3.10")
    assert one["lines"][-1]["kind"] == "adjustment"
    assert site.call(admins["globex"], "GET", "/v1/organization/invoices").json()["data"] == []
    other = site.call(admins["globex"], "GET", f"/v1/organization/invoices/{invoice_id}")
    nothing = site.call(admins["globex"], "GET", "/v1/organization/invoices/inv_2026-08_x")
    assert other.status_code == nothing.status_code == 404
    assert other.text.replace(tenant_id, "x") == nothing.text


PRICE = {"base_model": "tiny", "input": "2.5", "output": "10"}


def test_prices_are_published_and_charged(site: Any) -> None:
    key = site.tenant("acme")
    body = {"name": "first", "prices": [PRICE, {**PRICE, "tenant": "acme", "input": "0.000001"}]}
    book = site.operator("POST", "/admin/v1/price_books", json=body)
    assert book.status_code == 201
    own = [price for price in book.json()["prices"] if price["tenant_id"]]
    assert [(p["input"], p["cached_input"], p["output"]) for p in own] == [
        ("0.000001", "0.000001", "10")
    ]
    listed = site.operator("GET", "/admin/v1/price_books").json()
    assert listed["data"] == [book.json()]
    while time.time() < book.json()["effective_from"]:
        time.sleep(0.05)
    site.client(key).completions.create(model="tiny", prompt="abc", max_tokens=4)
    params: dict[str, Any] = {"start_time": int(time.time()) - 60, "group_by[]": "line_item"}
    costs = site.call(key, "GET", "/v1/organization/costs", params=params).json()
    items = {r["line_item"]: r for bucket in costs["data"] for r in bucket["results"]}
    assert items["tiny, output"]["amount"]["value_pico"] == 3 * 10_000_000


@pytest.mark.parametrize(
    "change",
    [
        {"prices": []},
        {"prices": [{**PRICE, "input": "-1"}]},
        {"prices": [{**PRICE, "input": "0.0000001"}]},
        {"prices": [{**PRICE, "input": 1e400}]},
        {"prices": [PRICE, PRICE]},
        {"prices": [{**PRICE, "adapter": "bot"}]},
        {"prices": [{**PRICE, "surprise": 1}]},
        {"effective_from": 1},
        {"name": "=x"},
    ],
)
def test_prices_that_make_no_sense_are_refused(site: Any, change: dict[str, Any]) -> None:
    body = {"name": "first", "prices": [PRICE], **change}
    text = json.dumps(body).replace("Infinity", "1e400")
    headers = {"content-type": "application/json"}
    answer = site.operator("POST", "/admin/v1/price_books", content=text, headers=headers)
    assert answer.status_code == 400
    assert site.operator("GET", "/admin/v1/price_books").json()["data"] == []
