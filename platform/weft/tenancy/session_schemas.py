"""A person's own account and sessions on the wire."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from weft.tenancy.emails import MAX_EMAIL_CHARS
from weft.tenancy.passwords import MAX_PASSWORD_CHARS
from weft.tenancy.schemas import Body
from weft.tenancy.user_models import UserSession

# of bytes: a password's characters may be composed, and are normalised only later
_MAX_PASSWORD_TEXT = 4 * MAX_PASSWORD_CHARS


class SignInBody(Body):
    """Body of `POST /auth/v1/sign-in`; `tenant` (id or name) for people of several."""

    email: str = Field(max_length=MAX_EMAIL_CHARS)
    password: str = Field(max_length=_MAX_PASSWORD_TEXT)
    tenant: str | None = Field(default=None, max_length=128)


class TenantChoice(Body):
    """Body of `POST /auth/v1/session`. None: an operator's session, for the platform."""

    tenant: str | None = Field(max_length=128)


class PasswordChange(Body):
    """Body of `POST /auth/v1/password`."""

    current_password: str = Field(max_length=_MAX_PASSWORD_TEXT)
    new_password: str = Field(max_length=_MAX_PASSWORD_TEXT)


class PasswordResetBody(Body):
    """Body of `POST /auth/v1/password:reset`; an operator hands the token out."""

    token: str = Field(max_length=128)
    new_password: str = Field(max_length=_MAX_PASSWORD_TEXT)


class InviteAccept(Body):
    """Body of `POST /auth/v1/invites:accept`: of a new account, or of the one that is there."""

    token: str = Field(max_length=128)
    name: str = Field(default="", max_length=128)
    password: str = Field(max_length=_MAX_PASSWORD_TEXT)


class UserInfo(BaseModel):
    """A person, to themselves."""

    id: str
    object: Literal["user"] = "user"
    email: str
    name: str
    is_operator: bool


class TenantOfUser(BaseModel):
    """A tenant that the person may act for, and as what."""

    id: str
    object: Literal["tenant"] = "tenant"
    name: str
    role: str


class SessionInfo(BaseModel):
    """Who is signed in, what they act for, and the token that pages send with what they change."""

    id: str
    object: Literal["session"] = "session"
    user: UserInfo
    tenant_id: str | None
    role: str | None
    permissions: list[str]
    tenants: list[TenantOfUser]
    provider_id: str | None
    created_at: int
    expires_at: int
    csrf_token: str


class SessionItem(BaseModel):
    """One of a person's sessions."""

    id: str
    object: Literal["session"] = "session"
    tenant_id: str | None
    provider_id: str | None
    ip_address: str
    user_agent: str
    created_at: int
    last_seen_at: int
    expires_at: int
    is_current: bool


class SessionList(BaseModel):
    """All of a person's sessions."""

    object: Literal["list"] = "list"
    data: list[SessionItem]
    has_more: bool = False


class Done(BaseModel):
    """What was asked for is done, and there is nothing to say of it."""

    object: Literal["done"] = "done"


class Joined(BaseModel):
    """An invite was accepted."""

    object: Literal["invite.accepted"] = "invite.accepted"
    tenant_id: str


def session_to_wire(row: UserSession, current_hash: str) -> SessionItem:
    return SessionItem(
        id=row.id,
        tenant_id=row.tenant_id,
        provider_id=row.provider_id,
        ip_address=row.ip_address,
        user_agent=row.user_agent,
        created_at=row.created_at,
        last_seen_at=row.last_seen_at,
        expires_at=row.expires_at,
        is_current=row.secret_hash == current_hash,
    )
