"""Tenants and projects on the wire, in OpenAI's shapes where it has them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from weft.db.lists import ListItem
from weft.tenancy.models import Project, Tenant


class Body(BaseModel):
    """What a request may say: nothing else, and of these types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TenantCreate(Body):
    """Body of `POST /admin/v1/tenants`."""

    name: str


class TenantUpdate(Body):
    """Body of `POST /admin/v1/tenants/{tenant}`."""

    include_obfuscation: bool


class ProjectName(Body):
    """Body of `POST /v1/organization/projects` and `.../projects/{id}`."""

    name: str


class TenantObject(ListItem):
    """A tenant."""

    object: Literal["tenant"] = "tenant"
    name: str
    status: Literal["active", "suspended"]
    created_at: int
    suspended_at: int | None
    include_obfuscation: bool

    @classmethod
    def of(cls, row: Tenant) -> TenantObject:
        return cls(
            id=row.id,
            name=row.name,
            status="active" if row.suspended_at is None else "suspended",
            created_at=row.created_at,
            suspended_at=row.suspended_at,
            include_obfuscation=row.include_obfuscation,
        )


class Deleted(BaseModel):
    """What is gone."""

    id: str
    object: str
    deleted: Literal[True] = True


class ProjectObject(ListItem):
    """OpenAI's project."""

    object: Literal["organization.project"] = "organization.project"
    name: str
    status: Literal["active", "archived"]
    created_at: int
    archived_at: int | None

    @classmethod
    def of(cls, row: Project) -> ProjectObject:
        return cls(
            id=row.id,
            name=row.name,
            status="active" if row.archived_at is None else "archived",
            created_at=row.created_at,
            archived_at=row.archived_at,
        )
