"""The same request again, over every administrative POST that the API describes (attack 48)."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import httpx2
import pytest
from tests.gateway.site import Site
from tests.oidc_provider import create_rsa_key, running_provider
from tests.security.walk import STEPS, Walk
from tests.security.world import create_tenant

HEADER = "Idempotency-Key"
# a POST that takes no key, and why
KEYLESS = {
    "/v1/chat/completions": "every generation is metered for itself",
    "/v1/completions": "every generation is metered for itself",
    "/generate": "every generation is metered for itself",
    "/generate_stream": "every generation is metered for itself",
    "/": "every generation is metered for itself",
    "/auth/v1/sign-in": "a session is never handed out again",
    "/auth/v1/sign-out": "ends the session that it is sent with",
    "/auth/v1/sign-out-everywhere": "ends the session that it is sent with",
    "/auth/v1/session": "chooses again what was chosen",
    "/auth/v1/password": "a session is never handed out again",
    "/auth/v1/password:reset": "its token is good for once",
    "/auth/v1/invites:accept": "its token is good for once",
}


@pytest.fixture(scope="module")
def admin_keys(site: Site) -> tuple[str, str]:
    """Of two tenants."""
    made = []
    for name in ("mine", "theirs"):
        site.tenant(name)
        path = f"/admin/v1/tenants/{name}/admin_api_keys"
        made.append(str(site.operator("POST", path, json={"name": "k"}).json()["value"]))
    return made[0], made[1]


@pytest.fixture(scope="module")
def document(site: Site) -> Any:
    return site.http.get("/openapi.json").json()


def takes_key(operation: dict[str, Any]) -> bool:
    return any(parameter["name"] == HEADER for parameter in operation.get("parameters", ()))


def count_rows(site: Site) -> dict[str, int]:
    """Of every table but those that keep answers and time."""
    with closing(sqlite3.connect(site.settings.database_file, timeout=20.0)) as database:
        names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {
            name: database.execute(f'SELECT COUNT(*) FROM "{name}"').fetchone()[0]
            for (name,) in names
            if name not in ("kept_answers", "leases")
        }


def changed(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Another request on the same path."""
    if "files" in kwargs:
        name, (filename, data) = kwargs["files"][-1]
        return {
            **kwargs,
            "files": [*kwargs["files"][:-1], (name, (filename, data[:-1] + bytes([data[-1] ^ 1])))],
        }
    return {**kwargs, "json": {**kwargs.get("json", {}), "another": 1}}


class RepeatingWalk(Walk):
    """Sends each POST that takes a key a second time, and a third time with another body."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.faults: list[str] = []
        self.repeated: set[str] = set()

    def send(
        self, client: httpx2.Client, method: str, target: str, path: str, **kwargs: Any
    ) -> httpx2.Response:
        operation = self.document["paths"][path][method.lower()]
        if method != "POST" or not takes_key(operation):
            return client.request(method, target, **kwargs)
        self.repeated.add(path)
        kwargs["headers"] = {**kwargs["headers"], HEADER: f"step-{len(self.answers)}"}
        first = client.request(method, target, **kwargs)
        before = count_rows(self.site)
        again = client.request(method, target, **kwargs)
        other = client.request(method, target, **changed(kwargs))
        if count_rows(self.site) != before:
            self.faults.append(f"{path}: the request had an effect again")
        if "idempotent-replayed" in first.headers or (
            again.headers.get("idempotent-replayed") != "true"
        ):
            self.faults.append(f"{path}: {again.status_code} {again.text} is not replayed")
        for what in ("status_code", "content"):
            if getattr(again, what) != getattr(first, what):
                self.faults.append(f"{path}: {first.text} was followed by {again.text}")
        for name in ("location", "content-type"):
            if again.headers.get(name) != first.headers.get(name):
                self.faults.append(f"{path}: another {name}")
        if other.status_code != 409 or (other.json()["error"]["code"] != "idempotency_conflict"):
            self.faults.append(f"{path}: another body is {other.status_code} {other.text}")
        return first


def test_48_every_administrative_post_has_one_effect_for_a_key(site: Site, document: Any) -> None:
    posts = {path for path, operations in document["paths"].items() if "post" in operations}
    keyed = {path for path in posts if takes_key(document["paths"][path]["post"])}
    assert posts - keyed == set(KEYLESS), "an administrative POST takes a key"
    tenant = create_tenant(site, "walker")
    with running_provider(create_rsa_key("one")) as provider:
        walk = RepeatingWalk(site, tenant, document, provider.url)
        for method, path, body in STEPS:
            walk.take(method, path, body)
    tenant.browser.close()
    assert walk.faults == [], "\n".join(walk.faults)
    assert keyed - walk.repeated == set(), "add a step"


def create(site: Site, admin_key: str, what: str, key: str, name: str = "made") -> httpx2.Response:
    path = f"/v1/organization/{what}"
    return site.call(admin_key, "POST", path, json={"name": name}, headers={HEADER: key})


def test_48_a_key_is_its_tenants(site: Site, admin_keys: tuple[str, str]) -> None:
    mine, theirs = (create(site, who, "projects", "shared", who[-4:]) for who in admin_keys)
    assert (mine.status_code, theirs.status_code) == (201, 201)
    assert "idempotent-replayed" not in theirs.headers
    assert mine.json()["id"] != theirs.json()["id"]


def test_48_the_same_request_side_by_side_has_one_effect(
    site: Site, admin_keys: tuple[str, str]
) -> None:
    upload: dict[str, object] = {"purpose": "adapter", "filename": "README.md", "bytes": 5}

    def begin(_number: int) -> httpx2.Response:
        headers = {HEADER: "many"}
        return site.call(admin_keys[0], "POST", "/v1/uploads", json=upload, headers=headers)

    before = count_rows(site)
    with ThreadPoolExecutor(8) as threads:
        made = list(
            threads.map(lambda _: create(site, admin_keys[0], "projects", "many"), range(16))
        )
        begun = list(threads.map(begin, range(16)))
    assert {answer.status_code for answer in made} == {201}
    assert len({answer.content for answer in made}) == 1
    codes = {answer.json()["error"]["code"] for answer in begun if answer.status_code != 200}
    assert codes <= {"idempotency_in_progress"}
    assert len({answer.content for answer in begun if answer.status_code == 200}) == 1
    after = count_rows(site)
    assert after["projects"] == before["projects"] + 1
    assert after["uploads"] == before["uploads"] + 1


def test_48_an_answer_is_for_who_may_still_ask(site: Site, admin_keys: tuple[str, str]) -> None:
    """A secret that is shown once is shown again to whoever was shown it, while it may be."""
    maker = create(site, admin_keys[0], "admin_api_keys", "maker").json()
    first, again = (create(site, maker["value"], "admin_api_keys", "once") for _ in range(2))
    assert first.status_code == 201
    assert again.json() == first.json()
    with closing(sqlite3.connect(site.settings.database_file, timeout=20.0)) as database:
        written = "\n".join(str(row) for row in database.execute("SELECT * FROM kept_answers"))
    assert first.json()["value"] not in written
    path = f"/v1/organization/admin_api_keys/{maker['id']}"
    fewer = {"permissions": ["admin_keys:read"]}
    site.call(admin_keys[0], "POST", path, json=fewer).raise_for_status()
    assert create(site, maker["value"], "admin_api_keys", "once").status_code == 403
    site.call(admin_keys[0], "DELETE", path).raise_for_status()
    assert create(site, maker["value"], "admin_api_keys", "once").status_code == 401
