"""Keys that ended, that changed, or that ask for more than they have (attacks 6 to 14)."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from typing import Any

import pytest
from tests.gateway.site import Site

from weft.db.database import Database
from weft.errors import AuthenticationError
from weft.tenancy import key_service, service
from weft.tenancy.authenticator import Authenticator
from weft.tenancy.keys import create_key
from weft.tenancy.principal import ALL_PERMISSIONS

PROJECTS, ADMIN_KEYS = "/v1/organization/projects", "/v1/organization/admin_api_keys"
REVOCATION_BOUND_S = 5.0


@pytest.fixture
def tenant(site: Site) -> str:
    """The name of a tenant of the test's own."""
    name = f"t{secrets.token_hex(4)}"
    site.operator("POST", "/admin/v1/tenants", json={"name": name}).raise_for_status()
    return name


@pytest.fixture
def root(site: Site, tenant: str) -> str:
    """Its admin key, which may do all that one may."""
    body = {"name": "root"}
    answer = site.operator("POST", f"/admin/v1/tenants/{tenant}/admin_api_keys", json=body)
    return str(answer.json()["value"])


def key_id(key: str) -> str:
    return key.split("_")[2]


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_6_a_revoked_key_is_refused_on_every_worker_under_load(database_url: str) -> None:
    """Two workers with connections of their own, each asked without a pause by ten clients."""
    databases = [Database(database_url) for _ in range(2)]
    operator_key = str(create_key("operator"))
    workers = [Authenticator(database, b"p" * 32, operator_key) for database in databases]
    async with databases[0].writing() as session:
        tenant = await service.create_tenant(session, "acme")
        owner = await service.get_owner(session, tenant.id)
        project = await service.default_project(session, owner)
        key = await key_service.create_project_key(session, project, b"p" * 32, None)
    refused_at_s: dict[int, float] = {}

    async def ask(index: int) -> None:
        num_asked = 0
        while True:
            try:
                await workers[index].authenticate(key.text)
            except AuthenticationError:
                refused_at_s.setdefault(index, time.monotonic())
                return
            assert index not in refused_at_s, "once refused, always refused"
            num_asked += 1
            await asyncio.sleep(0.001)

    asking = [asyncio.create_task(ask(i % 2)) for i in range(20)]
    await asyncio.sleep(0.2)
    async with databases[0].writing() as session:
        row = await key_service.get_project_key(session, owner, key.row.id)
        await key_service.revoke(session, row, None)
    workers[0].forget_all()
    revoked_at_s = time.monotonic()
    await asyncio.wait_for(asyncio.gather(*asking), REVOCATION_BOUND_S)
    assert refused_at_s[0] - revoked_at_s < 1.0
    assert refused_at_s[1] - revoked_at_s < REVOCATION_BOUND_S
    for database in databases:
        await database.close()


def test_7_a_request_that_ends_brings_its_keys_old_state_not_back(
    site: Site, tenant: str, root: str
) -> None:
    key = site.key(tenant)
    (project,) = site.call(root, "GET", PROJECTS).json()["data"]
    path = f"{PROJECTS}/{project['id']}/api_keys/{key_id(key)}"
    answers: list[Any] = []

    def generate() -> None:
        body = {"model": "tiny", "prompt": "abcdefgh", "max_tokens": 8}
        answers.append(site.call(key, "POST", "/v1/completions", json=body))

    site.engine.delay_s = 0.1
    try:
        running = threading.Thread(target=generate)
        running.start()
        while not site.engine._running:
            time.sleep(0.005)
        changed = site.call(root, "POST", path, json={"scopes": ["usage:read"]})
        assert changed.json()["scopes"] == ["usage:read"]
        assert code(site.call(key, "GET", "/v1/models")) == (403, "insufficient_permissions")
        running.join()
    finally:
        site.engine.delay_s = 0.0
    assert answers[0].status_code == 200, "what was admitted comes to its end"
    assert code(site.call(key, "GET", "/v1/models")) == (403, "insufficient_permissions")
    assert site.call(root, "GET", path).json()["scopes"] == ["usage:read"]


def test_8_a_blocked_admin_or_operator_key_is_refused_at_once(site: Site, root: str) -> None:
    made = site.call(root, "POST", ADMIN_KEYS, json={"name": "second"}).json()
    operator = site.operator("POST", "/admin/v1/operator_keys", json={"name": "o"}).json()
    for caller, key, admin_path, path in (
        (root, made, ADMIN_KEYS, PROJECTS),
        (site.operator_key, operator, "/admin/v1/operator_keys", "/admin/v1/tenants"),
    ):
        for _ in range(3):  # in the cache
            assert site.call(key["value"], "GET", path).status_code == 200
        body = {"is_blocked": True}
        site.call(caller, "POST", f"{admin_path}/{key['id']}", json=body).raise_for_status()
        assert code(site.call(key["value"], "GET", path)) == (401, "invalid_api_key")


