"""A small application of keyed routes, over a real database: whatever it sells leaves a row."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Annotated, Any

import httpx2
from fastapi import APIRouter, Depends, FastAPI, Request
from pydantic import BaseModel
from sqlalchemy import select

from weft.db.database import Database
from weft.db.dependencies import DatabaseDep, WriteSession
from weft.db.models import SecretMark
from weft.db.scope import unscoped
from weft.errors import ConflictError
from weft.gateway.error_handlers import install_error_handlers
from weft.idempotency.claims import Answer
from weft.idempotency.routes import HeldKey, KeyedRoute

SECRET = bytes(range(32))
router = APIRouter(route_class=KeyedRoute)


class Wanted(BaseModel):
    """What is bought, or ordered."""

    name: str


async def who(request: Request) -> str:
    caller = request.headers.get("x-caller", "api_key:1")
    request.state.identity = SimpleNamespace(caller=caller)
    return caller


Who = Annotated[str, Depends(who)]


@router.post("/things", status_code=201)
async def buy(_who: Who, body: Wanted, session: WriteSession) -> dict[str, str]:
    """One transaction."""
    sold = {"id": secrets.token_hex(8), "secret": f"canary-{secrets.token_hex(16)}"}
    session.add(SecretMark(purpose=sold["id"], mark=body.name))
    await session.flush()
    if body.name == "none left":
        raise ConflictError("There is none left.", code="none_left")
    return sold


@router.post("/orders")
async def order(
    _who: Who, body: Wanted, request: Request, database: DatabaseDep, _keyed: HeldKey
) -> dict[str, str]:
    """A transaction, and something after it; safe to do again."""
    async with database.writing() as session:
        statement = select(SecretMark).where(SecretMark.purpose == body.name)
        if await session.scalar(unscoped(statement, "a test")) is None:
            session.add(SecretMark(purpose=body.name, mark="order"))
    state: Shop = request.app.state.shop
    state.num_orders += 1
    await state.is_delivered.wait()
    return {"name": body.name, "number": str(state.num_orders)}


@router.post("/parcels", status_code=201)
async def send_parcel(_who: Who, request: Request, database: DatabaseDep, keyed: HeldKey) -> Any:
    """Keeps its answer in its own transaction, then may fail."""
    parcel = {"id": secrets.token_hex(8)}
    async with database.writing() as session:
        session.add(SecretMark(purpose=parcel["id"], mark="parcel"))
        if keyed is not None:
            await keyed.keep(session, Answer.of(201, parcel, location=f"/parcels/{parcel['id']}"))
    state: Shop = request.app.state.shop
    if state.loses_parcels:
        raise ConflictError("It fell off the cart.", code="lost")
    return parcel


@dataclass
class Shop:
    """One process's application; several may be over one database."""

    url: str
    is_delivered: asyncio.Event = field(default_factory=asyncio.Event)
    loses_parcels: bool = False
    num_orders: int = 0

    def __post_init__(self) -> None:
        self.is_delivered.set()
        self.database = Database(self.url)
        app = FastAPI()
        app.include_router(router)
        install_error_handlers(app)
        app.state.database = self.database
        app.state.idempotency_secret = SECRET
        app.state.shop = self
        self._http = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=app), base_url="http://shop"
        )

    async def post(
        self, path: str, key: str | None = None, caller: str = "api_key:1", **body: str
    ) -> httpx2.Response:
        headers = {"x-caller": caller}
        if key is not None:
            headers["idempotency-key"] = key
        return await self._http.post(path, json=body, headers=headers)

    async def sold(self) -> list[str]:
        """What has left a row, by its kind."""
        async with self.database.reading() as session:
            statement = unscoped(select(SecretMark.mark), "all that there are")
            return sorted((await session.scalars(statement)).all())

    async def close(self) -> None:
        await self._http.aclose()
        await self.database.close()


@asynccontextmanager
async def open_shop(url: str) -> AsyncIterator[Shop]:
    shop = Shop(url)
    yield shop
    await shop.close()
