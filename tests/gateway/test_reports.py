"""Usage and costs over HTTP, through OpenAI's own client."""

from __future__ import annotations

import time
from typing import Any

import openai
import pytest
from tests.gateway.site import Site

START = int(time.time()) - 3600


@pytest.fixture
def site(shared_site: Site) -> Site:
    return shared_site


def ask(site: Any, key: str, prompt: str = "abc") -> None:
    site.client(key).completions.create(model="tiny", prompt=prompt, max_tokens=4)


def results(site: Any, key: str, report: str, **params: Any) -> list[dict[str, Any]]:
    answer = site.call(
        key, "GET", f"/v1/organization/{report}", params={"start_time": START, **params}
    )
    answer.raise_for_status()
    page = answer.json()
    assert page["object"] == "page"
    return [result for bucket in page["data"] for result in bucket["results"]]


def test_usage_is_told_by_what_is_asked_for(site: Any, acme: str) -> None:
    second = site.key("acme")
    for key in (acme, acme, second):
        ask(site, key)
    (total,) = results(site, acme, "usage/completions")
    assert (total["num_model_requests"], total["api_key_id"], total["model"]) == (3, None, None)
    assert total["output_tokens"] == 9
    by_key = results(site, acme, "usage/completions", **{"group_by[]": ["api_key_id", "model"]})
    assert sorted(row["num_model_requests"] for row in by_key) == [1, 2]
    assert {row["model"] for row in by_key} == {"tiny"}
    only = {"api_key_ids[]": by_key[0]["api_key_id"]}
    (row,) = results(site, acme, "usage/completions", **only)
    assert row["num_model_requests"] == by_key[0]["num_model_requests"]


def test_buckets_without_usage_are_there_and_empty(site: Any, acme: str) -> None:
    ask(site, acme)
    params = {"start_time": START, "bucket_width": "1h", "limit": 1}
    page = site.call(acme, "GET", "/v1/organization/usage/completions", params=params).json()
    (bucket,) = page["data"]
    assert (bucket["results"], page["has_more"]) == ([], True)
    assert bucket["end_time"] - bucket["start_time"] == 3600
    params["page"] = page["next_page"]
    page = site.call(acme, "GET", "/v1/organization/usage/completions", params=params).json()
    assert page["data"][0]["start_time"] == bucket["end_time"]


def test_another_tenants_usage_is_not_told(site: Any, acme: str) -> None:
    ask(site, acme)
    globex = site.tenant("globex")
    assert results(site, globex, "usage/completions") == []
    assert results(site, globex, "costs") == []


def test_costs_are_told_by_line_item(site: Any, acme: str) -> None:
    ask(site, acme)
    (total,) = results(site, acme, "costs")
    assert total["amount"] == {"value": 0.0, "currency": "usd", "value_pico": 0}
    items = results(site, acme, "costs", **{"group_by[]": "line_item"})
    named = {item["line_item"]: item["quantity"] for item in items}
    assert named["tiny, output"] == 3


def test_openais_admin_client_reads_both(site: Any, acme: str) -> None:
    ask(site, acme)
    with openai.OpenAI(admin_api_key=acme, base_url=f"{site.url}/v1", max_retries=0) as client:
        usage = client.admin.organization.usage.completions(
            start_time=START, bucket_width="1h", group_by=["model"]
        )
        found = [result for bucket in usage.data for result in bucket.results]
        (row,) = found
        assert row.object == "organization.usage.completions.result"
        assert (row.model, row.num_model_requests) == ("tiny", 1)
        costs = client.admin.organization.usage.costs(start_time=START, group_by=["line_item"])
        assert costs.data[-1].results


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"start_time": -1},
        {"start_time": 2**60},
        {"start_time": START, "bucket_width": "1y"},
        {"start_time": START, "group_by[]": "secret"},
        {"start_time": START, "limit": 32},
        {"start_time": START, "page": "page_17"},
        {"start_time": START, "end_time": START},
    ],
)
def test_a_report_that_makes_no_sense_is_refused(
    site: Any, acme: str, params: dict[str, Any]
) -> None:
    answer = site.call(acme, "GET", "/v1/organization/usage/completions", params=params)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_key_without_the_scope_reads_nothing(site: Any, acme: str) -> None:
    key = site.key("acme", ["inference"])
    params = {"start_time": START}
    for report in ("usage/completions", "costs"):
        assert site.call(key, "GET", f"/v1/organization/{report}", params=params).status_code == 403
