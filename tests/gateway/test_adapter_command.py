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
