"""Projects, keys and tenants over HTTP, driven by the OpenAI SDK where it has them."""

from __future__ import annotations

import itertools
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from tests.gateway.echo import EchoEngine
from tests.gateway.site import Site

from weft.app import create_app
from weft.demo.tokens import write_tokenizer
from weft.server.http import background_server
from weft.settings import ServerSettings
from weft.tokenizer import BaseTokenizer

PROJECTS, ADMIN_KEYS = "/v1/organization/projects", "/v1/organization/admin_api_keys"
OPERATOR_KEYS = "/admin/v1/operator_keys"


@dataclass
class Tenant:
    """A tenant's name, a key of its default project, and an admin key that may do all."""

    name: str
    key: str
    root: str


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, _migrated_sqlite_file: Path) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("organization")
    (folder / "base").mkdir()
    (folder / "data").mkdir()
    write_tokenizer(folder / "base")
    shutil.copy(_migrated_sqlite_file, folder / "data" / "weft.db")
    settings = ServerSettings(base_dir=folder / "base", data_dir=folder / "data", port=0)
    engine = EchoEngine()
    app = create_app(settings, engine, BaseTokenizer.from_dir(folder / "base"))
    with background_server(app, settings) as url:
        operator_key = (settings.data_dir / "operator_key").read_text().strip()
        http = httpx2.Client(base_url=url, timeout=20.0)
        running = Site(url, app, engine, settings, operator_key, http)
        yield running
        running.close()


@pytest.fixture
def tenant(site: Site) -> Tenant:
    """One of the test's own."""
    name = f"t{secrets.token_hex(4)}"
    return Tenant(name, site.tenant(name), admin_key(site, name, "root"))


@pytest.fixture
def acme(tenant: Tenant) -> str:
    return tenant.key


@pytest.fixture
def root(tenant: Tenant) -> str:
    return tenant.root


@pytest.fixture
def sdk(site: Site, root: str) -> Iterator[openai.OpenAI]:
    """OpenAI's client with the tenant's admin key, and no key for models."""
    with openai.OpenAI(
        api_key="none", admin_api_key=root, base_url=f"{site.url}/v1", max_retries=0
    ) as client:
        yield client


def admin_key(site: Site, tenant: str, name: str, **body: Any) -> str:
    path = f"/admin/v1/tenants/{tenant}/admin_api_keys"
    answer = site.operator("POST", path, json={"name": name, **body})
    answer.raise_for_status()
    return str(answer.json()["value"])


def key_id(key: str) -> str:
    return key.split("_")[2]


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def default_project(site: Site, root: str) -> str:
    (project,) = site.call(root, "GET", PROJECTS).json()["data"]
    return str(project["id"])


def make_key(site: Site, admin: str, project: str, **body: Any) -> Any:
    return site.call(admin, "POST", f"{PROJECTS}/{project}/api_keys", json=body)


def test_the_openai_sdk_manages_projects(site: Site, sdk: openai.OpenAI, root: str) -> None:
    projects = sdk.admin.organization.projects
    made = projects.create(name="search")
    assert (made.object, made.status, made.archived_at) == ("organization.project", "active", None)
    assert projects.retrieve(made.id) == made
    assert projects.update(made.id, name="find").name == "find"
    assert [p.name for p in projects.list()] == ["find", "default"]
    assert [p.name for p in projects.list(limit=1)] == ["find", "default"]
    taken = site.call(root, "POST", PROJECTS, json={"name": "find"})
    assert (taken.status_code, taken.json()["error"]["param"]) == (409, "name")
    archived = projects.archive(made.id)
    assert archived.status == "archived"
    assert archived.archived_at == projects.archive(made.id).archived_at
    assert [p.name for p in projects.list()] == ["default"]
    assert {p.name for p in projects.list(include_archived=True)} == {"default", "find"}
    assert projects.create(name="find").id != made.id
    with pytest.raises(openai.ConflictError):
        projects.update(made.id, name="other")
    with pytest.raises(openai.ConflictError, match="default"):
        projects.archive(default_project_of(projects))


def default_project_of(projects: Any) -> str:
    return next(str(p.id) for p in projects.list() if p.name == "default")