def test_9_a_deleted_tenants_keys_are_refused_at_once(site: Site, tenant: str, root: str) -> None:
    key = site.key(tenant)
    for text, path in ((key, "/v1/models"), (root, PROJECTS)):
        assert site.call(text, "GET", path).status_code == 200
    site.operator("DELETE", f"/admin/v1/tenants/{tenant}").raise_for_status()
    for text, path in ((key, "/v1/models"), (root, PROJECTS)):
        assert code(site.call(text, "GET", path)) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    "field",
    ["tenant_id", "project_id", "created_at", "last_used_at", "made_by", "owner", "id", "budget"],
)
def test_12_what_a_caller_may_not_set_is_refused_by_name(
    site: Site, tenant: str, root: str, field: str
) -> None:
    (project,) = site.call(root, "GET", PROJECTS).json()["data"]
    key = key_id(site.key(tenant))
    for path in (
        PROJECTS,
        f"{PROJECTS}/{project['id']}",
        f"{PROJECTS}/{project['id']}/api_keys",
        f"{PROJECTS}/{project['id']}/api_keys/{key}",
        ADMIN_KEYS,
        f"{ADMIN_KEYS}/{key_id(root)}",
        f"{ADMIN_KEYS}/{key_id(root)}:rotate",
    ):
        body = {field: "x"} | ({} if path.endswith(":rotate") else {"name": "x"})
        answer = site.call(root, "POST", path, json=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (
            400,
            "unknown_parameter",
            field,
        ), path


def test_13_no_key_gives_another_more_than_it_has(site: Site, tenant: str, root: str) -> None:
    """Every permission that a key lacks, asked for in a new key, a change and a role."""
    (project,) = site.call(root, "GET", PROJECTS).json()["data"]
    own = ["admin_keys:write", "keys:write", "keys:read"]
    member = site.call(root, "POST", ADMIN_KEYS, json={"name": "m", "permissions": own}).json()
    for permission in sorted(ALL_PERMISSIONS - set(own)):
        for path in (ADMIN_KEYS, f"{ADMIN_KEYS}/{member['id']}"):
            body = {"name": "x", "permissions": [*own, permission]}
            answer = site.call(member["value"], "POST", path, json=body)
            # what concerns the platform is no permission that a tenant could name
            assert answer.status_code in (400, 403), permission
    for role in ("operator", "tenant-admin", "developer", "billing", "read-only"):
        answer = site.call(member["value"], "POST", ADMIN_KEYS, json={"name": "x", "role": role})
        assert answer.status_code in (400, 403), role
    keys = f"{PROJECTS}/{project['id']}/api_keys"
    for scope in ("adapters:read", "adapters:write", "usage:read"):
        answer = site.call(member["value"], "POST", keys, json={"scopes": ["inference", scope]})
        assert code(answer) == (403, "insufficient_permissions"), scope
    # a key with more is not got hold of by giving it a new secret
    stronger = site.call(root, "POST", keys, json={}).json()["id"]
    for path in (f"{keys}/{stronger}:rotate", f"{ADMIN_KEYS}/{key_id(root)}:rotate"):
        assert code(site.call(member["value"], "POST", path, json={})) == (
            403,
            "insufficient_permissions",
        )


def test_14_each_kind_of_key_has_its_own_routes(site: Site, tenant: str, root: str) -> None:
    key = site.key(tenant)
    inference = [
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("GET", "/v1/models"),
    ]
    administration = [("GET", PROJECTS), ("POST", PROJECTS), ("GET", ADMIN_KEYS)]
    operation = [
        ("GET", "/admin/v1/tenants"),
        ("POST", "/admin/v1/tenants"),
        ("GET", f"/admin/v1/tenants/{tenant}/keys"),
        ("GET", "/admin/v1/operator_keys"),
        ("POST", "/admin/v1/adapters:purge"),
    ]
    denied = {
        key: administration + operation,
        root: inference + operation,
        site.operator_key: inference + administration,
    }
    for text, routes in denied.items():
        for method, path in routes:
            answer = site.call(text, method, path, json={} if method == "POST" else None)
            assert code(answer) == (403, "insufficient_permissions"), (method, path)
