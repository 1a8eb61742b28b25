"""Adds to the audit trail, and verifies it. `record` works in the caller's transaction."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from weft.audit.actor import Actor
from weft.audit.chain import PLATFORM, ChainCheck, Head, hash_entry
from weft.audit.models import AuditEntry
from weft.audit.repository import AuditRepository
from weft.db.ids import create_id, now_ms
from weft.telemetry.redaction import printable, redacted

_TYPE = re.compile(r"[a-z][a-z_]*(\.[a-z][a-z_]*)+")
_MAX_TYPE, _MAX_USER_AGENT, _MAX_ID = 64, 256, 255


@dataclass(frozen=True, slots=True)
class Target:
    """What was changed: its id, and the tenant it belongs to (None: it is the platform's)."""

    id: str
    tenant_id: str | None = None


async def record(
    session: AsyncSession,
    actor: Actor,
    event_type: str,
    target: Target,
    changes: Mapping[str, object],
) -> AuditEntry:
    """Add an entry to the chain of the target's tenant, or to the platform's.

    `event_type` is `<noun>.<what was done>`, in OpenAI's words where it has them:
    `api_key.created`, `project.archived`, `rate_limit.updated`, `login.failed`. `changes` says in
    what JSON has what was asked for, or came of it; what looks like a secret is replaced in it.

    The chain's end is locked until the transaction is over. Call it once the change itself has been
    flushed, and never for two chains in one transaction: two of those could wait for each other.
    """
    if _TYPE.fullmatch(event_type) is None or len(event_type) > _MAX_TYPE:
        raise ValueError(f"{event_type!r} is no type of audit entries")
    chain = PLATFORM if target.tenant_id is None else target.tenant_id
    repository = AuditRepository(session)
    head = await repository.hold_head(chain)
    agent = actor.user_agent
    entry = AuditEntry(
        id=create_id("audit_log"),
        chain=chain,
        number=head.number + 1,
        tenant_id=target.tenant_id,
        recorded_at_ms=now_ms(),
        type=event_type,
        actor_kind=actor.kind,
        actor_id=actor.id,
        actor_tenant_id=actor.tenant_id,
        ip=actor.ip,
        user_agent=None if agent is None else printable(str(redacted(agent)), _MAX_USER_AGENT),
        target_id=printable(target.id, _MAX_ID),
        changes=_canonical(redacted(changes)),
        previous_hash=head.hash,
    )
    entry.hash = hash_entry(entry)
    await repository.append(entry)
    return entry


def _canonical(changes: object) -> str:
    return json.dumps(changes, sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, slots=True)
class Verified:
    """What a verification found: today's heads, and a sentence for each fault."""

    heads: tuple[Head, ...]
    num_entries: int
    faults: tuple[str, ...]


async def verify(session: AsyncSession, known: Mapping[str, Head] | None = None) -> Verified:
    """Walk every chain. `known`: heads from earlier, kept elsewhere, that must still be in it."""
    repository = AuditRepository(session)
    known = known or {}
    heads = {head.chain: head for head in await repository.list_heads()}
    chains = sorted({*heads, *await repository.list_chains(), *known})
    faults: list[str] = []
    num_entries = 0
    for chain in chains:
        check = ChainCheck(chain, known.get(chain))
        async for entry in repository.walk(chain):
            faults += check.add(entry)
            num_entries += 1
        faults += check.end(heads.get(chain))
    return Verified(tuple(heads.values()), num_entries, tuple(faults))
