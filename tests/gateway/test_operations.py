"""Probes, metrics, the operator's routes, and the mark that every route carries."""

from __future__ import annotations

import inspect
import re
import stat
import time
from typing import Any

import openai
import pytest
from fastapi.routing import APIRoute, iter_route_contexts
from prometheus_client.parser import text_string_to_metric_families

from weft.tenancy.auth import AUTH_MARK


def test_readiness_names_the_reason(site: Any) -> None:
    assert site.http.get("/readyz").json() == {"status": "ok"}
    site.engine.not_ready_reason = "The engine is warming up."
    answer = site.http.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["reason"] == "The engine is warming up."
    assert site.http.get("/livez").status_code == 200


def test_metrics_have_vllms_names(site: Any, acme: str) -> None:
    site.client(acme).completions.create(model="tiny", prompt="abc")
    text = site.http.get("/metrics").text
    samples = {
        (s.name, s.labels.get("finished_reason")): s
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }
    for name in (
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:num_preemptions_total",
        "vllm:prefix_cache_queries_total",
        "vllm:prefix_cache_hits_total",
        "vllm:time_to_first_token_seconds_count",
        "vllm:inter_token_latency_seconds_count",
        "vllm:e2e_request_latency_seconds_count",
        "vllm:request_queue_time_seconds_count",
    ):
        assert samples[name, None].labels["model_name"] == "tiny"
    assert samples["vllm:request_success_total", "stop"].value == 1
    assert samples["vllm:e2e_request_latency_seconds_count", None].value == 1
    assert samples["vllm:time_to_first_token_seconds_count", None].value == 1
    assert samples["vllm:kv_cache_usage_perc", None].value == 0.5
    assert samples["weft_adapter_pool_free_pages", None].value == 6
    assert "acme" not in text
    assert "tnt_" not in text


def test_the_operators_timeouts_reach_the_engine(site: Any, acme: str) -> None:
    site.client(acme).completions.create(model="tiny", prompt="abc")
    request = site.engine.requests[-1]
    assert (request.queue_timeout_s, request.timeout_s) == (30.0, 60.0)


def test_the_operator_manages_tenants_and_keys(site: Any) -> None:
    created = site.operator("POST", "/admin/v1/tenants", json={"name": "acme"})
    assert created.status_code == 201
    tenant_id = created.json()["id"]
    assert site.operator("POST", "/admin/v1/tenants", json={"name": "acme"}).status_code == 409
    assert site.operator("POST", "/admin/v1/tenants", json={"name": ""}).status_code == 400
    assert site.operator("GET", f"/admin/v1/tenants/{tenant_id}").json()["name"] == "acme"
    listed = site.operator("GET", "/admin/v1/tenants").json()
    assert [tenant["id"] for tenant in listed["data"]] == [tenant_id]
    key = site.operator("POST", f"/admin/v1/tenants/{tenant_id}/keys", json={"name": "k"}).json()
    assert key["value"].startswith(f"weft_live_{key['id']}_")
    keys = site.operator("GET", f"/admin/v1/tenants/{tenant_id}/keys")
    assert key["value"] not in keys.text
    assert keys.json()["data"][0]["redacted_value"].endswith(key["value"][-4:])
    bad = site.operator("POST", "/admin/v1/tenants/acme/keys", json={"scopes": ["root"]})
    assert bad.json()["error"]["param"] == "scopes"
    past = site.operator("POST", "/admin/v1/tenants/acme/keys", json={"expires_at": 5})
    assert past.status_code == 400
    assert site.operator("DELETE", "/admin/v1/tenants/acme").json()["deleted"] is True
    assert site.operator("GET", "/admin/v1/tenants/acme").status_code == 404
    assert site.operator("POST", "/admin/v1/tenants", json={"name": "acme"}).status_code == 201


def test_the_secret_files_are_only_the_owners(site: Any) -> None:
    for name in ("operator_key", "master_secret"):
        assert stat.S_IMODE((site.settings.data_dir / name).stat().st_mode) == 0o600


# what needs no key: probes, the API's description, and becoming somebody
OPEN_ROUTES = frozenset(
    {
        "/livez",
        "/readyz",
        "/metrics",
        "/openapi.json",
        "/auth/v1/sign-in",
        "/auth/v1/password:reset",
        "/auth/v1/invites:accept",
        "/auth/v1/oidc/start",
        "/auth/v1/oidc/{provider_id}/callback",
    }
)


