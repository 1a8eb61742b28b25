"""A budget over real HTTP: a hard stop before a request costs too much, and never overshot."""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from tests.gateway.limited import OWN, code, complete, create_tenant
from tests.gateway.site import Site

from weft.db.database import Database
from weft.db.urls import sqlite_url
from weft.usage.money_models import Price, PriceBook


def test_a_budget_stops_requests_before_they_cost_too_much(site: Site) -> None:
    tenant = create_tenant(site)
    acme, admin = tenant.key, tenant.admin
    set_price(site, input_rate=10**6, output_rate=10**6)  # a micro-dollar a token
    body = {
        "subject": {"kind": "project", "id": "default"},
        "period": "month",
        "limit_usd": "0.00006",
    }
    made = site.call(admin, "POST", f"{OWN}/budgets", json=body)
    assert made.status_code == 201
    assert code(site.call(admin, "POST", f"{OWN}/budgets", json=body)) == (409, "budget_exists")
    path = f"{OWN}/budgets/{made.json()['id']}"
    # of 20 at once, each of 6 micro-dollars at most and in the end, 10 have room
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: complete(site, acme), range(20)))
    assert Counter(answer.status_code for answer in answers) == {200: 10, 429: 10}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert code(refused) == (429, "insufficient_quota")
    assert refused.json()["error"]["type"] == "insufficient_quota"
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers
    # refused ones took nothing of the rates either
    headers = answers[0].headers
    limit = int(headers["x-ratelimit-limit-requests"])
    left = complete(site, acme).headers["x-ratelimit-remaining-requests"]
    assert int(left) == limit - 10
    budget = site.call(admin, "GET", path).json()
    assert (budget["limit_usd"], budget["spent_usd"], budget["held_usd"]) == (
        "0.00006", "0.00006", "0",
    )  # fmt: skip
    site.call(admin, "POST", path, json={"limit_usd": "0.000066"}).raise_for_status()
    assert complete(site, acme, max_tokens=4).status_code == 429  # one call over what is left
    assert complete(site, acme).status_code == 200
    assert len(site.engine.requests) == 11
    site.call(admin, "DELETE", path).raise_for_status()
    assert complete(site, acme).status_code == 200


def set_price(site: Site, **rates: int) -> None:
    async def add() -> None:
        database = Database(sqlite_url(site.settings.database_file))
        async with database.writing() as session:
            session.add(PriceBook(id="book", name="list", effective_from=0, created_at=0))
            await session.flush()
            session.add(
                Price(
                    id="price", price_book_id="book", base_model="tiny",
                    cached_input_rate=rates["input_rate"], **rates,
                )
            )  # fmt: skip
        await database.close()

    asyncio.run(add())
