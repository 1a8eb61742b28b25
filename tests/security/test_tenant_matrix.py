"""One tenant on everything of another's, over every operation that the API describes (attack 1)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi.routing import APIRoute, iter_route_contexts
from tests.gateway.site import Site
from tests.security.world import Tenant, create_tenant, example

from weft.tenancy.auth import AUTH_MARK

PARAMETER = re.compile(r"/([a-z_]+)/\{([a-z_]+)(?::path)?\}")
# what a body has to hold besides what its schema requires, so that the id is looked for at all
BODIES: dict[str, dict[str, object]] = {
    "/v1/adapters/{name}/versions": {
        "source": {"type": "huggingface", "repo": "a/b", "revision": "0" * 40}
    },
    "/v1/adapters/{name}/aliases/{alias}": {"version": 1},
    "/v1/organization/users/{user_id}": {"role": "developer"},
    "/v1/organization/projects/{project_id}/rate_limits/{rate_limit_id:path}": {
        "max_requests_per_1_minute": 1
    },
}
# numbers and names that mean something behind an id only
LOCAL = frozenset({"versions", "aliases", "rate_limits"})
# where a provider sends browsers back to: of no tenant, and `gateway/test_oidc.py`'s to test
NOBODYS = "/auth/v1/oidc/{provider_id}/callback"


@dataclass(frozen=True)
class Operation:
    """A route with ids in its path."""

    method: str
    path: str
    audience: str
    schema: Any

    @property
    def collections(self) -> list[str]:
        return [collection for collection, _ in PARAMETER.findall(self.path)]

    def fill(self, ids: dict[str, str]) -> str:
        return PARAMETER.sub(lambda match: f"/{match[1]}/{ids[match[1]]}", self.path)


@pytest.fixture(scope="module")
def tenants(site: Site) -> Iterator[tuple[Tenant, Tenant]]:
    """(the attacker, the attacked)"""
    pair = create_tenant(site, "nosy"), create_tenant(site, "victim")
    yield pair
    for tenant in pair:
        tenant.browser.close()


@pytest.fixture(scope="module")
def document(site: Site) -> Any:
    return site.http.get("/openapi.json").json()


@pytest.fixture(scope="module")
def operations(site: Site, document: Any) -> list[Operation]:
    found = []
    for context in iter_route_contexts(site.app.routes):
        route = context.original_route
        assert isinstance(route, APIRoute)
        (mark,) = (
            getattr(dependency.call, AUTH_MARK)
            for dependency in route.dependant.dependencies
            if hasattr(dependency.call, AUTH_MARK)
        )
        for method in route.methods or ():
            operation = document["paths"].get(route.path_format, {}).get(method.lower(), {})
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            if PARAMETER.search(route.path) and route.path != NOBODYS:
                found.append(Operation(method, route.path, mark.audience, body.get("schema")))
    return found


def another(value: str) -> str:
    """An id of the same form that is nobody's."""
    return value if value.isdecimal() else value[:-5] + "zzzzz"


def send(
    site: Site, tenant: Tenant, operation: Operation, path: str, document: Any
) -> tuple[int, str, dict[str, str]]:
    kwargs: dict[str, Any] = {}
    known = BODIES.get(operation.path)
    if known is not None or operation.schema is not None:
        made = {} if operation.schema is None else example(operation.schema, document)
        kwargs["json"] = {**made, **(known or {})}
    elif operation.path.endswith("/parts"):
        kwargs["files"] = {"data": b"12345"}
    headers = tenant.headers(operation.audience)
    answer = site.http.request(operation.method, path, headers=headers, **kwargs)
    told = {
        name: value
        for name, value in answer.headers.items()
        if name not in ("x-request-id", "openai-processing-ms", "date", "content-length")
        and not name.startswith("x-ratelimit-")
    }
    return answer.status_code, answer.text, told


def test_01_every_collection_of_the_api_is_in_the_matrix(
    tenants: tuple[Tenant, Tenant], operations: list[Operation]
) -> None:
    """A new route with an id in its path needs one of a tenant's in `world.py`."""
    used = {name for operation in operations for name in operation.collections}
    assert used <= set(tenants[1].ids), used - set(tenants[1].ids)
    assert len(operations) > 30


def test_01_what_is_anothers_is_as_if_it_were_not_there(
    site: Site, tenants: tuple[Tenant, Tenant], operations: list[Operation], document: Any
) -> None:
    nosy, victim = tenants
    faults = []
    for operation in operations:
        for ids in _ways_in(operation, nosy, victim):
            nobodys = {
                name: another(value) if value == victim.ids[name] else value
                for name, value in ids.items()
            }
            theirs = send(site, nosy, operation, operation.fill(ids), document)
            random = send(site, nosy, operation, operation.fill(nobodys), document)
            expected = 403 if operation.audience == "operator" else 404
            where = f"{operation.method} {operation.fill(ids)}"
            if _masked(theirs, ids) != _masked(random, nobodys):
                faults.append(f"{where}: {theirs} is not {random}")
            elif theirs[0] != expected:
                faults.append(f"{where}: {theirs}")
    assert not faults, "\n".join(faults)


def test_01_nothing_of_the_victims_has_changed(
    site: Site, tenants: tuple[Tenant, Tenant], operations: list[Operation], document: Any
) -> None:
    """The same ids work for whose they are: the matrix looked for what is there."""
    victim = tenants[1]
    for operation in operations:
        if operation.method == "GET" and operation.audience != "operator":
            answer = send(site, victim, operation, operation.fill(victim.ids), document)
            assert answer[0] == 200, (operation, answer)


def _ways_in(operation: Operation, nosy: Tenant, victim: Tenant) -> Iterator[dict[str, str]]:
    """All ids of the victim's; and behind an own one, the victim's."""
    names = operation.collections
    theirs = {name: victim.ids.get(name, "unknown") for name in names}
    yield theirs
    if len(names) > 1 and not set(names[1:]) & LOCAL:
        yield {**theirs, names[0]: nosy.ids.get(names[0], "unknown")}


def _masked(answer: tuple[int, str, dict[str, str]], ids: dict[str, str]) -> Any:
    status, text, headers = answer
    for value in ids.values():
        if not value.isdecimal():
            text = text.replace(value, "ID")
    return status, text, headers
