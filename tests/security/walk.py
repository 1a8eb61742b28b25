"""Every write of the API, done once in an order in which each has what it needs."""

from __future__ import annotations

import re
import time
from typing import Any

import httpx2
from tests.gateway.site import Site
from tests.security.world import Tenant, headers_for
from tests.tiny import create_lora

from weft.messages import AdapterPlacement

PASSWORD = "correct horse battery staple"
LAST_MONTH = time.strftime("%Y-%m", time.gmtime(time.time() - 35 * 86_400))
PARAMETER = re.compile(r"/([a-z_]+)/\{[a-z_]+\}")
TENANT, BASE = {"kind": "tenant"}, {"kind": "base", "id": "tiny"}
PROJECT = {"kind": "project", "id": "default"}
BUDGET = {"subject": TENANT, "period": "month", "limit_usd": "1"}
OIDC_SECRET = "canary-oidc-secret-1c9e"
_DOMAINS = "/admin/v1/oidc_providers/{provider_id}/domains"

# (method, path, body): each is done once, in this order; `$name` is what the answer before it gave
STEPS: list[tuple[str, str, Any]] = [
    ("POST", "/admin/v1/tenants/{tenant}/invites", {"email": "a@x.example", "role": "developer"}),
    ("POST", "/auth/v1/invites:accept", {"token": "$token", "name": "A", "password": PASSWORD}),
    ("POST", "/v1/organization/users/{user_id}", {"role": "billing"}),
    ("DELETE", "/v1/organization/users/{user_id}", None),
    ("POST", "/v1/organization/invites", {"email": "b@x.example", "role": "developer"}),
    ("DELETE", "/v1/organization/invites/{invite_id}", None),
    ("POST", "/v1/organization/projects", {"name": "p"}),
    ("POST", "/v1/organization/projects/{project_id}", {"name": "q"}),
    ("POST", "/v1/organization/projects/{project_id}/api_keys", {"name": "k"}),
    ("POST", "/v1/organization/projects/{project_id}/api_keys/{key_id}", {"name": "l"}),
    ("POST", "/v1/organization/projects/{project_id}/api_keys/{key_id}:rotate", {}),
    ("DELETE", "/v1/organization/projects/{project_id}/api_keys/{key_id}", None),
    (
        "POST",
        "/v1/organization/projects/{project_id}/rate_limits/{rate_limit_id}",
        {"max_requests_per_1_minute": 5},
    ),
    ("POST", "/v1/organization/projects/{project_id}/archive", None),
    ("PUT", "/v1/organization/limits", {"subject": PROJECT, "requests_per_minute": 9}),
    ("DELETE", "/v1/organization/limits/{limit_id}", None),
    ("POST", "/v1/organization/budgets", {**BUDGET, "subject": PROJECT}),
    ("POST", "/v1/organization/budgets/{budget_id}", {"limit_usd": "2"}),
    ("DELETE", "/v1/organization/budgets/{budget_id}", None),
    ("POST", "/v1/organization/admin_api_keys", {"name": "k"}),
    ("POST", "/v1/organization/admin_api_keys/{key_id}", {"name": "l"}),
    ("POST", "/v1/organization/admin_api_keys/{key_id}:rotate", {}),
    ("DELETE", "/v1/organization/admin_api_keys/{key_id}", None),
    ("POST", "/v1/adapters", {"name": "box", "base_model": "tiny"}),
    ("POST", "/v1/adapters/{name}/versions", create_lora(7)),
    ("PUT", "/v1/adapters/{name}/aliases/{alias}", {"version": 1}),
    ("DELETE", "/v1/adapters/{name}/aliases/{alias}", None),
    ("POST", "/v1/load_lora_adapter", {"lora_name": "box@vllm", "lora_path": "box@v1"}),
    ("DELETE", "/v1/adapters/{name}/aliases/{alias}", "vllm"),
    ("POST", "/v1/unload_lora_adapter", {"lora_name": "box@v1"}),
    ("POST", "/v1/adapters/{name}/versions/{number}:load", None),
    ("POST", "/v1/adapters/{name}/versions/{number}:unload", None),
    ("POST", "/v1/adapters/{name}/versions/{number}:pin", None),
    ("POST", "/v1/adapters/{name}/versions/{number}:unpin", None),
    ("DELETE", "/v1/adapters/{name}/aliases/{alias}", "default"),
    ("DELETE", "/v1/adapters/{name}/versions/{number}", None),
    ("DELETE", "/v1/adapters/{name}", None),
    ("POST", "/v1/uploads", {"purpose": "adapter", "filename": "README.md", "bytes": 5}),
    ("POST", "/v1/uploads/{upload_id}/parts", {"data": b"12345"}),
    ("POST", "/v1/uploads/{upload_id}/complete", {"part_ids": ["$id"]}),
    ("POST", "/v1/uploads", {"purpose": "adapter", "filename": "README.md", "bytes": 5}),
    ("POST", "/v1/uploads/{upload_id}/cancel", None),
    ("POST", "/admin/v1/operator_keys", {"name": "k"}),
    ("POST", "/admin/v1/operator_keys/{key_id}", {"name": "l"}),
    ("POST", "/admin/v1/operator_keys/{key_id}:rotate", {}),
    ("DELETE", "/admin/v1/operator_keys/{key_id}", None),
    ("POST", "/admin/v1/users", {"email": "d@x.example", "is_operator": True}),
    ("POST", "/auth/v1/password:reset", {"token": "$reset_token", "new_password": PASSWORD}),
    ("POST", "/admin/v1/users", {"email": "c@x.example", "is_operator": True}),
    ("POST", "/auth/v1/password:reset", {"token": "$reset_token", "new_password": PASSWORD}),
    ("POST", "/admin/v1/users/{user}:reset_password", None),
    ("POST", "/admin/v1/users/{user}:sign_out", None),
    ("POST", "/admin/v1/users/{user}:disable", None),
    ("POST", "/admin/v1/users/{user}:enable", None),
    ("PUT", "/admin/v1/limits", {"subject": BASE, "requests_per_minute": 9}),
    ("DELETE", "/admin/v1/limits/{limit_id}", None),
    ("POST", "/admin/v1/budgets", {**BUDGET, "subject": BASE}),
    ("POST", "/admin/v1/budgets/{budget_id}", {"limit_usd": "2"}),
    ("DELETE", "/admin/v1/budgets/{budget_id}", None),
    ("PUT", "/admin/v1/tenants/{tenant}/limits", {"subject": TENANT, "requests_per_minute": 9}),
    ("DELETE", "/admin/v1/tenants/{tenant}/limits/{limit_id}", None),
    ("POST", "/admin/v1/tenants/{tenant}/budgets", BUDGET),
    ("POST", "/admin/v1/tenants/{tenant}/budgets/{budget_id}", {"limit_usd": "2"}),
    ("DELETE", "/admin/v1/tenants/{tenant}/budgets/{budget_id}", None),
    (
        "POST",
        "/admin/v1/oidc_providers",
        {"issuer": "$issuer", "client_id": "weft", "client_secret": OIDC_SECRET},
    ),
    ("POST", "/admin/v1/oidc_providers/{provider_id}", {"name": "id"}),
    ("PUT", f"{_DOMAINS}/{{domain}}", {"tenant": "walker"}),
    ("DELETE", f"{_DOMAINS}/{{domain}}", None),
    ("DELETE", "/admin/v1/oidc_providers/{provider_id}", None),
    ("POST", "/admin/v1/adapters:purge", {}),
    ("PUT", "/admin/v1/billing_issuer", {"name": "Weft"}),
    (
        "POST",
        "/admin/v1/price_books",
        {"name": "b", "prices": [{"base_model": "tiny", "input": "1", "output": "2"}]},
    ),
    ("POST", "/admin/v1/exports", {"tenant": "walker", "billing_period": "2026-01"}),
    ("POST", "/admin/v1/billing_periods/{period}:close", None),
    ("POST", "/auth/v1/password", {"current_password": PASSWORD, "new_password": PASSWORD + "!"}),
    ("POST", "/auth/v1/session", {"tenant": "walker"}),
    ("POST", "/auth/v1/sign-in", {"email": "admin@walker.example", "password": PASSWORD + "!"}),
    ("DELETE", "/auth/v1/sessions/{session_id}", None),
    ("POST", "/auth/v1/sign-in", {"email": "admin@walker.example", "password": PASSWORD + "!"}),
    ("POST", "/auth/v1/sign-out", None),
    ("POST", "/auth/v1/sign-in", {"email": "admin@walker.example", "password": PASSWORD + "!"}),
    ("POST", "/auth/v1/sign-out-everywhere", None),
    ("POST", "/admin/v1/tenants", {"name": "other"}),
    ("POST", "/admin/v1/tenants/{tenant}/keys", {"name": "k"}),
    ("DELETE", "/admin/v1/tenants/{tenant}/keys/{key_id}", None),
    ("POST", "/admin/v1/tenants/{tenant}/admin_api_keys", {"name": "k"}),
    ("DELETE", "/admin/v1/tenants/{tenant}/admin_api_keys/{key_id}", None),
    ("POST", "/admin/v1/tenants/{tenant}", {"include_obfuscation": True}),
    ("POST", "/admin/v1/tenants/{tenant}:suspend", {}),
    ("POST", "/admin/v1/tenants/{tenant}:resume", {}),
    ("DELETE", "/admin/v1/tenants/{tenant}", None),
]


