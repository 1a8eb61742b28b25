"""Names of KV blocks by content: a chain of sha256 over everything that their values depend on.

    h[0] = H(root, tokens of block 0),   h[i] = H(h[i-1], tokens of block i)

The root is a list of tagged values, so that a tenant's name can never be read as an adapter's
digest. Two requests share a block only when base, adapter, tenant, salt and number format agree.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from weft.messages import EngineRequest

_VERSION = 1


@dataclass(frozen=True, slots=True)
class PrefixRoots:
    """Roots of the chains of one engine.

    `kv_format` names how keys and values are computed and stored. `shares_base`: prompts to the
    base model itself may be shared between tenants (an operator's choice: it lets one tenant
    measure whether another has sent a prompt).
    """

    base_digest: str
    kv_format: str
    shares_base: bool = False

    def root(self, request: EngineRequest) -> bytes:
        is_shared = self.shares_base and request.adapter_digest is None
        tagged = [
            ["weft-kv", _VERSION],
            ["base", self.base_digest],
            ["adapter", request.adapter_digest],
            ["tenant", None if is_shared else request.tenant_id],
            ["salt", request.cache_salt],
            ["format", self.kv_format],
        ]
        return hashlib.sha256(json.dumps(tagged).encode()).digest()


def extend_chain(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The hash of the block that holds `token_ids` after the prefix named by `parent`."""
    return hashlib.sha256(parent + array("I", token_ids).tobytes()).digest()


def chain(
    root: bytes, known: list[bytes], token_ids: Sequence[int], num_tokens: int, block_size: int
) -> list[bytes]:
    """Extend `known` in place to all full blocks of the first `num_tokens` tokens."""
    for i in range(len(known), num_tokens // block_size):
        parent = known[-1] if known else root
        known.append(extend_chain(parent, token_ids[i * block_size : (i + 1) * block_size]))
    return known
