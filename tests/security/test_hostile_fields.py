"""Fields that nobody may set, and strings that mean something elsewhere, over every operation that
the API describes (attacks 12 and 45)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.gateway.site import Site
from tests.security.world import Tenant, create_tenant, example, headers_for

SQL = ("' OR '1'='1", "x'; DROP TABLE tenants;--", "%", "_", '"', "\\", "id desc", "$.a", "ﬁ\u202e")


@dataclass(frozen=True)
class Described:
    """An operation of the OpenAPI document."""

    method: str
    path: str
    operation: dict[str, Any]

    def target(self, value: str = "x") -> str:
        path = self.path
        for parameter in self.operation.get("parameters", ()):
            if parameter["in"] == "path":
                is_number = parameter["schema"].get("type") == "integer"
                path = path.replace(f"{{{parameter['name']}}}", "1" if is_number else value)
        return path


@pytest.fixture(scope="module")
def tenant(site: Site) -> Iterator[Tenant]:
    tenant = create_tenant(site, "forger")
    yield tenant
    tenant.browser.close()


@pytest.fixture(scope="module")
def document(site: Site) -> Any:
    return site.http.get("/openapi.json").json()


@pytest.fixture(scope="module")
def described(document: Any) -> list[Described]:
    return [
        Described(method.upper(), path, operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]


def test_12_no_body_takes_a_field_that_it_does_not_know(
    site: Site, tenant: Tenant, described: list[Described], document: Any
) -> None:
    faults, num_bodies = [], 0
    for each in described:
        content = each.operation.get("requestBody", {}).get("content", {})
        if "application/json" not in content:
            continue
        num_bodies += 1
        body = example(content["application/json"]["schema"], document)
        for field in ("tenant_id", "is_operator", "created_at"):
            answer = site.http.request(
                each.method,
                each.target(),
                json={**body, field: "x"},
                headers=headers_for(site, tenant, each.path, each.operation),
            )
            # LoRAX says 422 where we say 400
            if answer.status_code not in (400, 422) or f"'{field}'" not in answer.text:
                faults.append(f"{each.method} {each.path} {field}: {answer.text}")
    assert not faults, "\n".join(faults)
    assert num_bodies > 20


def test_45_no_string_of_a_path_or_a_query_is_more_than_a_value(
    site: Site, tenant: Tenant, described: list[Described]
) -> None:
    faults = []
    for each in described:
        if each.method != "GET" or each.path == "/metrics":
            continue
        headers = headers_for(site, tenant, each.path, each.operation)
        names = [p["name"] for p in each.operation.get("parameters", ()) if p["in"] == "query"]
        for value in SQL:
            params = dict.fromkeys(names, value)
            if "{" in each.path:
                target = each.target(value.replace("%", "%25").replace("\\", "%5C"))
                answer = site.http.get(target, headers=headers)
                if answer.status_code not in (400, 401, 403, 404):
                    faults.append(f"{target}: {answer.status_code} {answer.text[:200]}")
            for name in names:
                answer = site.http.get(each.target(), headers=headers, params={name: params[name]})
                if answer.status_code >= 500:
                    faults.append(f"{each.path} {name}={value}: {answer.text[:200]}")
    assert not faults, "\n".join(faults)
    assert site.operator("GET", "/admin/v1/tenants/forger").status_code == 200
