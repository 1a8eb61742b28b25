"""Members, invites and accounts on the wire, in OpenAI's shapes where it has them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from weft.db.ids import now
from weft.db.lists import ListItem
from weft.tenancy.emails import MAX_EMAIL_CHARS
from weft.tenancy.invites import NewInvite
from weft.tenancy.schemas import Body
from weft.tenancy.user_models import Invite, Membership, User


class InviteProject(Body):
    """OpenAI's; our roles hold for all of a tenant's projects."""

    id: str = Field(max_length=64)
    role: Literal["member", "owner"]


class InviteCreate(Body):
    """Body of `POST /v1/organization/invites`."""

    email: str = Field(max_length=MAX_EMAIL_CHARS)
    role: str = Field(max_length=32)
    projects: list[InviteProject] | None = Field(default=None, max_length=0)


class RoleChange(Body):
    """Body of `POST /v1/organization/users/{id}`."""

    role: str = Field(max_length=32)


class UserCreate(Body):
    """Body of `POST /admin/v1/users`: an account whose password is set by its reset token."""

    email: str = Field(max_length=MAX_EMAIL_CHARS)
    name: str = Field(default="", max_length=128)
    is_operator: bool = False


class MemberObject(ListItem):
    """OpenAI's organization user; the roles are ours."""

    object: Literal["organization.user"] = "organization.user"
    email: str
    name: str
    role: str
    added_at: int

    @classmethod
    def of(cls, membership: Membership, user: User) -> MemberObject:
        return cls(
            id=user.id,
            email=user.email,
            name=user.name,
            role=membership.role,
            added_at=membership.created_at,
        )


class ProjectOfInvite(BaseModel):
    """OpenAI's; an invite is to all of a tenant's projects, so there are none."""

    id: str
    role: Literal["member", "owner"]


class InviteObject(ListItem):
    """OpenAI's invite."""

    object: Literal["organization.invite"] = "organization.invite"
    email: str
    role: str
    status: Literal["accepted", "expired", "pending"]
    created_at: int
    expires_at: int
    accepted_at: int | None
    projects: list[ProjectOfInvite] = []

    @classmethod
    def of(cls, row: Invite) -> InviteObject:
        is_over = now() >= row.expires_at
        return cls(
            id=row.id,
            email=row.email,
            role=row.role,
            status="accepted" if row.accepted_at else "expired" if is_over else "pending",
            created_at=row.created_at,
            expires_at=row.expires_at,
            accepted_at=row.accepted_at,
        )


class NewInviteObject(InviteObject):
    """An invite with its token: the only time that it is shown."""

    token: str

    @classmethod
    def of_new(cls, invite: NewInvite) -> NewInviteObject:
        return cls(**InviteObject.of(invite.row).model_dump(), token=invite.token)


class UserObject(ListItem):
    """A person, to operators."""

    object: Literal["user"] = "user"
    email: str
    name: str
    is_operator: bool
    has_password: bool
    created_at: int
    disabled_at: int | None

    @classmethod
    def of(cls, user: User) -> UserObject:
        return cls(
            id=user.id,
            email=user.email,
            name=user.name,
            is_operator=user.is_operator,
            has_password=user.password_hash is not None,
            created_at=user.created_at,
            disabled_at=user.disabled_at,
        )


class UserWithReset(UserObject):
    """With the token that sets the account's password once: the only time that it is shown."""

    reset_token: str
    reset_expires_at: int

    @classmethod
    def of_reset(cls, user: User, token: str, expires_at: int) -> UserWithReset:
        known = UserObject.of(user).model_dump()
        return cls(**known, reset_token=token, reset_expires_at=expires_at)
