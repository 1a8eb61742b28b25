"""Limits and budgets as operators and tenants set them, and that requests obey within seconds."""

from __future__ import annotations

import time
from typing import Any

import openai
import pytest
from tests.gateway.limited import (
    OWN,
    Tenant,
    code,
    complete,
    create_tenant,
    project_of,
    set_limit,
)
from tests.gateway.site import Site

# of what every worker does with a change
EFFECTIVE_S = 5.0


@pytest.fixture
def site(lasting_site: Site) -> Site:
    """One server for all: each test has a tenant of its own."""
    return lasting_site


@pytest.fixture
def tenant(site: Site) -> Tenant:
    return create_tenant(site)


@pytest.fixture
def acme(tenant: Tenant) -> str:
    """The tenant's key."""
    return tenant.key


@pytest.fixture
def admin(tenant: Tenant) -> str:
    """The tenant's admin key."""
    return tenant.admin


def wait_for_status(site: Site, key: str, status: int) -> Any:
    deadline_s = time.monotonic() + EFFECTIVE_S
    while (answer := complete(site, key)).status_code != status:
        assert time.monotonic() < deadline_s, answer.text
        time.sleep(0.1)
    return answer


def test_a_changed_limit_holds_within_seconds(site: Site, acme: str, tenant: Tenant) -> None:
    assert complete(site, acme).status_code == 200
    path = f"{tenant.path}/limits"
    limit = set_limit(site, site.operator_key, path, "tenant", None, requests_per_minute=1)
    assert limit.status_code == 200, limit.text
    assert limit.json()["subject"]["id"] == limit.json()["tenant_id"]
    refused = wait_for_status(site, acme, 429)
    assert refused.headers["x-ratelimit-limit-requests"] == "1"
    # what is left out has no limit of its own: the default holds
    assert int(refused.headers["x-ratelimit-limit-tokens"]) > 1_000_000
    again = set_limit(site, site.operator_key, path, "tenant", None, requests_per_minute=1000)
    assert again.json()["id"] == limit.json()["id"]
    wait_for_status(site, acme, 200)
    assert [row["requests_per_minute"] for row in site.operator("GET", path).json()["data"]] == [
        1000
    ]
    site.operator("DELETE", f"{path}/{limit.json()['id']}").raise_for_status()
    assert site.operator("GET", path).json()["data"] == []


@pytest.mark.parametrize("kind", ["project", "key", "adapter"])
def test_every_kind_of_subject_can_be_limited(
    site: Site, acme: str, admin: str, kind: str, lora: Any
) -> None:
    body = {}
    name = project_of(site, admin)
    if kind == "key":
        name = acme.split("_")[2]
    elif kind == "adapter":
        site.create_adapter(acme, "bot")
        site.upload(acme, "bot", lora()).raise_for_status()
        name, body = "bot", {"model": "bot@v1"}
    answer = set_limit(site, admin, f"{OWN}/limits", kind, name, requests_per_minute=1)
    assert answer.status_code == 200, answer.text
    statuses = [complete(site, acme, **body).status_code for _ in range(2)]
    assert statuses == [200, 429]
    if kind == "adapter":
        assert complete(site, acme).status_code == 200  # the base is another model


def test_the_openai_sdk_sets_rate_limits_of_a_projects_models(
    site: Site, acme: str, admin: str
) -> None:
    project = project_of(site, admin)
    with openai.OpenAI(
        api_key="none", admin_api_key=admin, base_url=f"{site.url}/v1", max_retries=0
    ) as sdk:
        limits = sdk.admin.organization.projects.rate_limits
        made = limits.update_rate_limit("rl-tiny", project_id=project, max_requests_per_1_minute=2)
        assert (made.id, made.model, made.max_requests_per_1_minute) == ("rl-tiny", "tiny", 2)
        limits.update_rate_limit("rl-tiny", project_id=project, max_tokens_per_1_minute=500)
        limits.update_rate_limit("rl-a/b", project_id=project, max_tokens_per_1_minute=1)
        found = {each.model: each for each in limits.list_rate_limits(project)}
        assert set(found) == {"tiny", "a/b"}
        assert found["tiny"].max_requests_per_1_minute == 2
        assert found["tiny"].max_tokens_per_1_minute == 500
        with pytest.raises(openai.NotFoundError):
            limits.list_rate_limits("proj_of_nobody")
    assert [complete(site, acme).status_code for _ in range(3)] == [200, 200, 429]


def test_what_a_tenant_may_use_in_all_is_the_operators(
    site: Site, acme: str, admin: str, tenant: Tenant
) -> None:
    operator, limits, budgets = site.operator_key, f"{OWN}/limits", f"{OWN}/budgets"
    assert code(set_limit(site, admin, limits, "tenant", None, max_running=1)) == (
        403, "insufficient_permissions",
    )  # fmt: skip
    assert set_limit(site, admin, limits, "base", "tiny", max_running=1).status_code == 403
    made = set_limit(site, operator, f"{tenant.path}/limits", "tenant", None, max_running=9).json()
    assert site.call(admin, "DELETE", f"{limits}/{made['id']}").status_code == 403
    budget = {"subject": {"kind": "tenant"}, "period": "month", "limit_usd": "5"}
    assert site.call(admin, "POST", budgets, json=budget).status_code == 403
    made = site.operator("POST", f"{tenant.path}/budgets", json=budget).json()
    assert site.call(admin, "GET", f"{budgets}/{made['id']}").json() == made
    for method, body in (("POST", {"limit_usd": 10}), ("DELETE", None)):
        answer = site.call(admin, method, f"{budgets}/{made['id']}", json=body)
        assert answer.status_code == 403
    # a project's key administers nothing
    assert site.call(acme, "GET", limits).status_code == 403


