"""Two tenants with everything that a tenant can have, and an operator: whom attacks are between."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2
from tests.gateway.site import Site
from tests.tiny import create_lora

from weft.billing.models import InvoiceRow
from weft.billing.statement import Issuer
from weft.db.database import Database
from weft.db.urls import sqlite_url

PASSWORD = "correct horse battery staple"

# what a schema says by a pattern, which `example` does not read
NAMED = {"billing_period": "2026-01"}


@dataclass
class Tenant:
    """A project's key and a person who administers. `ids` says, by the collection in a path, what
    is there of the tenant's."""

    name: str
    id: str
    key: str
    browser: httpx2.Client
    ids: dict[str, str] = field(default_factory=dict)

    def headers(self, audience: str) -> dict[str, str]:
        """Of whoever of the tenant a route is for; the operator's routes get the administrator."""
        if audience in ("key", "public"):
            return {"authorization": f"Bearer {self.key}"}
        cookies = "; ".join(f"{name}={value}" for name, value in self.browser.cookies.items())
        return {
            "cookie": cookies,
            "origin": str(self.browser.base_url).rstrip("/"),
            "x-csrf-token": self.browser.cookies["weft_csrf"],
        }


def create_tenant(site: Site, name: str) -> Tenant:
    """A tenant with one of everything."""
    key = site.tenant(name)
    tenant_id = str(site.operator("GET", f"/admin/v1/tenants/{name}").json()["id"])
    browser = _sign_in(site, name)
    tenant = Tenant(name, tenant_id, key, browser)
    adapter = f"{name}-bot"
    site.create_adapter(key, adapter)
    site.upload(key, adapter, create_lora(1)).raise_for_status()
    alias = f"/v1/adapters/{adapter}/aliases/{name}-prod"
    site.call(key, "PUT", alias, json={"version": 1}).raise_for_status()
    body: dict[str, object] = {
        "purpose": "adapter", "filename": "README.md", "bytes": 5, "mime_type": "text/markdown"
    }  # fmt: skip
    upload = site.call(key, "POST", "/v1/uploads", json=body)
    upload.raise_for_status()
    admin = tenant.headers("admin")
    invite = browser.post(
        "/v1/organization/invites",
        json={"email": f"new@{name}.example", "role": "developer"},
        headers=admin,
    )
    invite.raise_for_status()
    session = browser.get("/auth/v1/sessions", headers=admin).json()["data"][0]
    made = {
        collection: browser.post(f"/v1/organization/{path}", json={"name": "made"}, headers=admin)
        for collection, path in (("projects", "projects"), ("admin_api_keys", "admin_api_keys"))
    }
    project = made["projects"].json()["id"]
    project_keys = f"/v1/organization/projects/{project}/api_keys"
    project_key = browser.post(project_keys, json={"name": "made"}, headers=admin)
    project_key.raise_for_status()
    subject = {"subject": {"kind": "project", "id": project}}
    limit = browser.put(
        "/v1/organization/limits", json={**subject, "max_running": 50}, headers=admin
    )
    limit.raise_for_status()
    budget = browser.post(
        "/v1/organization/budgets",
        json={**subject, "period": "month", "limit_usd": 5},
        headers=admin,
    )
    budget.raise_for_status()
    tenant.ids = {
        "adapters": adapter,
        "versions": "1",
        "aliases": f"{name}-prod",
        "models": adapter,
        "uploads": upload.json()["id"],
        "invites": invite.json()["id"],
        "users": browser.get("/auth/v1/session", headers=admin).json()["user"]["id"],
        "sessions": session["id"],
        "keys": key.split("_")[2],
        "projects": project,
        "api_keys": project_key.json()["id"],
        "admin_api_keys": made["admin_api_keys"].json()["id"],
        "invoices": asyncio.run(_add_invoice(site, tenant_id)),
        "billing_periods": "2026-01",
        "limits": limit.json()["id"],
        "budgets": budget.json()["id"],
        "rate_limits": f"rl-{name}",
        "operator_keys": site.operator_key.split("_")[2],
        "oidc_providers": f"oidc_of_{name}",
        "domains": f"{name}.example",
        "tenants": tenant_id,
    }
    return tenant


async def _add_invoice(site: Site, tenant_id: str) -> str:
    """An invoice of a month long ago: none is issued over HTTP before its month is over."""
    invoice = InvoiceRow(
        id=f"inv_2026-01_{tenant_id}",
        tenant_id=tenant_id,
        month="2026-01",
        tenant_name="x",
        issuer=dataclasses.asdict(Issuer()),
        issued_at=1,
        due_at=2,
        payable_pico=0,
    )
    database = Database(sqlite_url(site.settings.database_file))
    async with database.writing() as session:
        session.add(invoice)
    await database.close()
    return invoice.id


def _sign_in(site: Site, name: str) -> httpx2.Client:
    """A browser in which the tenant's administrator is signed in."""
    invite = site.operator(
        "POST",
        f"/admin/v1/tenants/{name}/invites",
        json={"email": f"admin@{name}.example", "role": "tenant-admin"},
    )
    invite.raise_for_status()
    browser = httpx2.Client(base_url=site.url, timeout=20.0, headers={"origin": site.url})
    for path, body in (
        ("/auth/v1/invites:accept", {"token": invite.json()["token"], "name": name}),
        ("/auth/v1/sign-in", {"email": f"admin@{name}.example"}),
    ):
        browser.post(path, json={**body, "password": PASSWORD}).raise_for_status()
    return browser


def headers_for(
    site: Site, tenant: Tenant, path: str, operation: Mapping[str, Any]
) -> dict[str, str]:
    """Of whoever an operation of the OpenAPI document is for."""
    if path.startswith("/admin/"):
        return {"authorization": f"Bearer {site.operator_key}"}
    demanded = operation.get("security", [])
    if not demanded:
        return {"origin": site.url}
    return tenant.headers("key" if demanded == [{"key": []}] else "admin")


def example(schema: Mapping[str, Any], document: Mapping[str, Any]) -> Any:
    """A value that the schema allows, as small as can be."""
    if "$ref" in schema:
        found: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        return example(found, document)
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return example(schema[several][0], document)
    if "const" in schema or "enum" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    kind = schema.get("type", "object")
    if kind == "object":
        required, known = schema.get("required", ()), schema.get("properties", {})
        return {name: NAMED.get(name) or example(known[name], document) for name in required}
    if kind == "array":
        return [example(schema["items"], document)] * schema.get("minItems", 0)
    if kind == "string":
        return "1" * max(schema.get("minLength", 0), 1)
    if kind == "integer":
        return int(schema.get("minimum", 1))
    return {"number": 1.0, "boolean": False}.get(kind)
