"""What is asked of the audit trail: a page of one chain's entries, newest first."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from weft.audit.chain import PLATFORM
from weft.audit.models import AuditEntry
from weft.audit.repository import AuditRepository, Found
from weft.db.paging import Page
from weft.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """`after` and `before` are ids of entries: the page behind the one, or in front of the other.

    `since` is the first second that is wanted, `until` the first that is not. Empty: all.
    """

    limit: int = 20
    after: str | None = None
    before: str | None = None
    types: tuple[str, ...] = ()
    actor_ids: tuple[str, ...] = ()
    target_ids: tuple[str, ...] = ()
    since: int | None = None
    until: int | None = None


async def read_page(
    session: AsyncSession, tenant_id: str | None, query: AuditQuery
) -> Page[AuditEntry]:
    """Of the tenant's chain, or the platform's. InvalidRequestError for a cursor that is none."""
    chain = PLATFORM if tenant_id is None else tenant_id
    repository = AuditRepository(session)
    if query.after is not None and query.before is not None:
        raise InvalidRequestError("Give either 'after' or 'before'.", param="before")
    numbers = {}
    for name, entry_id in (("after", query.after), ("before", query.before)):
        if entry_id is not None:
            numbers[name] = await repository.find_number(chain, entry_id)
            if numbers[name] is None:
                raise InvalidRequestError(f"'{name}' is the id of no entry.", param=name)
    found = Found(
        chain,
        numbers.get("after"),
        numbers.get("before"),
        query.types,
        query.actor_ids,
        query.target_ids,
        None if query.since is None else 1000 * query.since,
        None if query.until is None else 1000 * query.until,
    )
    rows = await repository.find(found, query.limit + 1)
    page = rows[: query.limit]
    if query.before is not None:
        page.reverse()
    return Page(page, len(rows) > query.limit)