def test_the_openai_sdk_manages_a_projects_keys(site: Site, sdk: openai.OpenAI, root: str) -> None:
    project = sdk.admin.organization.projects.create(name="search").id
    made = make_key(site, root, project, name="web", scopes=["inference"])
    assert made.status_code == 201
    secret = made.json()["value"]
    keys = sdk.admin.organization.projects.api_keys
    (listed,) = keys.list(project)
    assert (listed.id, listed.name, listed.last_used_at) == (key_id(secret), "web", None)
    assert listed.redacted_value.endswith(secret[-4:])
    assert listed.owner.type == "service_account"
    assert secret not in site.call(root, "GET", f"{PROJECTS}/{project}/api_keys").text
    assert keys.retrieve(listed.id, project_id=project) == listed
    assert site.client(secret).completions.create(model="tiny", prompt="abc").choices
    changed = keys.update(listed.id, project_id=project, scopes=["usage:read"])
    assert changed.to_dict()["scopes"] == ["usage:read"]
    assert code(site.call(secret, "GET", "/v1/adapters")) == (403, "insufficient_permissions")
    assert site.call(secret, "GET", "/v1/usage").status_code == 200
    deleted = keys.delete(listed.id, project_id=project)
    assert (deleted.object, deleted.deleted) == ("organization.project.api_key.deleted", True)
    assert code(site.call(secret, "GET", "/v1/usage")) == (401, "invalid_api_key")
    # a key of another project is none of this one's
    with pytest.raises(openai.NotFoundError):
        keys.retrieve(listed.id, project_id=default_project_of(sdk.admin.organization.projects))


def test_the_openai_sdk_manages_admin_keys(site: Site, sdk: openai.OpenAI, root: str) -> None:
    keys = sdk.admin.organization.admin_api_keys
    made = keys.create(name="second", expires_in_seconds=3600)
    assert made.value.startswith(f"weft_admin_{made.id}_")
    assert made.expires_at == made.created_at + 3600
    assert site.call(made.value, "GET", PROJECTS).status_code == 200
    found = {key.id: key for key in keys.list(order="asc", limit=1)}
    assert set(found) == {made.id, key_id(root)}
    assert keys.retrieve(made.id).name == "second"
    assert made.value not in keys.retrieve(made.id).to_json()
    deleted = keys.delete(made.id)
    assert deleted.object == "organization.admin_api_key.deleted"
    assert code(site.call(made.value, "GET", PROJECTS)) == (401, "invalid_api_key")


def test_admin_keys_call_no_models_and_project_keys_administer_nothing(
    site: Site, acme: str, root: str
) -> None:
    denied = (403, "insufficient_permissions")
    body, sent = {"model": "tiny", "prompt": "abc"}, list(site.engine.requests)
    assert code(site.call(root, "POST", "/v1/completions", json=body)) == denied
    assert code(site.call(root, "GET", "/v1/models")) == denied
    for path in (PROJECTS, ADMIN_KEYS, "/admin/v1/tenants", OPERATOR_KEYS):
        assert code(site.call(acme, "GET", path)) == denied
    for path in ("/admin/v1/tenants", OPERATOR_KEYS):
        assert code(site.call(root, "GET", path)) == denied
    for path in (PROJECTS, ADMIN_KEYS, "/v1/models"):
        assert code(site.operator("GET", path)) == denied
    assert site.engine.requests == sent


def test_administrators_manage_adapters_by_their_permissions(site: Site, tenant: Tenant) -> None:
    body = {"name": "bot", "base_model": "tiny"}
    reader = admin_key(site, tenant.name, "reader", permissions=["adapters:read"])
    assert site.call(tenant.root, "POST", "/v1/adapters", json=body).status_code == 201
    assert [row["name"] for row in site.call(reader, "GET", "/v1/adapters").json()["data"]] == [
        "bot"
    ]
    denied = (403, "insufficient_permissions")
    assert code(site.call(reader, "DELETE", "/v1/adapters/bot")) == denied
    billing = admin_key(site, tenant.name, "billing", role="billing")
    assert code(site.call(billing, "GET", "/v1/adapters")) == denied
    assert code(site.operator("GET", "/v1/adapters")) == denied
    assert site.call(tenant.key, "DELETE", "/v1/adapters/bot").status_code == 200


