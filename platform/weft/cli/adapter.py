"""`weft adapter`: a tenant's adapters, over HTTP with the tenant's key."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weft.cli import adapter_check, adapter_versions
from weft.cli.base import ADAPTER_FILES
from weft.cli.output import JsonOption, err, fail, out, print_json, print_rows, spinner
from weft.cli.remote import DEFAULT_URL, KeyOption, UrlOption, list_all, open_client, result_of
from weft_adapters.own_tokens import TOKENIZER_FILES

if TYPE_CHECKING:
    import httpx2

app = typer.Typer(help="Upload, import, list, delete and check adapters.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The adapter's name.")]
Folder = Annotated[Path, typer.Argument(help="Folder with the two files of a PEFT export.")]
# its metadata is kept with the version
_CARD = "README.md"


@app.command("upload")
def upload(
    name: Name,
    folder: Folder,
    key: KeyOption,
    url: UrlOption = DEFAULT_URL,
    base_model: Annotated[
        str | None, typer.Option(help="For a new adapter. Default: the served base.")
    ] = None,
    tokenizer: Annotated[
        bool, typer.Option(help="Upload the folder's tokenizer and chat template, too.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Upload a version; the adapter is created where it does not exist."""
    for file in ADAPTER_FILES:
        _existing(folder, file)
    with open_client(url, key) as http, ExitStack() as undo:
        if http.get(f"adapters/{name}").status_code == 404:
            body = {"name": name, "base_model": base_model or _served_base(http)}
            result_of(http.post("adapters", json=body))
            # an adapter made for a version that is refused would be an empty one
            undo.callback(http.delete, f"adapters/{name}")
        with spinner(f"Uploading {name}..."), ExitStack() as files:
            parts = {
                file: (file, files.enter_context(_existing(folder, file).open("rb")))
                for file in (*ADAPTER_FILES, *_others_in(folder, with_tokenizer=tokenizer))
            }
            response = http.post(f"adapters/{name}/versions", files=parts)
            version = result_of(response)
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
    with open_client(url, key) as http:
        rows = list_all(http, "adapters")
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
    with open_client(url, key) as http:
        result = result_of(http.delete(path))
    if as_json:
        print_json(result)
    else:
        out.print(f"Deleted {name}" + ("." if version is None else f"@v{version}."), markup=False)


app.command("check")(adapter_check.check)
adapter_versions.add_commands(app)


def _served_base(http: httpx2.Client) -> str:
    cards = result_of(http.get("models"))["data"]
    return next(str(card["id"]) for card in cards if card["parent"] is None)


def _others_in(folder: Path, *, with_tokenizer: bool) -> list[str]:
    names = (_CARD, *TOKENIZER_FILES) if with_tokenizer else (_CARD,)
    return [name for name in names if (folder / name).is_file()]


def _existing(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise fail(f"there is no folder {folder}")
    file = folder / name
    if not file.is_file():
        raise fail(f"{file} is missing")
    return file
