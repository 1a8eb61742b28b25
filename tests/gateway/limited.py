"""A tenant with an administrator, and what tests of limits and budgets ask for."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from tests.gateway.site import Site

BODY = {"model": "tiny", "prompt": "hey", "max_tokens": 3}
OWN = "/v1/organization"
_names = (f"limited-{number}" for number in itertools.count())


@dataclass(frozen=True)
class Tenant:
    """A tenant's name, a key of its default project, and an admin key."""

    name: str
    key: str
    admin: str

    @property
    def path(self) -> str:
        """Where the operator administers it."""
        return f"/admin/v1/tenants/{self.name}"


def create_tenant(site: Site) -> Tenant:
    name = next(_names)
    key = site.tenant(name)
    path = f"/admin/v1/tenants/{name}/admin_api_keys"
    answer = site.operator("POST", path, json={"name": "admin"})
    return Tenant(name, key, str(answer.raise_for_status().json()["value"]))


def complete(site: Site, key: str, **body: Any) -> Any:
    return site.call(key, "POST", "/v1/completions", json=BODY | body)


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def project_of(site: Site, admin: str) -> str:
    (project,) = site.call(admin, "GET", f"{OWN}/projects").json()["data"]
    return str(project["id"])


def set_limit(site: Site, key: str, path: str, kind: str, name: str | None, **limits: int) -> Any:
    body: dict[str, Any] = {"subject": {"kind": kind}, **limits}
    if name is not None:
        body["subject"]["id"] = name
    return site.call(key, "PUT", path, json=body)