def test_a_key_is_never_given_more_than_its_maker_has(site: Site, tenant: Tenant) -> None:
    root = tenant.root
    project = default_project(site, root)
    denied = (403, "insufficient_permissions")
    minted = site.call(
        root,
        "POST",
        ADMIN_KEYS,
        json={"name": "keys", "permissions": ["keys:read", "keys:write", "adapters:read"]},
    )
    member = minted.json()["value"]
    assert code(make_key(site, member, project, scopes=["adapters:write"])) == denied
    own = make_key(site, member, project).json()
    assert own["scopes"] == ["adapters:read", "inference"]
    path = f"{PROJECTS}/{project}/api_keys"
    more = {"scopes": ["inference", "usage:read"]}
    assert code(site.call(member, "POST", f"{path}/{own['id']}", json=more)) == denied
    # nor does it get hold of a key that may do more
    other = make_key(site, root, project).json()
    assert code(site.call(member, "POST", f"{path}/{other['id']}:rotate", json={})) == denied
    assert site.call(member, "POST", f"{path}/{other['id']}", json={"name": "x"}).status_code == 200
    blocked = site.call(member, "POST", f"{path}/{other['id']}", json={"is_blocked": True})
    assert blocked.json()["status"] == "blocked"
    unblock = site.call(member, "POST", f"{path}/{other['id']}", json={"is_blocked": False})
    assert code(unblock) == denied
    assert code(site.call(member, "POST", ADMIN_KEYS, json={"name": "y"})) == denied
    for key, wanted in ((root, "tenants:read"), (root, "nonsense")):
        answer = site.call(key, "POST", ADMIN_KEYS, json={"name": "z", "permissions": [wanted]})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "permissions")
    lesser = admin_key(site, tenant.name, "lesser", permissions=["admin_keys:write", "keys:read"])
    answer = site.call(lesser, "POST", ADMIN_KEYS, json={"name": "z", "role": "tenant-admin"})
    assert code(answer) == denied


def test_a_key_has_at_most_what_its_maker_has_now(site: Site, tenant: Tenant) -> None:
    root = tenant.root
    project = default_project(site, root)
    maker = admin_key(site, tenant.name, "maker", permissions=["keys:write", "usage:read"])
    made = make_key(site, maker, project).json()
    assert made["made_by"] == {"type": "admin_key", "id": key_id(maker)}
    assert site.call(made["value"], "GET", "/v1/usage").status_code == 200
    narrowed = site.call(
        root, "POST", f"{ADMIN_KEYS}/{key_id(maker)}", json={"permissions": ["keys:write"]}
    )
    assert narrowed.json()["permissions"] == ["keys:write"]
    answer = site.call(made["value"], "GET", "/v1/usage")
    assert code(answer) == (403, "insufficient_permissions")
    # calling models is what keys are for: that is left while its maker may make any
    assert site.client(made["value"]).completions.create(model="tiny", prompt="a").choices
    # a maker that has gone takes nothing along
    site.call(root, "DELETE", f"{ADMIN_KEYS}/{key_id(maker)}").raise_for_status()
    assert site.client(made["value"]).completions.create(model="tiny", prompt="a").choices


def test_keys_that_make_keys_come_to_an_end(site: Site, acme: str, root: str) -> None:
    maker, made = root, 0
    while True:
        answer = site.call(maker, "POST", ADMIN_KEYS, json={"name": "next"})
        if answer.status_code != 201:
            break
        maker, made = answer.json()["value"], made + 1
        assert site.call(maker, "GET", PROJECTS).status_code == 200
    assert code(answer) == (403, "insufficient_permissions")
    assert 2 < made < 16