def test_of_another_tenants_there_is_nothing(site: Site, admin: str, tenant: Tenant) -> None:
    other = create_tenant(site)
    theirs = project_of(site, other.admin)
    made = set_limit(site, other.admin, f"{OWN}/limits", "project", theirs, max_running=1).json()
    body = {"subject": {"kind": "project", "id": theirs}, "period": "day", "limit_usd": 1}
    budget = site.call(other.admin, "POST", f"{OWN}/budgets", json=body).json()
    for subject in (("project", theirs), ("key", other.key.split("_")[2]), ("adapter", "nothing")):
        answer = set_limit(site, admin, f"{OWN}/limits", *subject, max_running=1)
        assert code(answer) == (404, "not_found")
    for path in (f"limits/{made['id']}", f"budgets/{budget['id']}"):
        assert code(site.call(admin, "DELETE", f"{OWN}/{path}")) == (404, "not_found")
        assert code(site.operator("DELETE", f"{tenant.path}/{path}")) == (404, "not_found")
    assert site.call(admin, "GET", f"{OWN}/limits").json()["data"] == []
    assert site.operator("GET", "/admin/v1/budgets").json()["data"] == []


IN_ACME = {"subject": {"kind": "tenant"}}
BAD_LIMITS: list[dict[str, Any]] = [
    IN_ACME,
    IN_ACME | {"max_running": -1},
    IN_ACME | {"max_running": 2**53 + 1},
    IN_ACME | {"max_running": 1.5},
    IN_ACME | {"max_running": 1, "model": "x"},
    {"subject": {"kind": "project", "id": "default"}, "max_adapters": 1},
    {"subject": {"kind": "project"}, "max_running": 1},
    {"subject": {"kind": "base", "id": "tiny"}, "max_running": 1},
    {"subject": {"kind": "planet", "id": "x"}, "max_running": 1},
    IN_ACME | {"max_running": 1, "tenant_id": "x"},
]
BAD_BUDGETS: list[dict[str, Any]] = [
    IN_ACME | {"period": "year", "limit_usd": 1},
    IN_ACME | {"period": "day", "limit_usd": -1},
    IN_ACME | {"period": "day", "limit_usd": "1e-13"},
    IN_ACME | {"period": "day", "limit_usd": "NaN"},
    IN_ACME | {"period": "day", "limit_usd": 10**10},
    IN_ACME | {"period": "day", "limit_usd": True},
]


def test_what_makes_no_sense_is_refused(site: Site, tenant: Tenant) -> None:
    for path, method, bodies in (("limits", "PUT", BAD_LIMITS), ("budgets", "POST", BAD_BUDGETS)):
        for body in bodies:
            answer = site.operator(method, f"{tenant.path}/{path}", json=body)
            assert answer.status_code == 400, (body, answer.text)
        assert site.operator("GET", f"{tenant.path}/{path}").json()["data"] == []


def test_a_tenants_own_quota_holds_in_place_of_the_default(
    site: Site, acme: str, lora: Any, tenant: Tenant
) -> None:
    set_limit(
        site, site.operator_key, f"{tenant.path}/limits", "tenant", None,
        max_adapters=1, max_versions=1,
    ).raise_for_status()  # fmt: skip
    site.create_adapter(acme, "bot")
    body = {"name": "another", "base_model": "tiny"}
    refused = site.call(acme, "POST", "/v1/adapters", json=body)
    assert code(refused) == (429, "insufficient_quota")
    site.upload(acme, "bot", lora()).raise_for_status()
    assert code(site.upload(acme, "bot", lora(seed=1))) == (429, "insufficient_quota")
    # and another tenant has its default
    other = create_tenant(site)
    for name in ("bot", "another"):
        site.create_adapter(other.key, name)


def test_every_change_is_told_to_the_audit_trail(site: Site, acme: str, admin: str) -> None:
    made = set_limit(site, admin, f"{OWN}/limits", "project", "default", max_running=3).json()
    set_limit(site, admin, f"{OWN}/limits", "project", "default", max_running=4)
    site.call(admin, "DELETE", f"{OWN}/limits/{made['id']}")
    body = {"subject": {"kind": "project", "id": "default"}, "period": "day", "limit_usd": 2.5}
    budget = site.call(admin, "POST", f"{OWN}/budgets", json=body).json()
    assert budget["limit_usd"] == "2.5"
    site.call(admin, "POST", f"{OWN}/budgets/{budget['id']}", json={"limit_usd": 3})
    site.call(admin, "DELETE", f"{OWN}/budgets/{budget['id']}")
    entries = site.call(admin, "GET", f"{OWN}/audit_logs").json()["data"]
    told = [entry["type"] for entry in reversed(entries) if "key" not in entry["type"]]
    assert told[-6:] == [
        "rate_limit.created", "rate_limit.updated", "rate_limit.deleted",
        "budget.created", "budget.updated", "budget.deleted",
    ]  # fmt: skip