def test_every_route_says_who_may_call_it(site: Any) -> None:
    num_routes = 0
    for context in iter_route_contexts(site.app.routes):
        route = context.original_route
        assert isinstance(route, APIRoute), f"{route} is no API route"
        marks = {
            getattr(dependency.call, AUTH_MARK)
            for dependency in route.dependant.dependencies
            if hasattr(dependency.call, AUTH_MARK)
        }
        assert len(marks) == 1, f"{route.path} has {len(marks)} auth marks"
        is_open = route.path in OPEN_ROUTES
        (mark,) = marks
        assert (mark.audience == "public") == is_open, route.path
        assert (mark.audience == "operator") == route.path.startswith("/admin/"), route.path
        is_own = route.path.startswith("/auth/") and not is_open
        assert (mark.audience == "person") == is_own, route.path
        assert is_open or is_own or mark.scope or mark.permission, route.path
        num_routes += 1
    assert num_routes > 15


def test_no_dependency_is_called_in_a_thread(site: Any) -> None:
    """FastAPI does so with every function that is no coroutine."""
    routes = [context.original_route for context in iter_route_contexts(site.app.routes)]
    waiting = [route.dependant for route in routes if isinstance(route, APIRoute)]
    seen = set()
    while waiting:
        dependant = waiting.pop()
        call = dependant.call
        assert inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call), call
        seen.add(call)
        waiting += dependant.dependencies
    assert len(seen) > 100


def test_another_organization_or_project_than_the_keys_own_is_refused_everywhere(
    site: Any, acme: str
) -> None:
    tenant = site.operator("GET", "/admin/v1/tenants/acme").json()["id"]
    made = site.operator("POST", "/admin/v1/tenants/acme/admin_api_keys", json={"name": "k"})
    keys = {"operator": site.operator_key, "admin": made.json()["value"]}
    num_routes = 0
    for context in iter_route_contexts(site.app.routes):
        route = context.original_route
        assert isinstance(route, APIRoute)
        (mark,) = (
            getattr(dependency.call, AUTH_MARK)
            for dependency in route.dependant.dependencies
            if hasattr(dependency.call, AUTH_MARK)
        )
        if mark.audience in ("public", "person"):
            continue
        method = next(iter(route.methods or ()))
        path = re.sub(r"\{[^}]+\}", "1", route.path)
        for what in ("organization", "project"):
            headers = {f"OpenAI-{what.title()}": "another"}
            answer = site.call(keys.get(mark.audience, acme), method, path, headers=headers)
            assert answer.status_code == 401, f"{method} {path}: {answer.text}"
            assert f"should match {what}" in answer.text
        num_routes += 1
    assert num_routes > 80
    own = {"OpenAI-Organization": tenant}
    assert site.call(keys["admin"], "GET", "/v1/organization/projects", headers=own).is_success
    assert site.call(acme, "GET", "/v1/models", headers={**own, "OpenAI-Project": ""}).is_success


def test_the_openai_clients_organization_and_project_are_checked(site: Any, acme: str) -> None:
    tenant = site.operator("GET", "/admin/v1/tenants/acme").json()["id"]
    key = site.operator("POST", "/admin/v1/tenants/acme/keys", json={}).json()
    client, project = site.client(key["value"]), key["project_id"]
    own = client.with_options(organization=tenant, project=project)
    assert own.models.list().data
    with pytest.raises(openai.AuthenticationError) as caught:
        client.with_options(organization="org-another").models.list()
    assert caught.value.code == "mismatched_organization"
    with pytest.raises(openai.AuthenticationError) as caught:
        client.with_options(organization=tenant, project="proj_another").models.list()
    assert caught.value.code == "mismatched_project"


def test_the_api_describes_itself(site: Any) -> None:
    paths = site.http.get("/openapi.json").json()["paths"]
    assert "/v1/chat/completions" in paths


def test_a_host_header_does_not_change_the_decision(site: Any, acme: str) -> None:
    for host in ("x/?", "x#", "admin"):
        answer = site.call(acme, "GET", "/admin/v1/tenants", headers={"host": host})
        assert answer.status_code in (400, 403)
    for path in ("//v1/models", "/v1/../admin/v1/tenants", "/V1/models", "/v1/models;x"):
        assert site.http.get(path).status_code in (401, 404)


def test_answers_are_not_held_back_by_nagles_algorithm(site: Any) -> None:
    times = []
    for _ in range(10):
        started_s = time.monotonic()
        site.http.get("/livez")
        times.append(time.monotonic() - started_s)
    assert min(times) < 0.03  # with it on, every one takes 40 ms
