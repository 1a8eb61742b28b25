"""Queries on the requests that are under way, and on how they end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import bindparam, delete, insert, update

from weft.db.dialect import database_now_ms
from weft.db.prepared import Prepared, Values
from weft.db.scope import TENANT_PARAMETER, Owner, scoped_by_parameter, unscoped
from weft.db.transactions import Transaction, fetch
from weft.usage.models import OutboxMessage, Replica, UsageEvent, UsagePending


class Pending(NamedTuple):
    """A row of a request that is under way, taken away to end it."""

    event_id: str
    tenant_id: str
    project_id: str
    api_key_id: str
    model: str
    base_model: str
    adapter_id: str | None
    adapter_version: int | None
    adapter_digest: str | None
    started_at_ms: int
    replica_id: str
    engine_id: str | None
    price_id: str | None
    hold_pico: int
    budget_holds: list[list[str | int]]


_ADD_PENDING = Prepared(insert(UsagePending))
_ADD_EVENT = Prepared(insert(UsageEvent))
_ADD_MESSAGE = Prepared(
    insert(OutboxMessage).values(
        {column.key: bindparam(column.key) for column in OutboxMessage.__table__.columns}
        | {"claimed_until_ms": 0, "num_attempts": 0, "delivered_at_ms": None}
    )
)
_TAKE = (
    delete(UsagePending)
    .where(UsagePending.event_id == bindparam("taken_id"))
    .returning(*(getattr(UsagePending, name) for name in Pending._fields))
)
_TAKE_OF_TENANT = Prepared(scoped_by_parameter(_TAKE))
_TAKE_OF_ANY = Prepared(unscoped(_TAKE, "a replica meters the requests of all tenants"))
_TAKE_SEQS = Prepared(
    unscoped(
        update(Replica)
        .where(Replica.id == bindparam("replica_id"))
        .values(last_seq=Replica.last_seq + bindparam("num_events"))
        .returning(Replica.last_seq, database_now_ms()),
        "a replica numbers the events of all tenants",
    )
)


async def add_pending(tx: Transaction, rows: Sequence[Pending]) -> None:
    await tx.run(_ADD_PENDING, [row._asdict() for row in rows])


async def add_events(tx: Transaction, events: Sequence[Values], messages: Sequence[Values]) -> None:
    await tx.run(_ADD_EVENT, events)
    await tx.run(_ADD_MESSAGE, messages)


async def take_pending(
    tx: Transaction, wanted: Sequence[tuple[str, Owner]]
) -> list[Pending | None]:
    """Remove pending rows by their event's id; those that are still there are the caller's to
    settle."""
    values = [
        {"taken_id": event_id, TENANT_PARAMETER: owner.tenant_id} for event_id, owner in wanted
    ]
    found = await fetch(tx, _TAKE_OF_TENANT, values)
    return [Pending._make(rows[0]) if rows else None for rows in found]


async def take_pending_of_any(tx: Transaction, event_ids: Sequence[str]) -> list[Pending]:
    """The same across tenants, without those that are gone."""
    found = await fetch(tx, _TAKE_OF_ANY, [{"taken_id": event_id} for event_id in event_ids])
    return [Pending._make(row) for rows in found for row in rows]


async def take_seqs(tx: Transaction, num_events: Mapping[str, int]) -> dict[str, tuple[range, int]]:
    """The next numbers of each replica's events, and the time in ms.

    The replicas' rows stay locked until the commit, so that numbers are committed in order.
    """
    replica_ids = sorted(num_events)
    values = [{"replica_id": id_, "num_events": num_events[id_]} for id_ in replica_ids]
    taken = {}
    for id_, ((last_seq, now_ms),) in zip(
        replica_ids, await fetch(tx, _TAKE_SEQS, values), strict=True
    ):
        taken[id_] = range(last_seq - num_events[id_] + 1, last_seq + 1), now_ms
    return taken
