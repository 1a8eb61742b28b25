"""`Idempotency-Key`: the same request again has one effect.

A key belongs to a tenant. What it brought about is committed in the same transaction as the key, so
that a crash leaves both or neither.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass

from weft.db.ids import now
from weft.errors import ConflictError, InvalidRequestError
from weft.registry.models import AdapterVersion, IdempotencyKey
from weft.registry.repository import RegistryRepository

# what the keys of most clients are good for: they retry for minutes
KEPT_S = 24 * 3600
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(frozen=True, slots=True)
class KeyedRequest:
    """A request with a key. `fingerprint` tells it from another one with the same key."""

    key: str
    fingerprint: str = ""

    def about(self, *what: object) -> KeyedRequest:
        """With the fingerprint of what is asked for."""
        text = json.dumps(what, sort_keys=True, separators=(",", ":"))
        return dataclasses.replace(self, fingerprint=hashlib.sha256(text.encode()).hexdigest())

    def to_row(self, version: AdapterVersion, status_code: int) -> IdempotencyKey:
        return IdempotencyKey(
            tenant_id=version.tenant_id,
            key=self.key,
            fingerprint=self.fingerprint,
            version_id=version.id,
            status_code=status_code,
            created_at=now(),
        )


def try_parse_key(header: str | None) -> KeyedRequest | None:
    """None where there is no header; InvalidRequestError for one that is no key."""
    if header is None:
        return None
    if _KEY.fullmatch(header) is None:
        raise InvalidRequestError(
            "An Idempotency-Key is 1 to 255 visible ASCII characters.", param="Idempotency-Key"
        )
    return KeyedRequest(header)


async def find_replay(
    repository: RegistryRepository, request: KeyedRequest | None
) -> tuple[AdapterVersion, int] | None:
    """What the key brought about before, with its status; ConflictError for another request."""
    if request is None:
        return None
    row = await repository.find_idempotency_key(request.key)
    if row is None:
        return None
    if row.fingerprint != request.fingerprint:
        raise ConflictError(
            "This Idempotency-Key was used for another request.",
            param="Idempotency-Key",
            code="idempotency_conflict",
        )
    version = await repository.find_version_by_id(row.version_id)
    assert version is not None, "rows of versions stay"
    return version, row.status_code
