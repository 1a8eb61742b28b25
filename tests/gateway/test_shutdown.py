"""A real process that gets SIGTERM: it drains, meters, and exits with 0."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from weft.app import prepare_data
from weft.settings import ServerSettings

SCRIPT = """
import pathlib, runpy, sys
echo, folder, port = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])
from weft.app import create_app
from weft.demo.tokens import write_tokenizer
from weft.server.http import run_server
from weft.settings import ServerSettings
from weft.tokenizer import BaseTokenizer
engine = runpy.run_path(echo)["EchoEngine"]()
engine.delay_s = 0.02
write_tokenizer(folder)
settings = ServerSettings(
    base_dir=folder, data_dir=folder / "data", port=port, drain_deadline_s=10.0
)
run_server(create_app(settings, engine, BaseTokenizer.from_dir(folder)), settings)
"""


@pytest.mark.slow
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_with_0(tmp_path: Path, sig: signal.Signals) -> None:
    settings = ServerSettings(base_dir=tmp_path, data_dir=tmp_path / "data")
    operator_key = prepare_data(settings).operator_key
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    echo = str(Path(__file__).with_name("echo.py"))
    command = [sys.executable, "-c", SCRIPT, echo, str(tmp_path), str(port)]
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=20.0) as http,
    ):
        try:
            _wait_until_ready(http, process)
            key = _create_key(http, operator_key)
            text = _stream_through(http, key, process, sig)
            assert process.wait(20) == 0, process.stderr and process.stderr.read()
        finally:
            process.kill()
    assert text.endswith("data: [DONE]\n\n")
    connection = sqlite3.connect(settings.database_file)
    rows = connection.execute("SELECT outcome, completion_tokens FROM usage_events").fetchall()
    connection.close()
    assert rows == [("ok", 50)]


def _wait_until_ready(http: httpx2.Client, process: subprocess.Popen[str]) -> None:
    for _ in range(400):
        assert process.poll() is None, process.stderr and process.stderr.read()
        try:
            if http.get("/readyz").status_code == 200:
                return
        except httpx2.TransportError:
            pass  # it does not listen yet
        time.sleep(0.05)
    raise AssertionError("the server did not become ready")


def _create_key(http: httpx2.Client, operator_key: str) -> str:
    headers = {"authorization": f"Bearer {operator_key}"}
    http.post("/admin/v1/tenants", json={"name": "acme"}, headers=headers).raise_for_status()
    made = http.post("/admin/v1/tenants/acme/keys", json={}, headers=headers)
    return str(made.json()["value"])


def _stream_through(
    http: httpx2.Client, key: str, process: subprocess.Popen[str], sig: signal.Signals
) -> str:
    """Send the signal in mid-stream; meanwhile the server answers 503 to everybody else."""
    headers = {"authorization": f"Bearer {key}"}
    body = {"model": "tiny", "prompt": "x" * 50, "max_tokens": 50, "stream": True}
    text = ""
    with http.stream("POST", "/v1/completions", json=body, headers=headers) as answer:
        for chunk in answer.iter_text():
            if not text:
                process.send_signal(sig)
                time.sleep(0.2)
                assert http.get("/readyz").status_code == 503
                refused = http.post("/v1/completions", json=body, headers=headers)
                assert refused.status_code == 503
                assert json.loads(refused.text)["error"]["code"] == "draining"
            text += chunk
    return text
