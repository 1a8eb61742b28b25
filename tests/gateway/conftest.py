"""The app over real loopback HTTP, with an engine that echoes."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pwdlib.hashers.argon2 import Argon2Hasher
from tests.gateway.site import (
    SharedSite,
    Site,
    create_settings,
    create_tokenizer,
    running_site,
)
from tests.tiny import create_lora

from weft.db.schema import prepare
from weft.db.urls import sqlite_url
from weft.messages import EngineDeadError
from weft.settings import ServerSettings
from weft.tenancy.passwords import PasswordHasher
from weft.tokenizer import BaseTokenizer

# the tables that `people_site` empties, those that refer to others first
_OF_PEOPLE = (
    "sign_in_attempts", "password_resets", "user_sessions", "oidc_identities", "oidc_domains",
    "oidc_providers", "invites", "memberships", "users", "audit_entries", "audit_heads", "api_keys",
    "admin_keys", "projects", "tenants",
)  # fmt: skip


@pytest.fixture
def tokenizer(tmp_path: Path) -> BaseTokenizer:
    return create_tokenizer(tmp_path)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database at this release's schema, made by the real migrations once."""
    file = tmp_path_factory.mktemp("schema") / "weft.db"
    prepare(sqlite_url(file))
    return file


@pytest.fixture
def settings(tmp_path: Path, migrated: Path) -> ServerSettings:
    return create_settings(tmp_path, migrated)


@pytest.fixture
def site(tokenizer: BaseTokenizer, settings: ServerSettings) -> Iterator[Site]:
    """A server of the test's own: with its settings, or to look into, or to stop."""
    with running_site(settings, tokenizer) as running:
        yield running


@pytest.fixture(scope="session")
def _shared_site(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[SharedSite]:
    root = tmp_path_factory.mktemp("shared")
    tokenizer = create_tokenizer(root)
    with running_site(create_settings(root, migrated), tokenizer) as running:
        yield SharedSite.of(running)


@pytest.fixture
def shared_site(_shared_site: SharedSite) -> Iterator[Site]:
    """As `site`, but the server is one for many tests: starting one takes longer than most of
    them. A module whose tests see no more of it than its answers names it `site`."""
    yield _shared_site.site
    _shared_site.reset()


@pytest.fixture(scope="session")
def lasting_site(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[Site]:
    """A server for many tests of people. Passwords are hashed at the least cost; what hashes cost
    is tested elsewhere."""
    root = tmp_path_factory.mktemp("lasting")
    tokenizer = create_tokenizer(root)
    settings = create_settings(root, migrated)
    hasher = PasswordHasher(Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("weft.tenancy.build.PasswordHasher", lambda: hasher)
        with running_site(settings, tokenizer) as running:
            yield running


@pytest.fixture
def people_site(lasting_site: Site) -> Iterator[Site]:
    """The lasting server without a tenant, key or person, as it is left behind again."""
    yield lasting_site
    file = lasting_site.settings.database_file
    with closing(sqlite3.connect(file, timeout=20.0)) as database, database:
        for table in _OF_PEOPLE:
            database.execute(f"DELETE FROM {table}")


@pytest.fixture
def acme(site: Site) -> str:
    """A tenant's key."""
    return site.tenant("acme")


@pytest.fixture
def lora() -> Callable[..., dict[str, bytes]]:
    """Files of a PEFT adapter on the tiny base's q_proj."""
    return create_lora


@pytest.fixture
def dead_engine_error() -> EngineDeadError:
    return EngineDeadError("RuntimeError: boom")
