"""A flood of bad keys from one address (attack 5), which is throttled from then on."""

from __future__ import annotations

from typing import Any

from sqlalchemy import event
from tests.gateway.site import Site

from weft.tenancy.bad_keys import BURST
from weft.tenancy.keys import create_key

NUM_KEYS = 300


def test_5_a_flood_of_bad_keys_is_throttled_and_hardly_reaches_the_database(site: Site) -> None:
    good = site.tenant("acme")
    assert site.call(good, "GET", "/v1/models").status_code == 200
    queries: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "FROM api_keys" in statement or "FROM admin_keys" in statement:
            queries.append(statement)

    event.listen(site.app.state.database._engine.sync_engine, "before_cursor_execute", note)
    answers = [
        site.call(str(create_key("admin" if i % 2 else "live")), "GET", "/v1/models")
        for i in range(NUM_KEYS)
    ]
    statuses = [answer.status_code for answer in answers]
    assert set(statuses[: BURST // 2]) == {401}
    assert statuses.count(429) > NUM_KEYS // 2
    assert len(queries) == statuses.count(401)
    throttled = next(answer for answer in answers if answer.status_code == 429)
    assert throttled.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(throttled.headers["retry-after"]) <= 120
    assert "weft_" not in throttled.text
    # who is known to be right is served beside it
    for _ in range(3):
        assert site.call(good, "GET", "/v1/models").status_code == 200
