"""Puts signing in together."""

from __future__ import annotations

from weft.db.database import Database
from weft.settings import SignInSettings
from weft.tenancy.accounts import Accounts
from weft.tenancy.attempts import AttemptLimiter
from weft.tenancy.cookies import Cookies
from weft.tenancy.invites import Invites
from weft.tenancy.oidc_documents import ProviderDocuments
from weft.tenancy.oidc_flow import OidcFlow
from weft.tenancy.origins import Origins
from weft.tenancy.passwords import PasswordHasher
from weft.tenancy.secret_files import SecretFiles
from weft.tenancy.session_upkeep import SessionUpkeep
from weft.tenancy.sessions import SessionPolicy
from weft.tenancy.sign_in import SignIn


def create_sign_in(
    settings: SignInSettings,
    database: Database,
    secrets: SecretFiles,
    hasher: PasswordHasher | None = None,
) -> SignIn:
    """`hasher`: other costs than the recommended ones."""
    policy = SessionPolicy(settings.session_idle_s, settings.session_max_s)
    limiter = AttemptLimiter(secrets.derive("session"))
    accounts = Accounts(database, hasher or PasswordHasher(), limiter, policy)
    encryption_key = secrets.derive("encryption")
    origins = Origins(settings.public_origin)
    return SignIn(
        database=database,
        accounts=accounts,
        invites=Invites(database, accounts),
        oidc=OidcFlow(ProviderDocuments(), encryption_key),
        policy=policy,
        origins=origins,
        cookies=Cookies(origins.is_secure),
        upkeep=SessionUpkeep(database, policy),
        csrf_key=secrets.derive("csrf"),
        encryption_key=encryption_key,
    )