class Walk:
    """Goes through the steps as whoever each is for, and remembers the ids that it is given."""

    def __init__(self, site: Site, tenant: Tenant, document: Any, issuer: str) -> None:
        self.site, self.tenant, self.document = site, tenant, document
        self.issuer = issuer
        self.ids = {**tenant.ids, "oidc_providers": "", "domains": "walker.example", "limits": ""}
        self.given: dict[str, Any] = {}
        self.answers: list[str] = []

    def take(self, method: str, path: str, body: Any) -> Any:
        operation = self.document["paths"][path][method.lower()]
        headers = headers_for(self.site, self.tenant, path, operation)
        kwargs: dict[str, Any] = {}
        if isinstance(body, str):
            self.ids["aliases"] = body
        elif body is not None and any(isinstance(value, bytes) for value in body.values()):
            kwargs["files"] = [(name, (name, data)) for name, data in body.items()]
        elif body is not None:
            kwargs["json"] = {name: self._filled(value) for name, value in body.items()}
        self._prepare(path, kwargs)
        target = PARAMETER.sub(lambda match: f"/{match[1]}/{self.ids[match[1]]}", path)
        headers.pop("cookie", None)  # the browser has its own
        client = self.tenant.browser if "x-csrf-token" in headers else self.site.http
        if path == "/auth/v1/sign-in":
            client = self.tenant.browser
        answer = self.send(client, method, target, path, headers=headers, **kwargs)
        assert answer.status_code < 300, f"{method} {target}: {answer.text}"
        self.answers.append(answer.text)
        self.given = answer.json() if "json" in answer.headers["content-type"] else {}
        collection = path.rsplit("/", 1)[1]
        if (
            method != "DELETE"
            and collection in self.ids
            and "id" in self.given
            and collection != "versions"
        ):
            self.ids[collection] = str(self.given.get("name" if collection == "adapters" else "id"))
        return answer

    def send(
        self, client: httpx2.Client, method: str, target: str, path: str, **kwargs: Any
    ) -> httpx2.Response:
        """The request of a step; `path` is as the OpenAPI document has it."""
        return client.request(method, target, **kwargs)

    def _filled(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._filled(each) for each in value]
        if not str(value).startswith("$"):
            return value
        return {**self.given, "issuer": self.issuer}[value[1:]]

    def _prepare(self, path: str, kwargs: dict[str, Any]) -> None:
        """What a step needs that no answer gave."""
        admin = {"origin": self.site.url}
        if path == "/v1/organization/users/{user_id}":
            listed = self.tenant.browser.get("/v1/organization/users", headers=admin).json()["data"]
            (self.ids["users"],) = (u["id"] for u in listed if u["email"] == "a@x.example")
        elif path == "/v1/unload_lora_adapter":
            version = f"/v1/adapters/{self.ids['adapters']}/versions/1"
            digest = self.site.call(self.tenant.key, "GET", version).json()["digest"]
            self.site.engine.adapter_placements = [AdapterPlacement(digest, "device", "gpu")]
        elif path == "/auth/v1/sessions/{session_id}":
            listed = self.tenant.browser.get("/auth/v1/sessions", headers=admin).json()["data"]
            self.ids["sessions"] = listed[0]["id"]
        elif path == "/v1/adapters/{name}/aliases/{alias}" and "json" in kwargs:
            self.ids["aliases"] = "prod"
        elif path.startswith("/admin/v1/billing_periods"):
            self.ids["billing_periods"] = LAST_MONTH