def test_a_rotated_key_has_two_secrets_for_the_grace(site: Site, acme: str, root: str) -> None:
    project = default_project(site, root)
    path = f"{PROJECTS}/{project}/api_keys"
    key = make_key(site, root, project).json()
    secrets = [key["value"]]
    for grace_s in (600, 600):
        answer = site.call(
            root, "POST", f"{path}/{key['id']}:rotate", json={"grace_s": grace_s}
        ).json()
        assert answer["id"] == key["id"]
        assert answer["previous_expires_at"] is not None
        secrets.append(answer["value"])
    usable = [site.call(secret, "GET", "/v1/usage").status_code for secret in secrets]
    assert usable == [401, 200, 200], "the last two"
    at_once = site.call(root, "POST", f"{path}/{key['id']}:rotate", json={"grace_s": 0}).json()
    assert at_once["previous_expires_at"] is None
    assert site.call(secrets[-1], "GET", "/v1/usage").status_code == 401
    assert site.call(at_once["value"], "GET", "/v1/usage").status_code == 200
    too_long = site.call(root, "POST", f"{path}/{key['id']}:rotate", json={"grace_s": 10**9})
    assert too_long.json()["error"]["param"] == "grace_s"
    site.call(root, "DELETE", f"{path}/{key['id']}").raise_for_status()
    assert site.call(root, "POST", f"{path}/{key['id']}:rotate", json={}).status_code == 409
    assert site.call(root, "POST", f"{path}/{key['id']}", json={"name": "x"}).status_code == 409


def test_operators_make_rotate_and_revoke_operators_keys(site: Site) -> None:
    made = site.operator(
        "POST", OPERATOR_KEYS, json={"name": "ops", "permissions": ["tenants:read"]}
    )
    assert made.status_code == 201
    key = made.json()
    assert site.call(key["value"], "GET", "/admin/v1/tenants").status_code == 200
    denied = (403, "insufficient_permissions")
    answer = site.call(key["value"], "POST", "/admin/v1/tenants", json={"name": "x"})
    assert code(answer) == denied
    assert code(site.call(key["value"], "GET", OPERATOR_KEYS)) == denied
    path = f"{OPERATOR_KEYS}/{key['id']}"
    more = site.operator("POST", path, json={"permissions": ["tenants:read", "platform:write"]})
    assert more.status_code == 200
    # it may make keys now, with no more than it has
    for permissions, status in ((["tenants:write"], 403), (["tenants:read"], 201)):
        body = {"name": "y", "permissions": permissions}
        answer = site.call(key["value"], "POST", OPERATOR_KEYS, json=body)
        assert answer.status_code == status
    answer_key = answer.json()["value"]
    assert site.operator("POST", path, json={"is_blocked": True}).json()["status"] == "blocked"
    assert site.call(key["value"], "GET", "/admin/v1/tenants").status_code == 401
    assert site.operator("POST", path, json={"is_blocked": False}).json()["status"] == "active"
    rotated = site.operator("POST", f"{path}:rotate", json={"grace_s": 0}).json()["value"]
    assert site.call(key["value"], "GET", "/admin/v1/tenants").status_code == 401
    assert site.call(rotated, "GET", "/admin/v1/tenants").status_code == 200
    listed = site.operator("GET", OPERATOR_KEYS)
    assert {key["id"], key_id(answer_key)} <= {row["id"] for row in listed.json()["data"]}
    assert rotated not in listed.text
    assert site.operator("DELETE", path).json()["deleted"] is True
    assert site.call(rotated, "GET", "/admin/v1/tenants").status_code == 401
    assert site.operator("GET", path).json()["status"] == "revoked"
    assert site.operator("GET", f"{OPERATOR_KEYS}/nope").status_code == 404


def test_an_operator_gives_a_tenant_no_more_than_it_has_itself(site: Site, tenant: Tenant) -> None:
    body = {"name": "x", "permissions": ["tenants:read", "tenants:write", "keys:write"]}
    key = site.operator("POST", OPERATOR_KEYS, json=body).json()["value"]
    made = site.call(key, "POST", f"/admin/v1/tenants/{tenant.name}/keys", json={}).json()
    assert made["scopes"] == ["inference"]
    path = f"/admin/v1/tenants/{tenant.name}/admin_api_keys"
    answer = site.call(key, "POST", path, json={"name": "y", "role": "tenant-admin"})
    assert code(answer) == (403, "insufficient_permissions")
    assert site.call(key, "POST", path, json={"name": "y"}).json()["permissions"] == ["keys:write"]
    body = {"name": "x", "permissions": ["tenants:write"]}
    key = site.operator("POST", OPERATOR_KEYS, json=body).json()["value"]
    answer = site.call(key, "POST", path, json={"name": "y"})
    assert code(answer) == (403, "insufficient_permissions"), "there is nothing to give"


