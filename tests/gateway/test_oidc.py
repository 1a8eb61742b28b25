"""Signing in by an OpenID provider that runs on loopback, with a browser that follows redirects."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from joserfc.jwk import RSAKey
from tests.oidc_provider import (
    CLIENT_ID,
    CLIENT_SECRET,
    Provider,
    create_rsa_key,
    running_provider,
)

ADA = {"sub": "ada-1", "email": "Ada@acme.example", "email_verified": True, "name": "Ada King"}


@pytest.fixture
def site(people_site: Any) -> Any:
    return people_site


@pytest.fixture(scope="module")
def key() -> RSAKey:
    return create_rsa_key("one")


@pytest.fixture
def provider(key: RSAKey) -> Iterator[Provider]:
    with running_provider(key) as provider:
        provider.person = dict(ADA)
        yield provider


@pytest.fixture
def browser(site: Any) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=site.url, timeout=20.0) as http:
        yield http


@pytest.fixture
def trusted(site: Any, acme: str, provider: Provider) -> dict[str, Any]:
    """The provider as the operator registered it, for acme.example, whose people are let in."""
    made = register(site, provider)
    set_domain(site, made["id"], "acme.example", tenant="acme", admission="jit")
    return made


def register(site: Any, provider: Provider, **more: Any) -> dict[str, Any]:
    body = {"issuer": provider.url, "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET, **more}
    answer = site.operator("POST", "/admin/v1/oidc_providers", json=body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def set_domain(site: Any, provider_id: str, domain: str, **body: Any) -> None:
    path = f"/admin/v1/oidc_providers/{provider_id}/domains/{domain}"
    answer = site.operator("PUT", path, json=body)
    assert answer.status_code == 200, answer.text


def start(browser: httpx2.Client, **params: str) -> httpx2.Response:
    return browser.get("/auth/v1/oidc/start", params={"domain": "acme.example", **params})


def come_back(browser: httpx2.Client, **params: str) -> tuple[str, httpx2.Response]:
    """(the callback's URL, its answer) of a whole sign-in."""
    begun = start(browser, **params)
    assert begun.status_code == 303, begun.text
    back = httpx2.get(begun.headers["location"]).headers["location"]
    return back, browser.get(back)


def session_of(browser: httpx2.Client) -> dict[str, Any]:
    answer = browser.get("/auth/v1/session")
    assert answer.status_code == 200, answer.text
    session: dict[str, Any] = answer.json()
    return session


def assert_refused(answer: httpx2.Response, status: int, code: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["code"] == code
    assert "weft_session" not in str(answer.headers.get_list("set-cookie"))


def test_people_of_the_domain_come_in(
    site: Any, browser: httpx2.Client, trusted: dict[str, Any]
) -> None:
    back, answer = come_back(browser, return_to="/usage?month=11")
    assert back.startswith(trusted["redirect_uri"] + "?")
    assert answer.status_code == 303
    assert answer.headers["location"] == f"{site.url}/usage?month=11"
    session = session_of(browser)
    assert (session["user"]["email"], session["user"]["name"]) == ("ada@acme.example", "Ada King")
    assert (session["role"], session["provider_id"]) == ("read-only", trusted["id"])
    assert [tenant["name"] for tenant in session["tenants"]] == ["acme"]
    (member,) = browser.get("/v1/organization/users").json()["data"]
    assert member["id"] == session["user"]["id"]
    # and again: the same person
    browser.cookies.clear()
    come_back(browser)
    assert session_of(browser)["user"]["id"] == member["id"]
    browser.cookies.clear()
    site.operator("POST", f"/admin/v1/users/{member['id']}:disable").raise_for_status()
    assert_refused(come_back(browser)[1], 403, "not_admitted")


def test_the_request_carries_pkce_state_and_nonce(
    browser: httpx2.Client, trusted: dict[str, Any]
) -> None:
    asked = [
        parse_qs(urlsplit(start(browser).headers["location"]).query, strict_parsing=True)
        for _ in range(2)
    ]
    for name in ("state", "nonce", "code_challenge"):
        assert len(asked[0][name][0]) >= 43
        assert asked[0][name] != asked[1][name]
    assert asked[0]["code_challenge_method"] == ["S256"]
    assert asked[0]["redirect_uri"] == [trusted["redirect_uri"]]


def test_only_the_browser_that_began_can_finish(
    site: Any, browser: httpx2.Client, trusted: dict[str, Any]
) -> None:
    back = httpx2.get(start(browser).headers["location"]).headers["location"]
    with httpx2.Client(base_url=site.url) as victim:
        assert_refused(victim.get(back), 401, "sign_in_failed")
        victim.get("/auth/v1/oidc/start", params={"domain": "acme.example"})
        assert_refused(victim.get(back), 401, "sign_in_failed")
    for wrong in ("state=x", "state=", ""):
        changed = (
            "&".join(part for part in back.split("&") if not part.startswith("state="))
            + f"&{wrong}"
        )
        assert_refused(browser.get(changed), 401, "sign_in_failed")
    assert browser.get(back).status_code == 303
    # the code was used, and so was what the browser remembered
    browser.cookies.delete("weft_session")
    assert_refused(browser.get(back), 401, "sign_in_failed")


def test_a_cookie_of_ones_own_making_is_no_start(
    browser: httpx2.Client, trusted: dict[str, Any]
) -> None:
    back = httpx2.get(start(browser).headers["location"]).headers["location"]
    good = browser.cookies["weft_sign_in"]
    browser.cookies.clear()
    for cookie in (good[:-4] + "AAAA", "v1.AAAA", "v2." + good[3:], "x"):
        answer = browser.get(back, headers={"cookie": f"weft_sign_in={cookie}"})
        assert_refused(answer, 401, "sign_in_failed")


def test_one_provider_does_not_finish_for_another(
    site: Any, browser: httpx2.Client, trusted: dict[str, Any], provider: Provider
) -> None:
    other = register(site, provider)
    back = httpx2.get(start(browser).headers["location"]).headers["location"]
    assert_refused(browser.get(back.replace(trusted["id"], other["id"])), 401, "sign_in_failed")
    assert_refused(browser.get(f"{back}&iss=https://evil.example"), 401, "sign_in_failed")
    assert_refused(browser.get(back.replace(trusted["id"], "oidc_0")), 401, "sign_in_failed")


def test_a_token_that_is_not_right_lets_nobody_in(
    browser: httpx2.Client, trusted: dict[str, Any], provider: Provider
) -> None:
    for claims in (
        {"iss": "https://evil.example"}, {"aud": "other"}, {"exp": 1}, {"nonce": "x"},
        {"nonce": None}, {"sub": None},
    ):  # fmt: skip
        provider.claims = claims
        assert_refused(come_back(browser)[1], 401, "sign_in_failed")
    provider.claims = {}
    used = provider.sign("another sign-in's nonce")
    for token in (used, "e30.e30.", ""):
        provider.id_token = token or None
        provider.signer = provider.keys[0] if token else create_rsa_key("one")
        assert_refused(come_back(browser)[1], 401, "sign_in_failed")


def test_a_provider_that_refuses_lets_nobody_in(
    browser: httpx2.Client, trusted: dict[str, Any], provider: Provider
) -> None:
    provider.refusal = "access_denied"
    assert_refused(come_back(browser)[1], 401, "sign_in_failed")


def test_new_keys_are_read_when_a_token_needs_them_and_not_for_junk(
    site: Any, browser: httpx2.Client, trusted: dict[str, Any], provider: Provider
) -> None:
    assert come_back(browser)[1].status_code == 303
    provider.signer = create_rsa_key("two")
    provider.header = {"alg": "RS256", "kid": "two"}
    for _ in range(3):  # a key that nobody published: asked for no more than once a minute
        assert_refused(come_back(browser)[1], 401, "sign_in_failed")
    assert provider.num_requests["/jwks"] == 1
    assert provider.num_requests["/.well-known/openid-configuration"] == 1
    provider.keys = [provider.signer]
    site.app.state.sign_in.oidc.documents._entries[provider.url].keys_read_at_s -= 60
    assert come_back(browser)[1].status_code == 303
    assert provider.num_requests["/jwks"] == 2


def test_whom_the_provider_cannot_vouch_for_is_not_let_in(
    browser: httpx2.Client, trusted: dict[str, Any], provider: Provider
) -> None:
    people: list[dict[str, Any]] = [
        {"email_verified": False}, {"email": "ada@rival.example"},
        {"email": "ada@acme.example.evil.example"},
    ]  # fmt: skip
    for person in people:
        provider.person = {**ADA, **person}
        assert_refused(come_back(browser)[1], 403, "not_admitted")


def test_where_people_are_invited_first_nobody_else_comes_in(
    site: Any, browser: httpx2.Client, trusted: dict[str, Any]
) -> None:
    set_domain(site, trusted["id"], "acme.example", tenant="acme", admission="invite")
    assert_refused(come_back(browser)[1], 403, "not_admitted")
    invite = {"email": "ada@acme.example", "role": "billing"}
    site.operator("POST", "/admin/v1/tenants/acme/invites", json=invite).raise_for_status()
    assert come_back(browser)[1].status_code == 303
    assert session_of(browser)["role"] == "billing"


def test_claims_decide_on_roles_at_every_sign_in(
    site: Any, browser: httpx2.Client, acme: str, provider: Provider
) -> None:
    roles = {"weft-admins": "tenant-admin", "weft-devs": "developer", "weft-money": "billing"}
    made = register(site, provider, role_claim="groups", role_map=roles)
    set_domain(site, made["id"], "acme.example", tenant="acme", admission="jit")
    with httpx2.Client(base_url=site.url) as earlier:
        for groups, role in (
            (["x", "weft-devs"], "developer"), (["weft-money", "weft-admins"], "tenant-admin"),
            ("weft-money", "billing"), ([], "read-only"), (["operator"], "read-only"),
        ):  # fmt: skip
            provider.person["groups"] = groups
            browser.cookies.clear()
            come_back(browser)
            assert session_of(browser)["role"] == role
            if role == "developer":
                earlier.cookies.update(browser.cookies)
        # what was made in another role has ended
        assert earlier.get("/auth/v1/session").status_code == 401
    trail = site.operator("GET", "/admin/v1/audit_logs", params={"tenant": "acme"}).json()["data"]
    events = [entry["type"] for entry in trail]
    assert (events.count("user.added"), events.count("user.updated")) == (1, 3)
    assert events.count("login.succeeded") == 5
    answer = site.operator(
        "POST", f"/admin/v1/oidc_providers/{made['id']}", json={"role_map": {"x": "operator"}}
    )
    assert answer.status_code == 400


def test_a_providers_word_gives_nothing_beyond_its_tenant(
    site: Any, browser: httpx2.Client, trusted: dict[str, Any]
) -> None:
    """An operator's account of the same address stays out of the provider's reach."""
    body = {"email": "ada@acme.example", "is_operator": True}
    site.operator("POST", "/admin/v1/users", json=body).raise_for_status()
    come_back(browser)
    session = session_of(browser)
    assert session["role"] == "read-only"
    headers = {"origin": site.url, "x-csrf-token": session["csrf_token"]}
    for tenant in (None, "acme"):
        answer = browser.post("/auth/v1/session", json={"tenant": tenant}, headers=headers)
        assert_refused(answer, 403, "insufficient_permissions")
    assert browser.get("/admin/v1/tenants").status_code == 403


def test_an_account_that_was_made_before_its_owner_came_gets_nothing(
    site: Any, browser: httpx2.Client, trusted: dict[str, Any]
) -> None:
    """Whoever chose a password for somebody's address has no part in what a provider gives."""
    site.tenant("rival")
    invite = {"email": "ada@acme.example", "role": "developer"}
    token = site.operator("POST", "/admin/v1/tenants/rival/invites", json=invite).json()["token"]
    headers = {"origin": site.url}
    password = "correct horse battery staple"
    accept = {"token": token, "password": password}
    browser.post("/auth/v1/invites:accept", json=accept, headers=headers).raise_for_status()
    come_back(browser)
    assert [tenant["name"] for tenant in session_of(browser)["tenants"]] == ["acme"]
    with httpx2.Client(base_url=site.url, headers=headers) as mallory:
        body = {"email": "ada@acme.example", "password": password}
        session = mallory.post("/auth/v1/sign-in", json=body).json()
        assert [tenant["name"] for tenant in session["tenants"]] == ["rival"]
        answer = mallory.post("/auth/v1/sign-in", json={**body, "tenant": "acme"})
        assert_refused(answer, 403, "insufficient_permissions")
        listed = mallory.get("/auth/v1/sessions").json()["data"]
        assert [item["provider_id"] for item in listed] == [None]


def test_an_address_that_was_given_to_somebody_else_is_not_the_first_ones_account(
    browser: httpx2.Client, trusted: dict[str, Any], provider: Provider
) -> None:
    come_back(browser)
    first = session_of(browser)["user"]["id"]
    browser.cookies.clear()
    provider.person["sub"] = "bob-2"
    assert_refused(come_back(browser)[1], 403, "not_admitted")
    provider.person.update(sub="ada-1", email="ada.king@acme.example")
    come_back(browser)
    assert session_of(browser)["user"]["id"] == first


def test_taking_a_domain_or_provider_away_signs_its_people_out(
    site: Any, browser: httpx2.Client, trusted: dict[str, Any]
) -> None:
    path = f"/admin/v1/oidc_providers/{trusted['id']}"
    come_back(browser)
    assert site.operator("DELETE", f"{path}/domains/acme.example").json()["deleted"] is True
    assert browser.get("/auth/v1/session").status_code == 401
    assert_refused(start(browser), 404, "not_found")
    set_domain(site, trusted["id"], "acme.example", tenant="acme")
    come_back(browser)
    session_of(browser)
    assert site.operator("DELETE", path).json()["deleted"] is True
    assert browser.get("/auth/v1/session").status_code == 401
    assert_refused(start(browser), 404, "not_found")
    assert site.operator("GET", path).status_code == 404


def test_the_way_back_is_a_path_of_ours(browser: httpx2.Client, trusted: dict[str, Any]) -> None:
    for path in (
        "https://evil.example", "//evil.example", "/\\evil.example", "\\\\evil.example", "evil", "",
        "/\t/evil.example", "/a\r\nx: y", "javascript:alert(1)", "/é",
    ):  # fmt: skip
        assert_refused(start(browser, return_to=path), 400, "invalid_value")


def test_a_provider_whose_configuration_is_not_right_is_not_taken(
    site: Any, provider: Provider
) -> None:
    faults: list[dict[str, Any]] = [
        {"issuer": "https://evil.example"},
        {"authorization_endpoint": "http://10.0.0.1/authorize"},
        {"token_endpoint": "file:///etc/passwd"},
        {"jwks_uri": None},
        {"code_challenge_methods_supported": ["plain"]},
        {"response_types_supported": ["token"]},
        {"x": "y" * 2 * 2**20},
    ]
    for fault in faults:
        provider.configuration = fault
        body = {"issuer": provider.url, "client_id": CLIENT_ID}
        answer = site.operator("POST", "/admin/v1/oidc_providers", json=body)
        assert_refused(answer, 502, "provider_error")
    provider.configuration = {}
    register(site, provider)


def test_an_issuer_is_an_https_url(site: Any) -> None:
    for issuer in ("http://169.254.169.254", "http://id.example", "file:///x", "x", "https://"):
        body = {"issuer": issuer, "client_id": CLIENT_ID}
        answer = site.operator("POST", "/admin/v1/oidc_providers", json=body)
        assert_refused(answer, 502, "provider_error")


def test_the_clients_secret_is_kept_encrypted_and_never_told(
    site: Any, browser: httpx2.Client, trusted: dict[str, Any], provider: Provider
) -> None:
    path = f"/admin/v1/oidc_providers/{trusted['id']}"
    answers = [site.operator("GET", path), site.operator("GET", "/admin/v1/oidc_providers")]
    with sqlite3.connect(site.settings.database_file) as connection:
        stored = "\n".join(connection.iterdump())
    for text in (stored, *(answer.text for answer in answers)):
        assert CLIENT_SECRET not in text
    assert answers[0].json()["has_secret"] is True
    site.operator("POST", path, json={"client_secret": "another"}).raise_for_status()
    assert_refused(come_back(browser)[1], 401, "sign_in_failed")
    site.operator("POST", path, json={"client_secret": CLIENT_SECRET}).raise_for_status()
    assert come_back(browser)[1].status_code == 303
