"""Signing in over HTTP, as browsers do it: cookies, tokens, and what others' pages cannot do."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import openai
import pytest

EMAIL, PASSWORD = "ada@acme.example", "correct horse battery staple"


class Browser:
    """A browser with its cookies; `page` is the origin of the page that sends."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx2.Client(base_url=url, timeout=20.0)

    def send(self, method: str, path: str, page: str | None = None, **kwargs: Any) -> Any:
        """As a page of `page` (our own by default) would, with the token where it can read it."""
        headers = {"origin": page or self.url}
        token = self.http.cookies.get("weft_csrf")
        if page is None and token is not None:
            headers["x-csrf-token"] = token
        headers.update(kwargs.pop("headers", {}))
        return self.http.request(method, path, headers=headers, **kwargs)

    def sign_in(self, email: str = EMAIL, password: str = PASSWORD, **more: Any) -> Any:
        body = {"email": email, "password": password, **more}
        return self.send("POST", "/auth/v1/sign-in", json=body)


@pytest.fixture
def site(people_site: Any) -> Any:
    return people_site


@pytest.fixture
def browser(site: Any) -> Iterator[Browser]:
    browser = Browser(site.url)
    yield browser
    browser.http.close()


@pytest.fixture
def create_person(site: Any) -> Callable[..., dict[str, Any]]:
    """(email, role=None: an operator, tenant="acme") -> the account, made over HTTP."""

    def create(email: str, role: str | None, tenant: str = "acme") -> dict[str, Any]:
        http = httpx2.Client(base_url=site.url, headers={"origin": site.url})
        with http:
            if role is None:
                body = {"email": email, "is_operator": True}
                made = site.operator("POST", "/admin/v1/users", json=body)
                done = http.post(
                    "/auth/v1/password:reset",
                    json={"token": made.json()["reset_token"], "new_password": PASSWORD},
                )
            else:
                made = site.operator(
                    "POST",
                    f"/admin/v1/tenants/{tenant}/invites",
                    json={"email": email, "role": role},
                )
                done = http.post(
                    "/auth/v1/invites:accept",
                    json={"token": made.json()["token"], "name": "Ada", "password": PASSWORD},
                )
            assert done.status_code == 200, done.text
        found = site.operator("GET", f"/admin/v1/users/{email}")
        person: dict[str, Any] = found.json()
        return person

    return create


