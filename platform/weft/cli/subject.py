"""Whose limit or budget a command is about: a tenant, something of its own, or a base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli.output import fail

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from weft.db.scope import Owner
    from weft.limits.subjects import Subject, SubjectKind

TenantOption = Annotated[str | None, typer.Option("--tenant", help="The tenant's name or id.")]
ProjectOption = Annotated[
    str | None, typer.Option("--project", help="One of its projects: a name or an id.")
]
KeyOption = Annotated[str | None, typer.Option("--key", help="One of its keys: an id.")]
AdapterOption = Annotated[
    str | None, typer.Option("--adapter", help="One of its adapters: a name or an id.")
]
BaseOption = Annotated[
    str | None, typer.Option("--base", help="Instead of --tenant: a base model's name.")
]


async def owner_of(session: AsyncSession, tenant: str | None) -> Owner | None:
    """None, which has the bases, without a tenant."""
    from weft.tenancy.service import get_owner

    return None if tenant is None else await get_owner(session, tenant)


def subject_text(row: dict[str, Any]) -> str:
    """Whose a limit or a budget is, for people."""
    return f"{row['subject']['kind']} {row['subject']['id']}"


@dataclass(frozen=True, slots=True)
class SubjectOptions:
    """The options as they were given."""

    tenant: str | None = None
    project: str | None = None
    key: str | None = None
    adapter: str | None = None
    base: str | None = None

    def check(self) -> None:
        """A command about two things, or none, is refused."""
        parts = [part for part in (self.project, self.key, self.adapter) if part is not None]
        if (self.tenant is None) == (self.base is None):
            raise fail("give either --tenant or --base")
        if len(parts) > 1 or (parts and self.tenant is None):
            raise fail("give --tenant with one of --project, --key and --adapter, or with none")

    async def find(self, session: AsyncSession) -> tuple[Owner | None, Subject]:
        """The subject and whose it is."""
        from weft.registry.subjects import find_subject

        owner = await owner_of(session, self.tenant)
        kinds: tuple[SubjectKind, ...] = ("project", "key", "adapter", "base")
        for kind in kinds:
            named = getattr(self, kind)
            if named is not None:
                return owner, await find_subject(session, owner, kind, named)
        return owner, await find_subject(session, owner, "tenant", None)
