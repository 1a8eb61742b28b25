"""The hash of an entry, and what is wrong with a chain of them. Pure: knows no database.

An entry's hash is over its fields and the hash of the entry before, so that nothing can be altered,
removed or put between without a break from there on. Who can write to the database could compute
the whole chain anew: what shows that is a copy of the chain's head that is kept elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

PLATFORM = "platform"
FIRST_HASH = "0" * 64
# the first field of what is hashed: another form of entries would have another number
_FORM = 1


class Entry(Protocol):
    """What is hashed of an entry, and the hashes."""

    id: str
    chain: str
    number: int
    tenant_id: str | None
    recorded_at_ms: int
    type: str
    actor_kind: str
    actor_id: str
    actor_tenant_id: str | None
    ip: str | None
    user_agent: str | None
    target_id: str
    changes: str
    previous_hash: str
    hash: str


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a chain: how many entries it has, and the hash of the last."""

    chain: str
    number: int
    hash: str


def hash_entry(entry: Entry) -> str:
    """SHA-256, in hex, of the entry's fields as canonical JSON."""
    fields = (
        _FORM,
        entry.previous_hash,
        entry.chain,
        entry.number,
        entry.id,
        entry.tenant_id,
        entry.recorded_at_ms,
        entry.type,
        entry.actor_kind,
        entry.actor_id,
        entry.actor_tenant_id,
        entry.ip,
        entry.user_agent,
        entry.target_id,
        entry.changes,
    )
    return hashlib.sha256(json.dumps(fields, separators=(",", ":")).encode()).hexdigest()


class ChainCheck:
    """Walks one chain from its first entry. `add` each, then `end`; both give what is wrong.

    After a break it goes on from what it finds, so that one alteration is one fault, not one for
    every entry behind it.
    """

    def __init__(self, chain: str, known: Head | None = None) -> None:
        """`known`: a head of the chain from earlier, kept elsewhere."""
        self._at = Head(chain, 0, FIRST_HASH)
        self._known = known

    def add(self, entry: Entry) -> Iterator[str]:
        chain, at = self._at.chain, self._at
        if entry.number != at.number + 1:
            missing = _span(at.number + 1, entry.number - 1)
            yield f"{chain}: {missing} missing before entry {entry.number}"
        elif entry.previous_hash != at.hash:
            yield f"{chain}: entry {entry.number} ({entry.id}) does not follow the one before"
        if hash_entry(entry) != entry.hash:
            yield f"{chain}: entry {entry.number} ({entry.id}) was altered"
        known = self._known
        if known is not None and entry.number == known.number and entry.hash != known.hash:
            yield f"{chain}: entry {entry.number} ({entry.id}) is not the one that was there before"
        self._at = Head(chain, entry.number, entry.hash)

    def end(self, head: Head | None) -> Iterator[str]:
        chain, at = self._at.chain, self._at
        if self._known is not None and at.number < self._known.number:
            missing = _span(at.number + 1, self._known.number)
            yield f"{chain}: {missing} missing at the end, which was there before"
        if head is None:
            yield f"{chain}: its head is missing"
        elif head.number > at.number:
            yield f"{chain}: {_span(at.number + 1, head.number)} missing at the end"
        elif head != at:
            yield f"{chain}: its head is not its last entry, {at.number}"


def _span(first: int, last: int) -> str:
    return f"entry {first} is" if first == last else f"entries {first} to {last} are"
