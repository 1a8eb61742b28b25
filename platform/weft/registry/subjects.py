"""Finds what a limit or a budget is for, among a tenant's own."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.scope import Owner
from weft.errors import InvalidRequestError, NotFoundError
from weft.limits.subjects import Subject, SubjectKind
from weft.registry.repository import RegistryRepository
from weft.tenancy import key_service, service


async def find_subject(
    session: AsyncSession, owner: Owner | None, kind: SubjectKind, subject_id: str | None
) -> Subject:
    """NotFoundError for what does not exist or is another's; an owner of None has the bases.

    Projects and adapters are found by their names or their ids.
    """
    if (owner is None) != (kind == "base"):
        whose = "Bases have theirs" if kind == "base" else "Tenants have theirs"
        raise InvalidRequestError(f"{whose} under another path.", param="subject.kind")
    if kind == "tenant" and owner is not None and subject_id in (None, owner.tenant_id):
        return Subject("tenant", owner.tenant_id)
    if subject_id is None:
        raise InvalidRequestError(f"Whose, of the kind '{kind}'?", param="subject.id")
    if owner is None:
        return Subject("base", subject_id)
    if kind == "project":
        return Subject(kind, (await service.find_project_to_use(session, owner, subject_id)).id)
    if kind == "key":
        return Subject(kind, (await key_service.get_project_key(session, owner, subject_id)).id)
    if kind == "adapter":
        repository = RegistryRepository(session, owner)
        adapter = await repository.find_adapter(subject_id)
        adapter = adapter or await repository.find_adapter_by_id(subject_id)
        if adapter is not None:
            return Subject(kind, adapter.id)
    raise NotFoundError(f"No {kind} '{subject_id}' exists.")
