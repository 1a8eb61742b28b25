"""The one way in which the server reads from elsewhere for a tenant: https, from listed hosts.

Every hop is checked anew (see `addresses`); sizes and times are capped; nothing is decoded.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import random
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from weft.registry.addresses import HTTPS_PORT, HostRules
from weft.registry.sources import SourceError

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MISSING = frozenset({401, 403, 404, 410})
_MAX_REDIRECTS = 5
_HEADERS = {"accept": "*/*", "accept-encoding": "identity", "user-agent": "weft"}


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """`timeout_s` is for one attempt at a whole file, `stall_s` for each wait within it."""

    timeout_s: float = 900.0
    stall_s: float = 30.0
    num_attempts: int = 4
    backoff_s: float = 0.5


@dataclass(frozen=True, slots=True)
class Fetched:
    """`headers` are of the first answer, before any redirect; their names are in lower case."""

    num_bytes: int
    sha256: str
    headers: Mapping[str, str]


@dataclass(slots=True)
class _Body:
    """Bytes on their way to a file."""

    path: Path
    max_bytes: int
    num_bytes: int = 0
    sha: hashlib._Hash = field(default_factory=hashlib.sha256)

    def write(self, chunk: bytes) -> None:
        self.num_bytes += len(chunk)
        self.check(self.num_bytes)
        self.sha.update(chunk)
        with self.path.open("ab") as file:
            file.write(chunk)

    def check(self, num_bytes: int) -> None:
        if num_bytes > self.max_bytes:
            raise SourceError(
                "source_too_large", f"{self.path.name} is larger than {self.max_bytes} bytes."
            )


class _PassingError(Exception):
    """The source gave no whole answer this time; another attempt may succeed."""


@functools.cache
def _system_trust() -> ssl.SSLContext:
    """The system's authorities, which take 25 ms to read: once in a process."""
    return ssl.create_default_context()


class Fetcher:
    """Use it as an async context manager. `verify` is the TLS context; its default trusts the
    system's authorities."""

    def __init__(
        self,
        rules: HostRules,
        limits: FetchLimits = FetchLimits(),
        verify: ssl.SSLContext | None = None,
    ) -> None:
        self._rules, self._limits = rules, limits
        timeout = httpx2.Timeout(limits.stall_s)
        # no proxy, no netrc, no cookies: nothing of the server's surroundings goes along
        self._client = httpx2.AsyncClient(
            verify=verify or _system_trust(),
            timeout=timeout,
            trust_env=False,
            follow_redirects=False,
            limits=httpx2.Limits(max_keepalive_connections=0),
        )

    async def close(self) -> None:
        await self._client.aclose()

    def check(self, url: str) -> None:
        """SourceError for a URL that would not be asked for; resolves nothing."""
        parsed = self._parse(url)
        self._rules.check(parsed.host, parsed.port or HTTPS_PORT)

    async def fetch(self, url: str, path: Path, max_bytes: int) -> Fetched:
        """Write the body to the new file `path`; SourceError, which says why not, for the caller's
        eyes."""
        for attempt in range(self._limits.num_attempts):
            if attempt:
                pause_s = self._limits.backoff_s * 2 ** (attempt - 1)
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
            path.unlink(missing_ok=True)
            try:
                async with asyncio.timeout(self._limits.timeout_s):
                    return await self._attempt(url, _Body(path, max_bytes), attempt)
            except (httpx2.TransportError, _PassingError, TimeoutError) as error:
                last = error
        raise SourceError(
            "source_unavailable", f"{path.name} could not be read from its source; try again later."
        ) from last

    async def _attempt(self, url: str, body: _Body, attempt: int) -> Fetched:
        first: dict[str, str] | None = None
        target = self._parse(url)
        for _ in range(_MAX_REDIRECTS + 1):
            request = await self._request(target, attempt)
            response = await self._client.send(request, stream=True)
            try:
                headers = {name.lower(): value for name, value in response.headers.items()}
                first = headers if first is None else first
                if response.status_code not in _REDIRECTS:
                    await self._read(response, headers, body)
                    return Fetched(body.num_bytes, body.sha.hexdigest(), first)
                target = self._parse(str(target.join(headers.get("location", ""))))
            finally:
                await response.aclose()
        raise SourceError("source_not_allowed", "The source redirects too often.")

    def _parse(self, text: str) -> httpx2.URL:
        try:
            url = httpx2.URL(text)
        except httpx2.InvalidURL as error:
            raise SourceError("source_not_allowed", "The source has no valid URL.") from error
        if url.scheme != "https" or url.userinfo or not url.host:
            raise SourceError("source_not_allowed", "Sources are read over https only.")
        return url

    async def _request(self, url: httpx2.URL, attempt: int) -> httpx2.Request:
        """To an address that was checked, in the name of the host that was asked for; the next
        attempt goes to the next of its addresses."""
        port = url.port or HTTPS_PORT
        addresses = await self._rules.addresses(url.host, port)
        host = url.host if port == HTTPS_PORT else f"{url.host}:{port}"
        return self._client.build_request(
            "GET",
            url.copy_with(host=addresses[attempt % len(addresses)]),
            headers={**_HEADERS, "host": host},
            extensions={"sni_hostname": url.host},
        )

    @staticmethod
    async def _read(response: httpx2.Response, headers: Mapping[str, str], body: _Body) -> None:
        status = response.status_code
        if status in _MISSING:
            raise SourceError(
                "source_not_found", f"The source has no {body.path.name}, or not for everybody."
            )
        if status != 200:
            if status == 429 or status >= 500:
                raise _PassingError(f"status {status}")
            raise SourceError("source_unavailable", f"The source answered with status {status}.")
        if headers.get("content-encoding", "identity") != "identity":
            raise SourceError("source_not_allowed", "The source sent an encoded body.")
        length = headers.get("content-length")
        if length is None and headers.get("transfer-encoding") != "chunked":
            raise _PassingError("a body whose end cannot be told")
        if length is not None:
            body.check(int(length))
        async for chunk in response.aiter_raw(1 << 20):
            await asyncio.to_thread(body.write, chunk)
        body.path.touch()