def test_a_suspended_tenant_is_refused_until_it_is_resumed(site: Site, tenant: Tenant) -> None:
    suspended = site.operator("POST", f"/admin/v1/tenants/{tenant.name}:suspend").json()
    assert suspended["status"] == "suspended"
    again = site.operator("POST", f"/admin/v1/tenants/{tenant.name}:suspend").json()
    assert again["suspended_at"] == suspended["suspended_at"]
    for key, path in ((tenant.key, "/v1/models"), (tenant.root, PROJECTS)):
        assert code(site.call(key, "GET", path)) == (403, "tenant_suspended")
    assert (
        site.operator("POST", f"/admin/v1/tenants/{tenant.name}:resume").json()["status"]
        == "active"
    )
    for key, path in ((tenant.key, "/v1/models"), (tenant.root, PROJECTS)):
        assert site.call(key, "GET", path).status_code == 200
    assert site.operator("POST", "/admin/v1/tenants/nobody:suspend").status_code == 404


def test_a_tenants_streams_are_padded_from_when_an_operator_says_so(
    site: Site, tenant: Tenant
) -> None:
    path = f"/admin/v1/tenants/{tenant.name}"
    assert site.operator("GET", path).json()["include_obfuscation"] is False
    for _ in range(2):
        changed = site.operator("POST", path, json={"include_obfuscation": True})
        assert changed.json() == site.operator("GET", path).json()
    assert changed.json()["include_obfuscation"] is True
    log = f"/admin/v1/audit_logs?event_types[]=tenant.updated&tenant={tenant.name}"
    assert len(site.operator("GET", log).json()["data"]) == 1, "what changes nothing is no entry"
    answer = site.operator("POST", path, json={"include_obfuscation": True, "name": "x"})
    assert code(answer) == (400, "unknown_parameter")
    answer = site.operator("POST", "/admin/v1/tenants/nope", json={"include_obfuscation": True})
    assert answer.status_code == 404


def test_an_archived_projects_keys_are_refused(site: Site, root: str) -> None:
    project = site.call(root, "POST", PROJECTS, json={"name": "old"}).json()["id"]
    key = make_key(site, root, project).json()["value"]
    assert site.call(key, "GET", "/v1/models").status_code == 200
    site.call(root, "POST", f"{PROJECTS}/{project}/archive").raise_for_status()
    assert code(site.call(key, "GET", "/v1/models")) == (401, "invalid_api_key")
    assert make_key(site, root, project).status_code == 409


