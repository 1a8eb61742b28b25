"""Rate-limit headers on every answer of an inference route, errors included.

An answer that came to a reservation, or was refused one, has its headers already; for the others
the limiter is asked what is left. There are none where nobody is known to have asked.
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from weft.errors import WeftError
from weft.gateway.runtime import Gateway
from weft.tenancy.auth import identify
from weft.tenancy.principal import Principal

INFERENCE_PATHS = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/generate", "/generate_stream", "/"}
)


class RateLimitHeaders:
    """Outermost, so that it sees answers of the layers below as well as of the routes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_inference = (
            scope["type"] == "http"
            and scope["method"] == "POST"
            and scope["path"] in INFERENCE_PATHS
        )
        if not is_inference:
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            # who is nobody's key is not looked up once more
            if message["type"] == "http.response.start" and message["status"] != 401:
                given = message.get("headers", ())
                if not any(name.startswith(b"x-ratelimit-") for name, _ in given):
                    own = await _headers(scope)
                    message["headers"] = [
                        *given,
                        *((k.encode(), v.encode()) for k, v in own.items()),
                    ]
            await send(message)

        await self._app(scope, receive, send_with_headers)


async def _headers(scope: Scope) -> Mapping[str, str]:
    known: Mapping[str, str] | None = scope.get("state", {}).get("rate_limit_headers")
    if known is not None:
        return known
    request = Request(scope)
    try:
        # a body that cannot be read is refused before anybody asks whose it is
        who = await identify(request)
        if not isinstance(who, Principal):
            return {}
        gateway: Gateway = request.app.state.gateway
        return await gateway.admission.headers(gateway.subjects(who))
    except WeftError:  # nobody, or no database: the answer does not depend on these headers
        return {}
