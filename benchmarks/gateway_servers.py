"""The servers that `benchmarks.gateway_overhead` asks: each is started, made ready, and ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.instant_engine import MODEL, InstantEngine

NUM_TOKENS = 16
_START_TIMEOUT_S = 60.0
_SELF = "benchmarks.gateway_servers"


@dataclass(frozen=True, slots=True)
class Target:
    """A running server, and the key that requests to it are sent with."""

    port: int
    key: str


# ---- in a process of its own: python -m benchmarks.gateway_servers ... ----


def serve_weft(folder: Path, port: int, num_workers: int = 1) -> None:
    """On the stores that the environment names; with the engine in this process, or in one that
    the workers share."""
    from weft.app import create_app, prepare_data
    from weft.cli.options import from_environment
    from weft.demo.tokens import write_tokenizer
    from weft.server import supervisor
    from weft.server.http import run_server
    from weft.settings import ServerSettings
    from weft.tokenizer import BaseTokenizer

    write_tokenizer(folder)
    stores: dict[str, Any] = dict(from_environment(os.environ))
    chosen = ServerSettings(
        base_dir=folder, data_dir=folder / "data", port=port, num_workers=num_workers, **stores
    )
    if num_workers == 1:
        run_server(create_app(chosen, InstantEngine(), BaseTokenizer.from_dir(folder)), chosen)
        return
    prepare_data(chosen)
    supervisor.supervise(
        chosen,
        on_progress=lambda what, done, total: None,
        on_started=lambda info, port: None,
        engine_module="benchmarks.instant_engine",
    )


def serve_bare(port: int) -> None:
    """The same HTTP server with an endpoint that only reads the body and answers."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def answer(request: Request) -> JSONResponse:
        body = await request.json()
        return JSONResponse({"model": body["model"], "choices": ["a" * NUM_TOKENS]})

    app = Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])
    uvicorn.run(app, port=port, access_log=False, log_level="warning")


# ---- their ends ----


@contextmanager
def weft(folder: Path, variables: Mapping[str, str], num_workers: int = 1) -> Iterator[Target]:
    """Only on the stores that `variables` name; whoever shares those shares the folder. A key of a
    tenant with limits, a price for what it asks for and a budget that it is paid from: all that a
    request can be checked for."""
    port = free_port()
    command = [sys.executable, "-m", _SELF, "weft", str(folder), str(port), str(num_workers)]
    with running(command, folder, variables):
        wait_for(folder, port, "/readyz")
        operator = (folder / "data" / "operator_key").read_text().strip()
        yield Target(port, _create_key(port, operator))


def _create_key(port: int, operator: str) -> str:
    price = {"base_model": MODEL, "input": "0.5", "cached_input": "0.25", "output": "1.5"}
    name = f"bench-{time.time_ns()}"
    post(port, operator, "/admin/v1/price_books", {"name": name, "prices": [price]})
    tenant: str = post(port, operator, "/admin/v1/tenants", {"name": name})["id"]
    budget = {"subject": {"kind": "tenant"}, "period": "month", "limit_usd": "1000000"}
    post(port, operator, f"/admin/v1/tenants/{tenant}/budgets", budget)
    key: str = post(port, operator, f"/admin/v1/tenants/{tenant}/keys", {})["value"]
    return key


@contextmanager
def bare() -> Iterator[Target]:
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as name:
        port = free_port()
        with running([sys.executable, "-m", _SELF, "bare", str(port)], Path(name), {}):
            wait_for(Path(name), port, "/")
            yield Target(port, "none")


@contextmanager
def litellm(program: Path, num_workers: int) -> Iterator[Target]:
    """As installed, with a key of its own to check and a mock for a backend."""
    model = {"model": "openai/mock", "api_key": "none", "mock_response": "a" * NUM_TOKENS}
    config = {
        "model_list": [{"model_name": MODEL, "litellm_params": model}],
        "general_settings": {"master_key": "sk-bench"},
    }
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as name:
        folder, port = Path(name), free_port()
        (folder / "config.yaml").write_text(json.dumps(config))
        command = [str(program), "--config", "config.yaml", "--port", str(port)]
        command += ["--host", "127.0.0.1", "--num_workers", str(num_workers)]
        with running(command, folder, {"LITELLM_LOG": "ERROR"}):
            wait_for(folder, port, "/health/liveliness")
            yield Target(port, "sk-bench")


@contextmanager
def running(command: Sequence[str], folder: Path, variables: Mapping[str, str]) -> Iterator[None]:
    """Only the stores that `variables` name."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("WEFT_")}
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log,
            env={**inherited, "PYTHONPATH": path, **variables},
        )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


def free_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def wait_for(folder: Path, port: int, path: str) -> None:
    end = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).close()
            return
        except urllib.error.HTTPError as error:
            if error.code < 500:
                return
        except OSError as error:
            if time.monotonic() > end:
                raise RuntimeError((folder / "log").read_text()) from error
        if time.monotonic() > end:
            raise RuntimeError((folder / "log").read_text())
        time.sleep(0.1)


def post(port: int, key: str, path: str, body: Mapping[str, object]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        json.dumps(body).encode(),
        {"authorization": f"Bearer {key}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        result: dict[str, Any] = json.load(answer)
    return result


def main() -> None:
    match sys.argv[1:]:
        case ["weft", folder, port, num_workers]:
            serve_weft(Path(folder), int(port), int(num_workers))
        case ["bare", port]:
            serve_bare(int(port))
        case arguments:
            raise SystemExit(f"no server is called {arguments}")


if __name__ == "__main__":
    main()