def test_another_tenants_ids_are_answered_like_ones_that_do_not_exist(
    site: Site, acme: str, root: str
) -> None:
    name = f"t{secrets.token_hex(4)}"
    site.tenant(name)
    other = admin_key(site, name, "root")
    project = default_project(site, root)
    theirs = {"project": project, "key": key_id(acme), "admin": key_id(root)}
    nowhere = {"project": "proj_" + "0" * 32, "key": "1" * 12, "admin": "1" * 12}
    mine = default_project(site, other)

    def answers(ids: dict[str, str]) -> list[tuple[int, str]]:
        found = []
        paths = [
            f"{PROJECTS}/{ids['project']}",
            f"{PROJECTS}/{ids['project']}/api_keys",
            f"{PROJECTS}/{ids['project']}/api_keys/{ids['key']}",
            f"{PROJECTS}/{ids['project']}/api_keys/{ids['key']}:rotate",
            f"{PROJECTS}/{mine}/api_keys/{ids['key']}",
            f"{PROJECTS}/{ids['project']}/archive",
            f"{ADMIN_KEYS}/{ids['admin']}",
            f"{ADMIN_KEYS}/{ids['admin']}:rotate",
        ]
        for path, method in itertools.product(paths, ("GET", "POST", "DELETE")):
            body = {"name": "x"} if method == "POST" and path == paths[0] else {}
            answer = site.call(other, method, path, json=body)
            text = answer.text
            for part in ids.values():
                text = text.replace(part, "ID")
            found.append((answer.status_code, text))
        return found

    found = answers(theirs)
    assert found == answers(nowhere)
    assert {status for status, _ in found} <= {404, 405}
    assert site.call(acme, "GET", "/v1/models").status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (PROJECTS, {"name": "x", "tenant_id": "tnt_y"}, "tenant_id"),
        (PROJECTS, {"name": "x", "created_at": 5}, "created_at"),
        (ADMIN_KEYS, {"name": "x", "tenant_id": "tnt_y"}, "tenant_id"),
        (ADMIN_KEYS, {"name": "x", "made_by": None}, "made_by"),
        (PROJECTS, {"name": 5}, "name"),
        (PROJECTS, {"name": ""}, "name"),
        (PROJECTS, {"name": "a\nb"}, "name"),
        (PROJECTS, {"name": "proj_x"}, "name"),
        (ADMIN_KEYS, {"name": "a\x00b"}, "name"),
        (ADMIN_KEYS, {"name": "a\u2028b" * 99}, "name"),
        (ADMIN_KEYS, {"name": "x", "role": "root"}, "role"),
        (ADMIN_KEYS, {"name": "x", "role": "operator"}, "permissions"),
        (ADMIN_KEYS, {"name": "x", "role": "billing", "permissions": ["usage:read"]}, "role"),
        (ADMIN_KEYS, {"name": "x", "permissions": []}, "permissions"),
        (ADMIN_KEYS, {"name": "x", "permissions": ["keys:read"] * 65}, "permissions"),
        (ADMIN_KEYS, {"name": "x", "expires_in_seconds": 0}, "expires_in_seconds"),
        (ADMIN_KEYS, {"name": "x", "expires_in_seconds": 2**80}, "expires_in_seconds"),
    ],
)
def test_what_a_body_may_not_say_is_named(
    site: Site, root: str, path: str, body: dict[str, Any], param: str
) -> None:
    answer = site.call(root, "POST", path, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_keys_are_listed_in_pages_in_the_order_of_their_making(site: Site, root: str) -> None:
    project = default_project(site, root)
    path = f"{PROJECTS}/{project}/api_keys"
    for i in range(7):
        make_key(site, root, project, name=str(i)).raise_for_status()
    for order in ("asc", "desc"):
        found: list[tuple[int, str]] = []
        after: dict[str, str] = {}
        for _ in range(10):
            params = {"limit": 3, "order": order, **after}
            page = site.call(root, "GET", path, params=params).json()
            found += [(row["created_at"], row["id"]) for row in page["data"]]
            after = {"after": page["last_id"]}
            if not page["has_more"]:
                break
        assert len(found) == len(set(found)) == 8
        assert found == sorted(found, reverse=order == "desc")
    unknown = site.call(root, "GET", path, params={"after": "nope"})
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "after")


def test_whoever_changes_keys_and_tenants_is_on_record(site: Site, tenant: Tenant) -> None:
    acme, root = tenant.key, tenant.root
    project = site.call(root, "POST", PROJECTS, json={"name": "new"}).json()["id"]
    site.call(root, "POST", f"{PROJECTS}/{project}", json={"name": "newer"}).raise_for_status()
    key = make_key(site, root, project, name="k").json()
    path = f"{PROJECTS}/{project}/api_keys/{key['id']}"
    site.call(root, "POST", path, json={"name": "l"}).raise_for_status()
    rotated = site.call(root, "POST", f"{path}:rotate", json={}).json()
    site.call(root, "DELETE", path).raise_for_status()
    site.call(root, "POST", f"{PROJECTS}/{project}/archive").raise_for_status()
    site.operator("POST", f"/admin/v1/tenants/{tenant.name}:suspend").raise_for_status()
    site.operator("POST", f"/admin/v1/tenants/{tenant.name}:resume").raise_for_status()
    log = site.call(root, "GET", "/v1/organization/audit_logs", params={"limit": 100})
    rows = [(row["type"], row["actor"]["type"]) for row in reversed(log.json()["data"])]
    types = [event for event, _ in rows]
    assert types == [
        "tenant.created",
        "api_key.created",
        "admin_api_key.created",
        "project.created",
        "project.updated",
        "api_key.created",
        "api_key.updated",
        "api_key.rotated",
        "api_key.deleted",
        "project.archived",
        "tenant.suspended",
        "tenant.resumed",
    ]
    for secret in (key["value"], rotated["value"], root, acme):
        assert secret not in log.text
