"""`weft adapter` against a running server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from weft.cli import app


@pytest.fixture
def export(tmp_path: Path, lora: Callable[..., dict[str, bytes]]) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    for name, data in lora().items():
        (folder / name).write_bytes(data)
    return folder


def test_a_folder_is_uploaded_listed_and_deleted(site: Any, acme: str, export: Path) -> None:
    def weft(*args: str) -> Any:
        options = ("--url", f"{site.url}/v1", "--key", acme, "--json")
        result = CliRunner().invoke(app, ["adapter", *args, *options])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    assert weft("upload", "bot", str(export))["model"] == "bot@v1"
    assert weft("upload", "bot", str(export))["version"] == 1
    assert [row["name"] for row in weft("list")] == ["bot"]
    assert weft("delete", "bot")["deleted"] is True
    assert weft("list") == []


def test_a_folders_tokenizer_goes_along(site: Any, acme: str, export: Path) -> None:
    (export / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    options = ["--url", f"{site.url}/v1", "--key", acme, "--json"]

    def upload(*more: str) -> Any:
        result = CliRunner().invoke(app, ["adapter", "upload", "bot", str(export), *options, *more])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    assert upload("--no-tokenizer")["report"]["has_tokenizer"] is False
    assert upload()["report"]["has_tokenizer"] is True


def test_refusals_are_the_servers_own_words(site: Any, acme: str, export: Path) -> None:
    (export / "adapter_config.json").write_text("{")
    options = ["--url", f"{site.url}/v1", "--key", acme]
    refused = CliRunner().invoke(app, ["adapter", "upload", "bot", str(export), *options])
    assert refused.exit_code == 1
    assert "cannot be served" in refused.stderr
    options[-1] = "wrong"
    denied = CliRunner().invoke(app, ["adapter", "list", *options])
    assert (denied.exit_code, "Incorrect API key" in denied.stderr) == (1, True)
    (export / "adapter_model.safetensors").unlink()
    missing = CliRunner().invoke(app, ["adapter", "upload", "bot", str(export), *options])
    assert "adapter_model.safetensors is missing" in missing.stderr or missing.exit_code == 1


def test_an_upload_that_fails_leaves_no_empty_adapter(site: Any, acme: str, export: Path) -> None:
    options = ["--url", f"{site.url}/v1", "--key", acme]

    def weft(*args: str) -> Any:
        return CliRunner().invoke(app, ["adapter", *args, *options])

    good = (export / "adapter_config.json").read_bytes()
    (export / "adapter_config.json").write_text("{")
    assert weft("upload", "bot", str(export)).exit_code == 1
    assert json.loads(weft("list", "--json").stdout) == []
    (export / "adapter_config.json").write_bytes(good)
    assert "is ready" in weft("upload", "bot", str(export)).stdout
    assert "was there already" in weft("upload", "bot", str(export)).stdout
    (export / "adapter_config.json").write_text("{")
    assert weft("upload", "bot", str(export)).exit_code == 1
    assert len(json.loads(weft("list", "--json").stdout)) == 1, "only a new adapter is undone"


def test_a_server_that_is_not_there_is_said_so() -> None:
    options = ["--url", "http://127.0.0.1:9/v1", "--key", "k"]
    result = CliRunner().invoke(app, ["adapter", "list", *options])
    assert result.exit_code == 1
    assert "could not be reached" in result.stderr


def test_versions_and_aliases_are_handled_from_the_command_line(
    site: Any, acme: str, export: Path, lora: Callable[..., dict[str, bytes]]
) -> None:
    def weft(*args: str, key: str = acme) -> Any:
        options = ("--url", f"{site.url}/v1", *(("--key", key) if key else ()))
        return CliRunner().invoke(app, ["adapter", *args, *options])

    assert weft("upload", "bot", str(export)).exit_code == 0
    (export / "README.md").write_text("---\nlicense: mit\n---\n")
    (export / "adapter_model.safetensors").write_bytes(lora(2)["adapter_model.safetensors"])
    assert weft("upload", "bot", str(export)).exit_code == 0
    rows = json.loads(weft("versions", "bot", "--json").stdout)
    assert [(row["version"], row["state"]) for row in rows] == [(1, "ready"), (2, "ready")]
    assert [row["card"] for row in rows] == [{}, {"license": "mit"}]
    assert "bot@prod is bot@v1" in weft("alias", "bot", "prod", "1", "--expected", "0").stdout
    refused = weft("alias", "bot", "prod", "2", "--expected", "2")
    assert (refused.exit_code, "is at version 1" in refused.stderr) == (1, True)
    assert "Removed bot@prod" in weft("unalias", "bot", "prod").stdout
    assert weft("delete", "bot", "--version", "1").exit_code == 0
    data = str(site.settings.data_dir)
    assert "Purged 0 versions" in weft("purge", "--data", data, key="").stdout
    everything = weft("purge", "--data", data, "--older-than-days", "0", key="")
    assert "Purged 1 versions, files of 1." in everything.stdout
    assert weft("purge", "--data", data + "x", key="").exit_code == 1


def test_an_import_tells_what_became_of_it(site: Any, acme: str) -> None:
    def weft(source: str) -> Any:
        options = ["--url", f"{site.url}/v1", "--key", acme]
        return CliRunner().invoke(app, ["adapter", "import", "bot", source, *options])

    site.create_adapter(acme, "bot")
    bad = weft("hf:org/bot@main")
    assert (bad.exit_code, "40 digits" in bad.stderr) == (1, True)
    refused = weft("s3://bucket/folder")
    assert (refused.exit_code, "not in a bucket" in refused.stderr) == (1, True)
