"""Requests to OpenID providers: to the addresses that they gave, over TLS, and never for long.

A provider is one that the operator named, and still its answers are bounded: in bytes (compressed
ones are refused), in time, and to the host that was asked (no redirects).
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import httpx2

from weft.errors import WeftError
from weft.settings.sign_in import is_loopback

MAX_ANSWER_BYTES = 1024 * 1024
TIMEOUT_S = 10.0


class ProviderError(WeftError):
    """The provider cannot be reached or answers what OpenID Connect does not allow."""

    status_code = 502
    type = "server_error"
    code = "provider_error"


def check_url(url: object, what: str) -> str:
    """`url`, if it is https, or http on this machine; ProviderError for others."""
    if not isinstance(url, str) or len(url) > 2048:
        raise ProviderError(f"The provider's {what} is no URL.")
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        raise ProviderError(f"The provider's {what} is no URL.") from None
    is_safe = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))
    if not is_safe or not host or parts.username or parts.fragment:
        raise ProviderError(f"The provider's {what} must be an https URL.")
    return url


@functools.cache
def _trust() -> ssl.SSLContext:
    """The authorities that httpx2 trusts: read once, as they hold the event loop up for 25 ms."""
    return httpx2.create_ssl_context()


class CappedTransport(httpx2.AsyncBaseTransport):
    """Answers of at most `MAX_ANSWER_BYTES`, as they are sent."""

    def __init__(self) -> None:
        self._inner = httpx2.AsyncHTTPTransport(verify=_trust())

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        request.headers["accept-encoding"] = "identity"
        answer = await self._inner.handle_async_request(request)
        if answer.headers.get("content-encoding", "identity") != "identity":
            await answer.aclose()
            raise httpx2.DecodingError("compressed, which was not asked for", request=request)
        assert isinstance(answer.stream, httpx2.AsyncByteStream)
        stream = _Capped(answer.stream, request)
        return httpx2.Response(
            answer.status_code, headers=answer.headers, stream=stream, extensions=answer.extensions
        )

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Capped(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, request: httpx2.Request) -> None:
        self._stream = stream
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        num_bytes = 0
        async for chunk in self._stream:
            num_bytes += len(chunk)
            if num_bytes > MAX_ANSWER_BYTES:
                raise httpx2.ReadError("the answer is too long", request=self._request)
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


async def fetch_json(url: str, what: str) -> dict[str, Any]:
    """The JSON object at `url`; ProviderError, which says why, for anything else."""
    try:
        async with (
            asyncio.timeout(TIMEOUT_S),
            httpx2.AsyncClient(transport=CappedTransport(), follow_redirects=False) as client,
        ):
            answer = await client.get(url, headers={"accept": "application/json"})
    except (httpx2.HTTPError, TimeoutError) as error:
        raise ProviderError(f"The provider's {what} could not be read.") from error
    if answer.status_code != 200:
        raise ProviderError(f"The provider's {what} could not be read: {answer.status_code}.")
    try:
        found = answer.json()
    except ValueError:
        raise ProviderError(f"The provider's {what} is no JSON.") from None
    if not isinstance(found, dict):
        raise ProviderError(f"The provider's {what} is no JSON object.")
    return found
