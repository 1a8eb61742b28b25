"""An endpoint that is called directly answers as it does through FastAPI."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import Depends, FastAPI, Query, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import JSONResponse, Response

from weft.errors import PermissionDeniedError
from weft.gateway.direct_routes import DirectRoutes
from weft.gateway.error_handlers import install_error_handlers

JSON = "application/json"


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    counts: list[int] | None = None


async def allow(request: Request) -> None:
    if "x-stranger" in request.headers:
        raise PermissionDeniedError("No strangers.")


async def name_of(request: Request) -> str:
    return request.headers.get("x-name", "nobody")


Caller = Annotated[str, Depends(name_of)]


async def show(caller: Caller, body: Body, request: Request) -> Response:
    return JSONResponse({"caller": caller, "body": body.model_dump(), "path": request.url.path})


def create(endpoint: Any, *, is_direct: bool) -> FastAPI:
    app = FastAPI()
    install_error_handlers(app)
    app.post("/show", dependencies=[Depends(allow)])(endpoint)
    if is_direct:
        app.add_middleware(DirectRoutes, routes=app.routes, endpoints=(endpoint,))
    return app


@pytest.mark.parametrize(
    ("headers", "content"),
    [
        ({"x-name": "acme"}, b'{"name": "x", "counts": [1, 2]}'),
        ({"content-type": "application/problem+json; charset=utf-8"}, b'{"name": "x"}'),
        ({}, b'{"name": "x", "counts": [1.5]}'),
        ({}, b'{"name": "x", "other": 1}'),
        ({}, b'{"counts": []}'),
        ({}, b"[]"),
        ({}, b"null"),
        ({}, b'"name"'),
        ({}, b""),
        ({}, b"{"),
        ({}, b'{"name": "\xff"}'),
        ({}, b'{"name": ' + b"1" * 5000 + b"}"),
        ({"content-type": "text/plain"}, b'{"name": "x"}'),
        ({"content-type": "text/json"}, b'{"name": "x"}'),
        ({"content-type": ""}, b'{"name": "x"}'),
        # what is no JSON is refused before anybody asks who sent it, what says nothing after
        ({"x-stranger": "1"}, b"{"),
        ({"x-stranger": "1"}, b'{"name": 1}'),
        ({"x-stranger": "1"}, b""),
    ],
)
async def test_answers_are_those_of_fastapi(headers: dict[str, str], content: bytes) -> None:
    answers = []
    for is_direct in (True, False):
        transport = httpx2.ASGITransport(create(show, is_direct=is_direct))
        async with httpx2.AsyncClient(transport=transport, base_url="http://a") as http:
            given = {"content-type": JSON, **headers}
            answer = await http.post("/show", content=content, headers=given)
            answers.append((answer.status_code, answer.json()))
            assert (await http.get("/show")).status_code == 405
    assert answers[0] == answers[1]


async def ask_query(body: Body, limit: Annotated[int, Query()] = 1) -> Response:
    return JSONResponse({})


async def ask_no_body(request: Request) -> Response:
    return JSONResponse({})


async def _session() -> AsyncIterator[int]:
    yield 1


async def ask_session(body: Body, session: Annotated[int, Depends(_session)]) -> Response:
    return JSONResponse({})


def _sync(request: Request) -> int:
    return 1


async def ask_sync(body: Body, value: Annotated[int, Depends(_sync)]) -> Response:
    return JSONResponse({})


async def _nested(caller: Caller) -> str:
    return caller


async def ask_nested(body: Body, value: Annotated[str, Depends(_nested)]) -> Response:
    return JSONResponse({})


@pytest.mark.parametrize("endpoint", [ask_query, ask_no_body, ask_session, ask_sync, ask_nested])
def test_an_endpoint_that_needs_more_is_refused(endpoint: Any) -> None:
    with pytest.raises(TypeError, match="/show"):
        create(endpoint, is_direct=True).build_middleware_stack()


def test_an_endpoint_without_a_route_is_refused() -> None:
    app = create(show, is_direct=False)
    with pytest.raises(TypeError, match="0 routes for 1 endpoints"):
        DirectRoutes(app, app.routes, (ask_query,))
