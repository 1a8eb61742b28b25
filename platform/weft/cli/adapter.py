"""`weft adapter`: a tenant's adapters, over HTTP with the tenant's key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli import adapter_check
from weft.cli.base import ADAPTER_FILES
from weft.cli.output import JsonOption, err, fail, out, print_json, print_rows, spinner
from weft.settings import ServerSettings, base_url

if TYPE_CHECKING:
    import httpx2

app = typer.Typer(help="Upload, list, delete and check adapters.", no_args_is_help=True)

_D = ServerSettings(base_dir=Path("."))
Name = Annotated[str, typer.Argument(help="The adapter's name.")]
Folder = Annotated[Path, typer.Argument(help="Folder with the two files of a PEFT export.")]
KeyOption = Annotated[str, typer.Option("--key", envvar="WEFT_API_KEY", help="The API key.")]
UrlOption = Annotated[
    str, typer.Option("--url", envvar="WEFT_BASE_URL", help="The server, with /v1.")
]
DEFAULT_URL = base_url(_D.host, _D.port)


@app.command("upload")
def upload(
    name: Name,
    folder: Folder,
    key: KeyOption,
    url: UrlOption = DEFAULT_URL,
    base_model: Annotated[
        str | None, typer.Option(help="For a new adapter. Default: the served base.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Upload a version; the adapter is created where it does not exist."""
    for file in ADAPTER_FILES:
        _existing(folder, file)
    with _client(url, key) as http, ExitStack() as undo:
        if http.get(f"adapters/{name}").status_code == 404:
            body = {"name": name, "base_model": base_model or _served_base(http)}
            _result(http.post("adapters", json=body))
            # an adapter made for a version that is refused would be an empty one
            undo.callback(http.delete, f"adapters/{name}")
        with spinner(f"Uploading {name}..."), ExitStack() as files:
            parts = {
                file: (file, files.enter_context(_existing(folder, file).open("rb")))
                for file in ADAPTER_FILES
            }
            response = http.post(f"adapters/{name}/versions", files=parts)
            version = _result(response)
        undo.pop_all()
    if as_json:
        print_json(version)
        return
    said = "is ready" if response.status_code == 201 else "was there already, nothing changed"
    out.print(f"{version['model']} {said} ({version['digest']}).", markup=False)
    for warning in version["report"].get("warnings", []):
        err.print(f"warning: {warning}", markup=False)


@app.command("list")
def list_(key: KeyOption, url: UrlOption = DEFAULT_URL, as_json: JsonOption = False) -> None:
    """List the tenant's adapters."""
    rows: list[dict[str, Any]] = []
    with _client(url, key) as http:
        params: dict[str, str | int] = {"limit": 100, "order": "asc"}
        while True:
            page = _result(http.get("adapters", params=params))
            rows += page["data"]
            if not page["has_more"]:
                break
            params["after"] = page["last_id"]
    print_rows(rows, ("name", "base_model", "description", "created_at"), as_json=as_json)


@app.command("delete")
def delete(
    name: Name,
    key: KeyOption,
    url: UrlOption = DEFAULT_URL,
    version: Annotated[
        int | None, typer.Option(help="Only this version. Default: the adapter.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Delete an adapter, or one version that no alias points at."""
    path = f"adapters/{name}" + ("" if version is None else f"/versions/{version}")
    with _client(url, key) as http:
        result = _result(http.delete(path))
    if as_json:
        print_json(result)
    else:
        out.print(f"Deleted {name}" + ("." if version is None else f"@v{version}."), markup=False)


app.command("check")(adapter_check.check)


@contextmanager
def _client(url: str, key: str) -> Iterator[httpx2.Client]:
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


def _served_base(http: httpx2.Client) -> str:
    cards = _result(http.get("models"))["data"]
    return next(str(card["id"]) for card in cards if card["parent"] is None)


def _existing(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise fail(f"there is no folder {folder}")
    file = folder / name
    if not file.is_file():
        raise fail(f"{file} is missing")
    return file


def _result(response: httpx2.Response) -> dict[str, Any]:
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
