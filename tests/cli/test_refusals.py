"""Commands refuse what cannot work at once, in a sentence, with exit code 1."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from weft.cli import app
from weft.demo import BASE_DIR


def refusal(*command: str) -> str:
    """What the command says on stderr, on one line."""
    result = CliRunner().invoke(app, list(command))
    assert result.exit_code == 1, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return " ".join(result.stderr.split())


@pytest.mark.parametrize("command", [["tenant", "list"], ["key", "create", "acme"]])
def test_a_mistyped_data_folder_is_not_made_anew(command: list[str], tmp_path: Path) -> None:
    data = tmp_path / "typo"
    assert "not a Weft data folder" in refusal(*command, "--data", str(data))
    assert not data.exists()


@pytest.mark.parametrize("command", [["tenant", "list"], ["migrate"]])
def test_a_file_that_is_no_database_is_said_so(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "weft.db").write_text("this is a text file, not a database\n" * 50)
    assert "not a database" in refusal(*command, "--data", str(tmp_path))


def test_a_new_database_is_for_this_user_only(tmp_path: Path) -> None:
    data = tmp_path / "data"
    result = CliRunner().invoke(app, ["tenant", "create", "acme", "--data", str(data)])
    assert result.exit_code == 0, result.output
    assert (data / "weft.db").stat().st_mode & 0o777 == 0o600


def test_serve_looks_at_port_and_base_before_it_loads(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        said = refusal("serve", "--base", str(BASE_DIR), "--data", str(data), "--port", port)
    assert f"127.0.0.1:{port} is in use" in said
    nowhere = tmp_path / "nowhere"
    assert "no folder" in refusal("serve", "--base", str(nowhere), "--data", str(data))
    assert "config.json" in refusal("serve", "--base", str(tmp_path), "--data", str(data))
    assert not data.exists()


@pytest.mark.parametrize("out", ["nowhere/out.jsonl", "."])
def test_generate_looks_at_its_output_before_it_runs(tmp_path: Path, out: str) -> None:
    requests = tmp_path / "in.jsonl"
    requests.write_text('{"id": "a", "prompt": "x"}\n')
    command = ["generate", "--base", str(BASE_DIR), "--requests", str(requests)]
    assert "--out" in refusal(*command, "--out", str(tmp_path / out))
