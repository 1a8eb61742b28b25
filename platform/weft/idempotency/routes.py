"""Routes whose POST takes an `Idempotency-Key`.

A route whose effect is one transaction (`WriteSession`) needs nothing else: the key is looked up
and the answer kept within it, and as such transactions run one at a time, the same request at the
same time waits and gets the answer. Any other route has `HeldKey` among its parameters, after who
calls: while one request is at work the same key is 409, and what a crash has cut off is done again,
which such a route has to allow for. It may keep its answer itself, in a transaction of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Annotated, Any, Protocol

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute
from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.database import Database
from weft.db.dependencies import DatabaseDep
from weft.db.leases import create_holder, holding
from weft.errors import ConflictError, InvalidRequestError
from weft.idempotency.claims import HEADER, KEPT_S, MAX_KEY_CHARS, Answer, Claim

# a crash keeps a key from being used again for as long
_HELD_S = 12.0
_KEPT_HEADERS = ("content-type", "location")
REPLAYED = "Idempotent-Replayed"
PARAMETER = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "description": (
        "Makes the request safe to repeat: the same key with the same request, from the same "
        f"caller, is answered as it was the first time for {KEPT_S // 3600} hours, with the header "
        f"`{REPLAYED}: true`. With another request it is 409."
    ),
    "schema": {
        "type": "string",
        "minLength": 1,
        "maxLength": MAX_KEY_CHARS,
        "pattern": "^[!-~]+$",
    },
}
REPLAYED_HEADER = {
    "description": f"`true` where the answer was kept for the request's {HEADER}.",
    "schema": {"type": "string", "const": "true"},
}


class Caller(Protocol):
    """Who sent a request."""

    @property
    def caller(self) -> str:
        """A text that is of nobody else."""


class Replay(Exception):
    """Ends a request whose answer was kept."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status_code)
        self.answer = answer


class KeyedRequest:
    """A request with a key, from its route's start to its answer."""

    def __init__(self, request: Request, route: str) -> None:
        self._request, self._route = request, route
        self._claim: Claim | None = None
        self._session: AsyncSession | None = None
        self._database: Database | None = None

    def _create_claim(self) -> Claim:
        keys = self._request.headers.getlist(HEADER)
        if len(keys) != 1:
            raise InvalidRequestError(f"Send one {HEADER}.", param=HEADER)
        # the route's mark has found out who it is
        who: Caller = self._request.state.identity
        secret: bytes = self._request.app.state.idempotency_secret
        return Claim(secret, who.caller, self._route, keys[0])

    async def enter(self, session: AsyncSession) -> None:
        """Replay, or else go on in this transaction, in which the answer is kept."""
        self._claim = self._create_claim()
        await self.look_up(session, await self._body_text())
        self._session = session

    @asynccontextmanager
    async def holding(self, database: Database, *, may_be_files: bool) -> AsyncIterator[None]:
        """ConflictError while another request with this key is at work."""
        self._claim, self._database = self._create_claim(), database
        name = f"idempotency:{self._claim.id[:48]}"
        async with holding(database, name, create_holder(), duration_s=_HELD_S) as is_held:
            if not is_held:
                raise ConflictError(
                    f"A request with this {HEADER} is at work at this moment.",
                    param=HEADER,
                    code="idempotency_in_progress",
                    retry_after_s=2,
                )
            if not (may_be_files and self._is_multipart):
                async with database.reading() as session:
                    await self.look_up(session, await self._body_text())
            yield

    @property
    def _is_multipart(self) -> bool:
        kind = self._request.headers.get("content-type", "").strip().lower()
        return kind.startswith("multipart/")

    async def _body_text(self) -> str:
        return (await self._request.body()).decode("latin-1")

    async def look_up(self, session: AsyncSession, *content: str) -> None:
        """Replay where an answer was kept; `content` is what the request holds."""
        assert self._claim is not None, "it was entered"
        url = self._request.url
        self._claim.about(self._request.scope["path"], url.query, content)
        answer = await self._claim.find(session)
        if answer is not None:
            raise Replay(answer)

    async def look_up_files(self, *content: str) -> None:
        """As `look_up`, for files that the route has read by itself."""
        assert self._database is not None, "it is held"
        async with self._database.reading() as session:
            await self.look_up(session, *content)

    async def keep(self, session: AsyncSession, answer: Answer) -> None:
        """The answer that the route is going to give, in the transaction that has the effect."""
        assert self._claim is not None, "it is held"
        await self._claim.keep(session, answer)

    async def finish(self, response: Response) -> None:
        """Keep the answer if the route has not."""
        claim = self._claim
        assert claim is not None, f"{self._route} has neither WriteSession nor HeldKey"
        if claim.is_kept or response.status_code >= 400:
            return
        sent = response.headers
        headers = {name: sent[name] for name in _KEPT_HEADERS if name in sent}
        answer = Answer(response.status_code, bytes(response.body).decode(), headers)
        if self._session is not None:
            await claim.keep(self._session, answer)
        else:
            assert self._database is not None
            await self._database.write(lambda session: claim.keep(session, answer))


class KeyedRoute(APIRoute):
    """A route whose POST takes an `Idempotency-Key`. Without one it is as any other."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if "POST" not in (self.methods or ()):
            return handle

        async def handle_once(request: Request) -> Response:
            if HEADER not in request.headers:
                return await handle(request)
            keyed = KeyedRequest(request, f"POST {self.path_format}")
            request.state.keyed = keyed
            try:
                response = await handle(request)
            except Replay as replay:
                return _replayed(replay.answer)
            # the route's dependencies are still open: a transaction is committed after this
            await keyed.finish(response)
            return response

        return handle_once


def _replayed(answer: Answer) -> Response:
    headers = {**answer.headers, REPLAYED: "true"}
    return Response(answer.body.encode(), answer.status_code, headers)


def _holding(
    *, may_be_files: bool
) -> Callable[[Request, Database], AsyncIterator[KeyedRequest | None]]:
    async def hold(request: Request, database: DatabaseDep) -> AsyncIterator[KeyedRequest | None]:
        keyed: KeyedRequest | None = getattr(request.state, "keyed", None)
        if keyed is None:
            yield None
            return
        async with keyed.holding(database, may_be_files=may_be_files):
            yield keyed

    return hold


# None where no key was sent
HeldKey = Annotated[KeyedRequest | None, Depends(_holding(may_be_files=False), scope="function")]
# of a route that reads multipart bodies by itself, and then calls `look_up_files`
HeldFilesKey = Annotated[
    KeyedRequest | None, Depends(_holding(may_be_files=True), scope="function")
]
