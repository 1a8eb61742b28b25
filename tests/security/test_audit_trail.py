"""Whatever changes something leaves an entry in the audit trail, in its own transaction, and none
that holds a secret (attack 49)."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Iterator

import pytest
from tests.gateway.site import Site
from tests.oidc_provider import create_rsa_key, running_provider
from tests.security.walk import OIDC_SECRET, PASSWORD, STEPS, Walk
from tests.security.world import Tenant, create_tenant

from weft.audit import service
from weft.audit.service import Verified
from weft.db.database import Database
from weft.db.urls import sqlite_url

# what writes nothing, or nothing that is administered
NO_ENTRY = {
    "/v1/chat/completions": "inference is metered",
    "/v1/completions": "inference is metered",
    "/generate": "inference is metered",
    "/generate_stream": "inference is metered",
    "/": "inference is metered",
    "/v1/unload_lora_adapter": "a hint to the engine",
    "/v1/adapters/{name}/versions/{number}:load": "a hint to the engine",
    "/v1/adapters/{name}/versions/{number}:unload": "a hint to the engine",
    "/v1/uploads/{upload_id}/parts": "bytes of an upload, which is on record",
}
DIGEST = re.compile("[0-9a-f]{64}")
SECRET = re.compile(r"weft_[a-z]+_[0-9A-Za-z]+_[0-9A-Za-z]{40,}|[0-9A-Za-z_-]{43,}")


@pytest.fixture(scope="module")
def tenant(site: Site) -> Iterator[Tenant]:
    tenant = create_tenant(site, "walker")
    yield tenant
    tenant.browser.close()


def entries(site: Site) -> list[str]:
    connection = sqlite3.connect(site.settings.database_file)
    try:
        rows = connection.execute("SELECT type, changes, user_agent FROM audit_entries").fetchall()
    finally:
        connection.close()
    return [" ".join(str(value) for value in row) for row in rows]


def verify(site: Site) -> Verified:
    """Every chain of the server's database."""

    async def walk() -> Verified:
        database = Database(sqlite_url(site.settings.database_file))
        async with database.reading() as session:
            verified = await service.verify(session)
        await database.close()
        return verified

    return asyncio.run(walk())


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    with running_provider(create_rsa_key("one")) as provider:
        yield provider.url


def test_49_whatever_changes_something_is_on_record(
    site: Site, tenant: Tenant, issuer: str
) -> None:
    document = site.http.get("/openapi.json").json()
    walk = Walk(site, tenant, document, issuer)
    silent = []
    for method, path, body in STEPS:
        num_before = len(entries(site))
        walk.take(method, path, body)
        if len(entries(site)) == num_before and path not in NO_ENTRY:
            silent.append(f"{method} {path}")
    assert silent == []
    writes = {
        f"{method.upper()} {path}"
        for path, operations in document["paths"].items()
        for method in operations
        if method != "get" and path not in NO_ENTRY
    }
    assert writes - {f"{method} {path}" for method, path, _ in STEPS} == set(), "add a step"
    written = "\n".join(entries(site))
    secrets = {
        PASSWORD,
        OIDC_SECRET,
        site.operator_key,
        tenant.key,
        *(text for text in SECRET.findall("\n".join(walk.answers)) if not DIGEST.fullmatch(text)),
    }
    assert len(secrets) > 8
    assert [secret for secret in secrets if secret in written] == []
    verified = verify(site)
    assert verified.faults == ()
    assert verified.num_entries == len(entries(site))
