"""Tables of people: users, memberships, invites, sessions, and their identities at providers.

A person belongs to the platform, a membership to a tenant. No password, session id or one-time
token is stored, only its hash.
"""

from __future__ import annotations

from sqlalchemy import JSON, Boolean, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from weft.db.base import Base, PlatformOwned, TenantOwned

LOCAL = "local"


class User(PlatformOwned, Base):
    """A person. `email` is normalised (`weft.tenancy.emails`); without `password_hash` only a
    provider can vouch for them. `is_operator` is a right on the platform, not on a tenant."""

    __tablename__ = "users"
    __table_args__ = (Index("uq_users_email", "email", unique=True),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    email: Mapped[str] = mapped_column(String(254))
    name: Mapped[str] = mapped_column(String(128))
    password_hash: Mapped[str | None] = mapped_column(String(255))
    is_operator: Mapped[bool] = mapped_column(Boolean)
    created_at: Mapped[int]
    disabled_at: Mapped[int | None]


class Membership(TenantOwned, Base):
    """What a person may do for a tenant. `source` says who vouches for the person and decides on
    the role: "local", or a provider's id."""

    __tablename__ = "memberships"
    __table_args__ = (
        Index("uq_memberships_tenant_id_user_id", "tenant_id", "user_id", unique=True),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[str] = mapped_column(String(64), ForeignKey("users.id"), index=True)
    role: Mapped[str] = mapped_column(String(32))
    source: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[int]

    def is_open_to(self, provider_id: str | None) -> bool:
        """Whether a sign-in that this provider vouched for (None: a password did) may use it.

        A membership that a provider gave is for its sign-ins alone: whoever made an account of
        somebody's address before they came could else sign in with the password chosen then.
        """
        return self.source in (LOCAL, provider_id)


class Invite(TenantOwned, Base):
    """An offer of membership to whoever reads mail at `email`; `token_hash` is of its link."""

    __tablename__ = "invites"
    __table_args__ = (Index("uq_invites_token_hash", "token_hash", unique=True),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    email: Mapped[str] = mapped_column(String(254), index=True)
    role: Mapped[str] = mapped_column(String(32))
    token_hash: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[int]
    expires_at: Mapped[int]
    accepted_at: Mapped[int | None]


class PasswordReset(PlatformOwned, Base):
    """A one-time right to set a person's password, made by an operator."""

    __tablename__ = "password_resets"

    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[str] = mapped_column(String(64), ForeignKey("users.id"), index=True)
    created_at: Mapped[int]
    expires_at: Mapped[int]


class UserSession(PlatformOwned, Base):
    """A person who is signed in, acting for `tenant_id` (None: for the platform, or for nobody
    yet). Signing out deletes the row. `provider_id` is the provider that vouched, if one did."""

    __tablename__ = "user_sessions"
    __table_args__ = (Index("uq_user_sessions_id", "id", unique=True),)

    secret_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    id: Mapped[str] = mapped_column(String(64))
    user_id: Mapped[str] = mapped_column(String(64), ForeignKey("users.id"), index=True)
    tenant_id: Mapped[str | None] = mapped_column(String(64), ForeignKey("tenants.id"), index=True)
    provider_id: Mapped[str | None] = mapped_column(
        String(64), ForeignKey("oidc_providers.id"), index=True
    )
    ip_address: Mapped[str] = mapped_column(String(64))
    user_agent: Mapped[str] = mapped_column(String(256))
    created_at: Mapped[int]
    last_seen_at: Mapped[int]
    expires_at: Mapped[int] = mapped_column(index=True)


class SignInAttempts(PlatformOwned, Base):
    """How often signing in failed for an account or from an address; `key` is an HMAC of it."""

    __tablename__ = "sign_in_attempts"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    num_failures: Mapped[int]
    blocked_until_ms: Mapped[int]
    expires_at: Mapped[int] = mapped_column(index=True)


class OidcProvider(PlatformOwned, Base):
    """An OpenID provider that the operator trusts. `sealed_secret` is encrypted; None: a public
    client. `role_map` gives our role for a value of the claim `role_claim`."""

    __tablename__ = "oidc_providers"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    issuer: Mapped[str] = mapped_column(String(512))
    client_id: Mapped[str] = mapped_column(String(255))
    sealed_secret: Mapped[str | None] = mapped_column(Text)
    role_claim: Mapped[str | None] = mapped_column(String(255))
    role_map: Mapped[dict[str, str]] = mapped_column(JSON)
    created_at: Mapped[int]
    disabled_at: Mapped[int | None]


class OidcDomain(TenantOwned, Base):
    """Addresses at `domain` belong to the tenant, and `provider_id` vouches for them. The operator
    who adds it has verified that. `admission`: "jit" makes members of them, "invite" does not."""

    __tablename__ = "oidc_domains"

    domain: Mapped[str] = mapped_column(String(253), primary_key=True)
    provider_id: Mapped[str] = mapped_column(
        String(64), ForeignKey("oidc_providers.id"), index=True
    )
    admission: Mapped[str] = mapped_column(String(16))
    default_role: Mapped[str] = mapped_column(String(32))
    created_at: Mapped[int]


class OidcIdentity(PlatformOwned, Base):
    """A provider's subject is this person: addresses change hands, subjects do not."""

    __tablename__ = "oidc_identities"

    provider_id: Mapped[str] = mapped_column(
        String(64), ForeignKey("oidc_providers.id"), primary_key=True
    )
    subject: Mapped[str] = mapped_column(String(255), primary_key=True)
    user_id: Mapped[str] = mapped_column(String(64), ForeignKey("users.id"), index=True)
    created_at: Mapped[int]
