"""The audit trail: who changed what, in a chain of hashes that shows what was altered later.

    async with database.writing() as session:
        ...the change itself...
        await record(session, actor, "api_key.created", Target(key.id, tenant_id), {"name": name})

The entry is written in the transaction of the change: there is neither without the other.
"""

from weft.audit.actor import SYSTEM, Actor, ActorKind
from weft.audit.service import Target, record

__all__ = ["SYSTEM", "Actor", "ActorKind", "Target", "record"]
