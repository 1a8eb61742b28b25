"""What an `Idempotency-Key` stands for, and the answer that is kept under it. Knows no HTTP.

A key is its caller's, and one route's. Its answer is kept in the transaction that has the effect,
so that a crash leaves both or neither; it may hold a secret that is shown once, so it is sealed
with a key that needs the server's secret and the client's: neither the database nor a backup of it
with the server's secret opens it without the request that is repeated.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from pydantic_core import to_json
from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.ids import now
from weft.errors import ConflictError, InvalidRequestError
from weft.idempotency.repository import AnswerRepository
from weft.sealing import seal, unseal

HEADER = "Idempotency-Key"
# clients try again for minutes; a day is what they know from elsewhere
KEPT_S = 24 * 3600
MAX_KEY_CHARS = 255
_KEY = re.compile(rf"[\x21-\x7e]{{1,{MAX_KEY_CHARS}}}")


@dataclass(frozen=True, slots=True)
class Answer:
    """A response as it is given again; `headers` are those that it needs besides every one's."""

    status_code: int
    body: str
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, status_code: int, content: object, **headers: str) -> Answer:
        """JSON of a model; the names of `headers` have no dash."""
        sent = {"content-type": "application/json", **headers}
        return cls(status_code, to_json(content).decode(), sent)


class Claim:
    """One caller's key on one route. `secret`: 32 bytes that the processes share.

    InvalidRequestError for what is no key.
    """

    def __init__(self, secret: bytes, caller: str, route: str, key: str) -> None:
        if _KEY.fullmatch(key) is None:
            raise InvalidRequestError(
                f"An {HEADER} is 1 to {MAX_KEY_CHARS} visible ASCII characters.", param=HEADER
            )
        what = json.dumps([caller, route, key]).encode()
        self.id = hmac.digest(secret, b"id " + what, "sha256").hex()
        self._sealing_key = hmac.digest(secret, b"seal " + what, "sha256")
        self._asked_for = ""
        self.is_kept = False

    def about(self, *what: object) -> None:
        """What is asked for, by which another request with the same key is known."""
        text = json.dumps(what, sort_keys=True, separators=(",", ":"))
        self._asked_for = hashlib.sha256(text.encode()).hexdigest()

    async def find(self, session: AsyncSession) -> Answer | None:
        """The answer that was given; ConflictError where that was to another request."""
        sealed = await AnswerRepository(session).find(self.id, now() - KEPT_S)
        if sealed is None:
            return None
        kept = json.loads(unseal(self._sealing_key, self.id, sealed))
        if kept["asked_for"] != self._asked_for:
            raise ConflictError(
                f"This {HEADER} was used for another request.",
                param=HEADER,
                code="idempotency_conflict",
            )
        return Answer(**kept["answer"])

    async def keep(self, session: AsyncSession, answer: Answer) -> None:
        """In the caller's transaction: the one with the effect."""
        kept = json.dumps({"asked_for": self._asked_for, "answer": asdict(answer)})
        sealed = seal(self._sealing_key, self.id, kept)
        await AnswerRepository(session).keep(self.id, sealed, now())
        self.is_kept = True
