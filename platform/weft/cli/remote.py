"""Commands that talk to a running server, over HTTP with a key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli.output import err, fail
from weft.settings import ServerSettings, base_url

if TYPE_CHECKING:
    import httpx2

_D = ServerSettings(base_dir=Path("."))
KeyOption = Annotated[str, typer.Option("--key", envvar="WEFT_API_KEY", help="The API key.")]
UrlOption = Annotated[
    str, typer.Option("--url", envvar="WEFT_BASE_URL", help="The server, with /v1.")
]
DEFAULT_URL = base_url(_D.host, _D.port)


@contextmanager
def open_client(url: str, key: str) -> Iterator[httpx2.Client]:
    import httpx2

    if not key.isascii():
        raise fail("the key has characters that no key has")
    headers = {"authorization": f"Bearer {key}"}
    timeout = httpx2.Timeout(600.0, connect=10.0)
    try:
        with httpx2.Client(base_url=url, headers=headers, timeout=timeout) as client:
            yield client
    except httpx2.TransportError as error:
        raise fail(f"{url} could not be reached: {error}") from error


def list_all(http: httpx2.Client, path: str) -> list[dict[str, Any]]:
    """All pages of a list, the oldest first."""
    rows: list[dict[str, Any]] = []
    params: dict[str, str | int] = {"limit": 100, "order": "asc"}
    while True:
        page = result_of(http.get(path, params=params))
        rows += page["data"]
        if not page["has_more"]:
            return rows
        params["after"] = page["last_id"]


def result_of(response: httpx2.Response) -> dict[str, Any]:
    """The body of a success; else the server's own words, with each fault."""
    try:
        body: dict[str, Any] = response.json()
    except ValueError as error:
        raise fail(f"the server answered {response.status_code} without JSON") from error
    if response.is_success:
        return body
    error_body = body.get("error", {})
    for fault in error_body.get("details", []):
        err.print(f"{fault.get('code')}: {fault.get('message')}", markup=False)
    raise fail(str(error_body.get("message", f"the server answered {response.status_code}")))