@pytest.fixture
def ada(site: Any, acme: str, create_person: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return create_person(EMAIL, "tenant-admin")


def assert_error(answer: Any, status: int, code: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["code"] == code, answer.text


def test_a_person_signs_in_works_and_signs_out(browser: Browser, ada: dict[str, Any]) -> None:
    answer = browser.sign_in()
    assert answer.status_code == 200, answer.text
    session = answer.json()
    assert session["user"] == {
        "id": ada["id"], "object": "user", "email": EMAIL, "name": "Ada", "is_operator": False,
    }  # fmt: skip
    assert session["role"] == "tenant-admin"
    assert [tenant["name"] for tenant in session["tenants"]] == ["acme"]
    assert browser.send("GET", "/auth/v1/session").json() == session
    assert browser.send("GET", "/v1/organization/users").json()["data"][0]["email"] == EMAIL
    assert browser.send("POST", "/auth/v1/sign-out").json() == {"object": "done"}
    assert browser.http.cookies.get("weft_session") is None
    assert_error(browser.send("GET", "/auth/v1/session"), 401, "signed_out")


def test_a_stolen_cookie_is_worth_nothing_after_signing_out(
    browser: Browser, ada: dict[str, Any]
) -> None:
    browser.sign_in()
    stolen = {"cookie": f"weft_session={browser.http.cookies['weft_session']}"}
    assert browser.http.get("/auth/v1/session", headers=stolen).status_code == 200
    browser.send("POST", "/auth/v1/sign-out")
    assert_error(browser.http.get("/auth/v1/session", headers=stolen), 401, "signed_out")


def test_cookies_are_out_of_reach_of_scripts_and_other_sites(
    browser: Browser, ada: dict[str, Any]
) -> None:
    cookies = {
        header.split("=", 1)[0]: header.lower()
        for header in browser.sign_in().headers.get_list("set-cookie")
    }
    assert set(cookies) == {"weft_session", "weft_csrf"}
    for cookie in cookies.values():
        assert "samesite=lax" in cookie
        assert "path=/" in cookie
        assert "domain" not in cookie
    assert "httponly" in cookies["weft_session"]
    assert "httponly" not in cookies["weft_csrf"]


def test_signing_in_never_takes_an_id_over(browser: Browser, ada: dict[str, Any]) -> None:
    planted = "A" * 43
    answer = browser.http.post(
        "/auth/v1/sign-in",
        json={"email": EMAIL, "password": PASSWORD},
        headers={"origin": browser.url, "cookie": f"weft_session={planted}"},
    )
    assert answer.status_code == 200
    assert browser.http.cookies["weft_session"] != planted
    first = browser.http.cookies["weft_session"]
    browser.sign_in()
    assert browser.http.cookies["weft_session"] != first
    old = browser.http.get("/auth/v1/session", headers={"cookie": f"weft_session={first}"})
    assert_error(old, 401, "signed_out")


def test_another_sites_page_changes_nothing(browser: Browser, ada: dict[str, Any]) -> None:
    evil = "https://evil.example"
    body = {"email": EMAIL, "password": PASSWORD}
    assert_error(browser.send("POST", "/auth/v1/sign-in", evil, json=body), 403, "csrf_failed")
    assert_error(browser.http.post("/auth/v1/sign-in", json=body), 403, "csrf_failed")
    browser.sign_in()
    token = browser.http.cookies["weft_csrf"]
    invite = {"email": "x@acme.example", "role": "developer"}
    wrong: list[dict[str, str]] = [
        {"origin": evil, "x-csrf-token": token},
        {"origin": "null", "x-csrf-token": token},
        {"origin": browser.url, "sec-fetch-site": "cross-site", "x-csrf-token": token},
        {"x-csrf-token": token},
        {"origin": browser.url},
        {"origin": browser.url, "x-csrf-token": token[:-2] + "AA"},
        {"origin": browser.url, "x-csrf-token": ""},
    ]
    for path in ("/v1/organization/invites", "/auth/v1/sign-out", "/auth/v1/password"):
        for headers in wrong:
            answer = browser.http.post(path, json=invite, headers=headers)
            assert_error(answer, 403, "csrf_failed")
    assert browser.send("GET", "/v1/organization/invites").json()["data"][0]["status"] == "accepted"
    assert browser.send("POST", "/v1/organization/invites", json=invite).status_code == 200


def test_a_token_of_another_session_is_none(
    site: Any, browser: Browser, ada: dict[str, Any]
) -> None:
    other = Browser(site.url)
    other.sign_in()
    browser.sign_in()
    foreign = other.http.cookies["weft_csrf"]
    other.http.close()
    cookie = f"weft_session={browser.http.cookies['weft_session']}; weft_csrf={foreign}"
    answer = browser.http.post(
        "/auth/v1/sign-out",
        headers={"origin": browser.url, "x-csrf-token": foreign, "cookie": cookie},
    )
    assert_error(answer, 403, "csrf_failed")
    # a page that asks is given one of its own instead
    answer = browser.http.get("/auth/v1/session", headers={"cookie": cookie})
    assert answer.json()["csrf_token"] not in (foreign, "")
    assert browser.send("POST", "/auth/v1/sign-out").status_code == 200


def test_a_key_and_a_cookie_are_not_sent_together(
    site: Any, browser: Browser, acme: str, ada: dict[str, Any]
) -> None:
    browser.sign_in()
    for path in ("/v1/organization/users", "/v1/models", "/auth/v1/session"):
        answer = browser.send("GET", path, headers={"authorization": f"Bearer {acme}"})
        assert_error(answer, 400, "ambiguous_credentials")


def test_a_session_administers_and_does_not_infer(browser: Browser, ada: dict[str, Any]) -> None:
    browser.sign_in()
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
    answer = browser.send("POST", "/v1/chat/completions", json=body)
    assert_error(answer, 403, "insufficient_permissions")
    answer = browser.send("GET", "/admin/v1/tenants")
    assert_error(answer, 403, "insufficient_permissions")


def test_an_operator_signs_in_to_the_platform(
    browser: Browser, acme: str, create_person: Callable[..., dict[str, Any]]
) -> None:
    create_person("root@weft.example", None)
    session = browser.sign_in("root@weft.example").json()
    assert (session["role"], session["tenant_id"]) == ("operator", None)
    assert browser.send("GET", "/admin/v1/tenants").json()["data"][0]["name"] == "acme"
    answer = browser.send("GET", "/v1/organization/users")
    assert_error(answer, 403, "insufficient_permissions")
    # of the tenants, an operator sees what operators see, unless made a member
    assert_error(
        browser.send("POST", "/auth/v1/session", json={"tenant": "acme"}),
        403,
        "insufficient_permissions",
    )


def test_who_has_two_tenants_changes_between_them(
    site: Any, browser: Browser, ada: dict[str, Any], create_person: Callable[..., dict[str, Any]]
) -> None:
    site.tenant("rival")
    create_person(EMAIL, "billing", "rival")
    session = browser.sign_in().json()
    assert (session["tenant_id"], session["permissions"]) == (None, [])
    refused = browser.send("GET", "/v1/organization/users")
    assert_error(refused, 403, "insufficient_permissions")
    before = browser.http.cookies["weft_session"]
    chosen = browser.send("POST", "/auth/v1/session", json={"tenant": "rival"}).json()
    assert chosen["role"] == "billing"
    assert browser.http.cookies["weft_session"] != before
    members = browser.send("GET", "/v1/organization/users").json()["data"]
    assert [member["role"] for member in members] == ["billing"]


def test_sessions_are_listed_and_closed(site: Any, browser: Browser, ada: dict[str, Any]) -> None:
    elsewhere = Browser(site.url)
    elsewhere.sign_in()
    browser.sign_in()
    listed = browser.send("GET", "/auth/v1/sessions").json()["data"]
    assert sorted(item["is_current"] for item in listed) == [False, True]
    (other,) = (item["id"] for item in listed if not item["is_current"])
    assert browser.send("DELETE", f"/auth/v1/sessions/{other}").json()["deleted"] is True
    assert_error(browser.send("DELETE", f"/auth/v1/sessions/{other}"), 404, "not_found")
    assert_error(elsewhere.send("GET", "/auth/v1/session"), 401, "signed_out")
    elsewhere.sign_in()
    browser.send("POST", "/auth/v1/sign-out-everywhere")
    for each in (browser, elsewhere):
        assert_error(each.send("GET", "/auth/v1/session"), 401, "signed_out")
    elsewhere.http.close()


def test_a_password_is_changed_in_the_session(browser: Browser, ada: dict[str, Any]) -> None:
    browser.sign_in()
    body = {"current_password": PASSWORD, "new_password": "seven silent purple anchors"}
    wrong = {**body, "current_password": "wrong"}
    answer = browser.send("POST", "/auth/v1/password", json=wrong)
    assert_error(answer, 401, "invalid_credentials")
    assert browser.send("POST", "/auth/v1/password", json=body).status_code == 200
    assert browser.send("GET", "/auth/v1/session").status_code == 200
    assert_error(browser.sign_in(), 401, "invalid_credentials")
    assert browser.sign_in(password=body["new_password"]).status_code == 200


def test_members_and_invites_work_with_openais_client(
    site: Any, browser: Browser, ada: dict[str, Any]
) -> None:
    """OpenAI's own types parse what is answered; a session's cookies stand for the key."""
    browser.sign_in()
    cookies = "; ".join(f"{key}={value}" for key, value in browser.http.cookies.items())

    def send_cookies(request: httpx2.Request) -> None:
        del request.headers["authorization"]
        request.headers.update({"origin": site.url, "cookie": cookies, "x-csrf-token": token})

    token = browser.http.cookies["weft_csrf"]
    http = httpx2.Client(event_hooks={"request": [send_cookies]})
    url = f"{site.url}/v1"
    client = openai.OpenAI(admin_api_key="none", base_url=url, max_retries=0, http_client=http)
    organization = client.admin.organization
    new: Any = {"email": "dev@acme.example", "role": "developer"}
    invite = organization.invites.create(**new)
    assert (invite.status, invite.email, invite.projects) == ("pending", "dev@acme.example", [])
    assert organization.invites.retrieve(invite.id).id == invite.id
    assert [each.status for each in organization.invites.list()] == ["pending", "accepted"]
    assert organization.invites.delete(invite.id).deleted
    (member,) = organization.users.list()
    assert (member.id, member.email, member.role) == (ada["id"], EMAIL, "tenant-admin")
    assert organization.users.retrieve(ada["id"]).added_at > 0
    assert [user.id for user in organization.users.list(emails=["ADA@acme.example"])] == [ada["id"]]
    assert list(organization.users.list(emails=["x@acme.example"])) == []
    with pytest.raises(openai.ConflictError):
        organization.users.delete(ada["id"])
    client.close()


def test_roles_are_changed_and_members_removed(
    site: Any, browser: Browser, ada: dict[str, Any], create_person: Callable[..., dict[str, Any]]
) -> None:
    dev = create_person("dev@acme.example", "developer")
    their = Browser(site.url)
    assert their.sign_in("dev@acme.example").json()["role"] == "developer"
    browser.sign_in()
    path = f"/v1/organization/users/{dev['id']}"
    assert browser.send("POST", path, json={"role": "billing"}).json()["role"] == "billing"
    assert_error(their.send("GET", "/auth/v1/session"), 401, "signed_out")
    assert their.sign_in("dev@acme.example").json()["role"] == "billing"
    answer = their.send("POST", path, json={"role": "tenant-admin"})
    assert_error(answer, 403, "insufficient_permissions")
    assert browser.send("DELETE", path).json()["deleted"] is True
    assert_error(browser.send("GET", path), 404, "not_found")
    assert_error(their.send("GET", "/auth/v1/session"), 401, "signed_out")
    assert their.sign_in("dev@acme.example").json()["tenants"] == []
    their.http.close()


def test_nothing_about_oneself_is_set_by_a_field_too_many(
    browser: Browser, ada: dict[str, Any]
) -> None:
    browser.sign_in()
    path = f"/v1/organization/users/{ada['id']}"
    for extra in ({"is_operator": True}, {"tenant_id": "tnt_x"}, {"added_at": 1}):
        answer = browser.send("POST", path, json={"role": "tenant-admin", **extra})
        assert_error(answer, 400, "unknown_parameter")
    answer = browser.send("POST", path, json={"role": "operator"})
    assert_error(answer, 400, "invalid_value")


def test_another_tenants_members_and_invites_are_not_there(
    site: Any, browser: Browser, ada: dict[str, Any], create_person: Callable[..., dict[str, Any]]
) -> None:
    site.tenant("rival")
    eve = create_person("eve@rival.example", "tenant-admin", "rival")
    body = {"email": "x@rival.example", "role": "developer"}
    invite = site.operator("POST", "/admin/v1/tenants/rival/invites", json=body).json()["id"]
    browser.sign_in()
    for kind, known in (("users", eve["id"]), ("invites", invite)):
        for method in ("GET", "DELETE"):
            theirs = browser.send(method, f"/v1/organization/{kind}/{known}")
            random = browser.send(method, f"/v1/organization/{kind}/user_0")
            assert theirs.status_code == random.status_code == 404
            assert theirs.text.replace(known, "user_0") == random.text


def test_operators_close_accounts_and_open_them_again(
    site: Any, browser: Browser, ada: dict[str, Any]
) -> None:
    browser.sign_in()
    path = f"/admin/v1/users/{EMAIL}"
    assert site.operator("POST", f"{path}:disable").json()["disabled_at"] is not None
    assert_error(browser.send("GET", "/auth/v1/session"), 401, "signed_out")
    assert_error(browser.sign_in(), 401, "invalid_credentials")
    site.operator("POST", f"{path}:enable").raise_for_status()
    assert browser.sign_in().status_code == 200
    site.operator("POST", f"{path}:sign_out").raise_for_status()
    assert_error(browser.send("GET", "/auth/v1/session"), 401, "signed_out")
    listed = site.operator("GET", "/admin/v1/users").json()["data"]
    assert [user["email"] for user in listed] == [EMAIL]


def test_guessing_has_to_wait(site: Any, browser: Browser, ada: dict[str, Any]) -> None:
    for email in (EMAIL, "nobody@acme.example"):
        refusals = [browser.sign_in(email, f"guess {n}") for n in range(6)]
        assert [answer.status_code for answer in refusals] == [401] * 5 + [429]
        assert int(refusals[-1].headers["retry-after"]) in (1, 2)
        assert refusals[-1].json()["error"]["code"] == "rate_limit_exceeded"
    assert browser.sign_in().status_code == 429, "the right password does not jump the queue"
    # a new password, which an operator gave the means to set, ends the waiting
    token = site.operator("POST", f"/admin/v1/users/{EMAIL}:reset_password").json()["reset_token"]
    new = "seven silent purple anchors"
    body = {"token": token, "new_password": new}
    browser.send("POST", "/auth/v1/password:reset", json=body).raise_for_status()
    assert browser.sign_in(password=new).status_code == 200


def test_what_people_do_is_on_record_without_their_secrets(
    site: Any, browser: Browser, ada: dict[str, Any]
) -> None:
    browser.sign_in()
    browser.sign_in(password="wrong")
    browser.sign_in(email=PASSWORD)  # typed into the wrong field
    browser.send("POST", "/auth/v1/sign-out")
    named = {"tenant": "acme"}
    of_acme = site.operator("GET", "/admin/v1/audit_logs", params=named).json()["data"]
    assert [entry["type"] for entry in reversed(of_acme)][-4:] == [
        "invite.sent", "invite.accepted", "login.succeeded", "logout.succeeded",
    ]  # fmt: skip
    assert of_acme[0]["actor"]["session"]["user"]["id"] == ada["id"]
    of_platform = site.operator("GET", "/admin/v1/audit_logs").json()["data"]
    assert sum(entry["type"] == "login.failed" for entry in of_platform) == 2
    with sqlite3.connect(site.settings.database_file) as connection:
        stored = "\n".join(connection.iterdump())
    for secret in (PASSWORD, browser.http.cookies.get("weft_session") or "weft_session="):
        assert secret not in stored
