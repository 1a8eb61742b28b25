"""`weft adapter versions | import | alias | unalias | purge`."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli.output import DataOption, JsonOption, fail, out, print_json, print_rows, spinner
from weft.cli.remote import DEFAULT_URL, KeyOption, UrlOption, list_all, open_client, result_of
from weft.settings import DEFAULT_DATA_DIR

if TYPE_CHECKING:
    import httpx2

Name = Annotated[str, typer.Argument(help="The adapter's name.")]
Alias = Annotated[str, typer.Argument(help="The alias, such as 'prod'.")]
_HUB = re.compile(r"hf:(?P<repo>[^@]+)@(?P<revision>[0-9a-f]{40})")
_POLL_S = 0.5
_KEY_FILE = "operator_key"


def add_commands(app: typer.Typer) -> None:
    for name, command in (
        ("versions", versions),
        ("import", import_),
        ("alias", alias),
        ("unalias", unalias),
        ("purge", purge),
    ):
        app.command(name)(command)


def versions(
    name: Name, key: KeyOption, url: UrlOption = DEFAULT_URL, as_json: JsonOption = False
) -> None:
    """List an adapter's versions and their states."""
    with open_client(url, key) as http:
        rows = list_all(http, f"adapters/{name}/versions")
    print_rows(rows, ("version", "state", "digest", "created_at"), as_json=as_json)


def import_(
    name: Name,
    source: Annotated[
        str, typer.Argument(help="hf:owner/name@<commit of 40 digits>, or s3://bucket/folder.")
    ],
    key: KeyOption,
    url: UrlOption = DEFAULT_URL,
    wait: Annotated[bool, typer.Option(help="Until the version is ready or rejected.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Have the server get a version by itself. Exit code 1 if it is rejected."""
    body = {"source": _parse_source(source)}
    with open_client(url, key) as http, spinner(f"Importing {name}..."):
        version = result_of(http.post(f"adapters/{name}/versions", json=body))
        while wait and version["state"] in ("uploading", "validating"):
            time.sleep(_POLL_S)
            version = result_of(http.get(f"adapters/{name}/versions/{version['version']}"))
    if as_json:
        print_json(version)
    else:
        out.print(f"{version['model']} is {version['state']}.", markup=False)
    if version["state"] == "rejected":
        faults = version["report"]["faults"]
        raise fail("; ".join(str(fault["message"]) for fault in faults))


def _parse_source(text: str) -> dict[str, str]:
    match = _HUB.fullmatch(text)
    if match is not None:
        return {"type": "huggingface", "repo": match["repo"], "revision": match["revision"]}
    if text.startswith("s3://"):
        return {"type": "s3", "uri": text}
    raise fail(f"a source is hf:owner/name@<commit of 40 digits> or s3://bucket/folder, not {text}")


def alias(
    name: Name,
    alias: Alias,
    version: Annotated[int, typer.Argument(help="The version's number.")],
    key: KeyOption,
    url: UrlOption = DEFAULT_URL,
    expected: Annotated[
        int | None, typer.Option(help="Only if it is at this version; 0: at none.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Point an alias at a version. Requests in flight keep the one that they have."""
    body: dict[str, int | None] = {"version": version}
    if expected is not None:
        body["expected_version"] = expected or None
    with open_client(url, key) as http:
        moved = result_of(http.put(f"adapters/{name}/aliases/{alias}", json=body))
    _say(moved, f"{name}@{alias} is {moved['model']}.", as_json)


def unalias(
    name: Name,
    alias: Alias,
    key: KeyOption,
    url: UrlOption = DEFAULT_URL,
    as_json: JsonOption = False,
) -> None:
    """Remove an alias; the version stays."""
    with open_client(url, key) as http:
        deleted = result_of(http.delete(f"adapters/{name}/aliases/{alias}"))
    _say(deleted, f"Removed {name}@{alias}.", as_json)


def purge(
    data: DataOption = DEFAULT_DATA_DIR,
    url: UrlOption = DEFAULT_URL,
    older_than_days: Annotated[
        float | None, typer.Option(help="Deleted so long ago. Default: the retention time.", min=0)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Remove the files of deleted versions of all tenants, as the server does by itself after the
    retention time. Needs the operator's key, which is in the data folder."""
    body = {} if older_than_days is None else {"retention_s": int(older_than_days * 86400)}
    with open_client(url, _operator_key(data)) as http:
        done = _purge(http, body)
    said = f"Purged {done['num_versions']} versions, files of {done['num_digests']}"
    left = (
        f"; {done['num_deferred']} are in use or could not be removed"
        if done["num_deferred"]
        else ""
    )
    _say(done, f"{said}{left}.", as_json)


def _purge(http: httpx2.Client, body: dict[str, int]) -> dict[str, Any]:
    # beside /v1, which the address ends with
    address = http.base_url.join("/admin/v1/adapters:purge")
    return result_of(http.post(address, json=body))


def _operator_key(data: Path) -> str:
    """The environment's, as the server has it, or the data folder's."""
    from weft.tenancy.secret_files import OPERATOR_KEY, SecretFileError, read_from_environment

    try:
        named = read_from_environment(OPERATOR_KEY)
        return named or (data / _KEY_FILE).read_text(encoding="utf-8").strip()
    except SecretFileError as error:
        raise fail(str(error)) from error
    except OSError as error:
        raise fail(f"{data / _KEY_FILE} could not be read: {error.strerror}") from error


def _say(result: dict[str, Any], text: str, as_json: bool) -> None:
    if as_json:
        print_json(result)
    else:
        out.print(text, markup=False)
