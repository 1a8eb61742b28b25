"""What the gateway costs per request, all checks on: the engine is replaced by one that answers at
once, so what is left is HTTP, keys, limits, tokens, usage rows and money.

`bare` is the same HTTP server with an endpoint that only reads the body and answers, and so the
share of HTTP and of this client. PostgreSQL and Redis are measured where WEFT_DATABASE_URL (an
empty database) and WEFT_REDIS_URL name them; LiteLLM's proxy, answering from its own mock, where
`--litellm` names its program.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import print_table, say, settings, write_json

from weft.messages import (
    AdapterPlacement,
    EngineInfo,
    EngineOutput,
    EngineRequest,
    EngineStats,
    Grammar,
    Usage,
)

GOAL_P50_MS = 3.0
MODEL = "instant"
PROMPT = "the quick brown fox jumps over the lazy dog " * 4
NUM_TOKENS = 16
_START_TIMEOUT_S = 60.0


class InstantEngine:
    """An `EngineClient` that has every answer ready."""

    is_ready = True
    not_ready_reason = ""

    def __init__(self) -> None:
        config = {
            "model_type": "qwen3", "hidden_size": 16, "intermediate_size": 32,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
            "head_dim": 8, "vocab_size": 264, "tie_word_embeddings": False,
            "max_position_embeddings": 4096,
        }  # fmt: skip
        digest = "sha256:" + "ba" * 32
        self.info = EngineInfo(MODEL, digest, config, 4096, 16, "float32", "none", "none", {})
        self._num_prompt_tokens = self._num_generation_tokens = 0

    async def prepare_grammar(self, grammar: Grammar) -> None:
        """Nothing is sampled."""

    async def generate(self, req: EngineRequest) -> AsyncIterator[EngineOutput]:
        self._num_prompt_tokens += len(req.prompt_token_ids)
        self._num_generation_tokens += req.sampling.max_tokens
        return self._outputs(req)

    @staticmethod
    async def _outputs(req: EngineRequest) -> AsyncIterator[EngineOutput]:
        num_prompt, num_tokens = len(req.prompt_token_ids), req.sampling.max_tokens
        for i in range(1, num_tokens + 1):
            is_last = i == num_tokens
            yield EngineOutput(
                req.request_id, "a", (97,), Usage(num_prompt, i), "length" if is_last else None,
                is_last=is_last,
            )  # fmt: skip

    def abort(self, request_id: str) -> None:
        """It is over."""

    async def stats(self, *, drain: bool = False) -> EngineStats:
        return EngineStats(
            0, 0, 1, 1, 1, 1, self._num_prompt_tokens, self._num_generation_tokens, 0
        )

    async def placements(self, adapter_digest: str | None = None) -> Sequence[AdapterPlacement]:
        return ()

    async def unload_adapter(self, adapter_digest: str) -> None:
        """It has none."""

    def prefetch_adapter(self, adapter_digest: str) -> None:
        """It has none."""

    async def discard_adapter(self, adapter_digest: str) -> None:
        """It has none."""

    async def pin_adapters(self, adapter_digests: Collection[str]) -> None:
        """It has none."""

    async def drain(self, deadline_s: float) -> None:
        """Nothing runs."""


# ---- the server's process ----


def serve_weft(folder: Path, port: int) -> None:
    from weft.app import create_app
    from weft.cli.options import from_environment
    from weft.demo.tokens import write_tokenizer
    from weft.server.http import run_server
    from weft.settings import ServerSettings
    from weft.tokenizer import BaseTokenizer

    write_tokenizer(folder)
    stores: dict[str, Any] = dict(from_environment(os.environ))
    chosen = ServerSettings(base_dir=folder, data_dir=folder / "data", port=port, **stores)
    run_server(create_app(chosen, InstantEngine(), BaseTokenizer.from_dir(folder)), chosen)


def serve_bare(port: int) -> None:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def answer(request: Request) -> JSONResponse:
        body = await request.json()
        return JSONResponse({"model": body["model"], "choices": ["a" * NUM_TOKENS]})

    app = Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])
    uvicorn.run(app, port=port, access_log=False, log_level="warning", http="h11")


@dataclass(frozen=True, slots=True)
class Target:
    """A running server, and what a request to it is sent with."""

    port: int
    key: str


@contextmanager
def running(command: Sequence[str], folder: Path, variables: dict[str, str]) -> Iterator[None]:
    """Only the stores that `variables` name."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("WEFT_")}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, env={**inherited, **variables}
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def weft(variables: dict[str, str]) -> Iterator[Target]:
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as name:
        folder, port = Path(name), free_port()
        command = [sys.executable, "-m", "benchmarks.gateway_overhead", "--serve", name, str(port)]
        root = Path(__file__).resolve().parents[1]
        path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
        with running(command, folder, {**variables, "PYTHONPATH": path}):
            wait_for(folder, port, "/livez")
            operator = (folder / "data" / "operator_key").read_text().strip()
            tenant = post(port, operator, "/admin/v1/tenants", {"name": "bench"})
            path_of_keys = f"/admin/v1/tenants/{tenant['id']}/keys"
            yield Target(port, post(port, operator, path_of_keys, {})["value"])


@contextmanager
def bare() -> Iterator[Target]:
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as name:
        port = free_port()
        command = [sys.executable, str(Path(__file__).resolve()), "--serve-bare", str(port)]
        root = Path(__file__).resolve().parents[1]
        path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
        with running(command, Path(name), {"PYTHONPATH": path}):
            wait_for(Path(name), port, "/")
            yield Target(port, "none")


@contextmanager
def litellm(program: Path) -> Iterator[Target]:
    """One worker, as installed, with a key of its own to check and a mock for a backend."""
    config = {
        "model_list": [
            {
                "model_name": MODEL,
                "litellm_params": {
                    "model": "openai/mock", "api_key": "none", "mock_response": "a" * NUM_TOKENS,
                },
            }
        ],
        "general_settings": {"master_key": "sk-bench"},
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as name:
        folder, port = Path(name), free_port()
        (folder / "config.yaml").write_text(json.dumps(config))
        command = [str(program), "--config", "config.yaml", "--port", str(port)]
        command += ["--host", "127.0.0.1", "--num_workers", "1"]
        with running(command, folder, {"LITELLM_LOG": "ERROR"}):
            wait_for(folder, port, "/health/liveliness")
            yield Target(port, "sk-bench")


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
        except urllib.error.HTTPError:
            return
        except OSError as error:
            if time.monotonic() > end:
                raise RuntimeError((folder / "log").read_text()) from error
            time.sleep(0.1)


def post(port: int, key: str, path: str, body: dict[str, object]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        json.dumps(body).encode(),
        {"authorization": f"Bearer {key}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        result: dict[str, Any] = json.load(answer)
    return result


# ---- the client ----


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
    """One request and its whole answer on a connection that stays open."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(head.decode() + (await reader.read(2000)).decode())
    lower = head.lower()
    if b"transfer-encoding: chunked" in lower:
        while (size := int(await reader.readuntil(b"\r\n"), 16)) > 0:
            await reader.readexactly(size + 2)
        await reader.readexactly(2)
        return
    await reader.readexactly(int(lower.split(b"content-length:")[1].split(b"\r\n")[0]))


def request_to(target: Target, *, stream: bool) -> bytes:
    body = json.dumps(
        {
            "model": MODEL, "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": NUM_TOKENS, "stream": stream,
        }
    ).encode()  # fmt: skip
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\n"
        f"host: 127.0.0.1:{target.port}\r\nauthorization: Bearer {target.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def latencies_ms(target: Target, num_requests: int, *, stream: bool) -> list[float]:
    """Of requests one after another."""
    request = request_to(target, stream=stream)
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
    taken = []
    for i in range(num_requests + num_requests // 10):
        began = time.perf_counter()
        await ask(reader, writer, request)
        if i >= num_requests // 10:  # the first ones warm the server up
            taken.append((time.perf_counter() - began) * 1000)
    writer.close()
    return sorted(taken)


async def requests_per_s(target: Target, num_connections: int, duration_s: float) -> float:
    request = request_to(target, stream=False)
    num_done = 0
    end = time.perf_counter() + duration_s

    async def client() -> None:
        nonlocal num_done
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        while time.perf_counter() < end:
            await ask(reader, writer, request)
            num_done += 1
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(num_connections)))
    return num_done / (time.perf_counter() - began)


@dataclass(frozen=True, slots=True)
class Row:
    """One arm's figures; milliseconds of whole requests, as a client sees them."""

    arm: str
    p50_ms: float
    p99_ms: float
    stream_p50_ms: float
    requests_per_s: float


def measure(arm: str, target: Target, args: argparse.Namespace) -> Row:
    say(f"{arm} ...")
    whole = asyncio.run(latencies_ms(target, args.requests, stream=False))
    streamed = asyncio.run(latencies_ms(target, args.requests, stream=True))
    rate = asyncio.run(requests_per_s(target, args.connections, args.duration))
    return Row(arm, _quantile(whole, 0.5), _quantile(whole, 0.99), _quantile(streamed, 0.5), rate)


def _quantile(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(len(values) * share))]


def run(args: argparse.Namespace) -> list[Row]:
    rows = []
    with bare() as target:
        rows.append(measure("bare", target, args))
    with weft({}) as target:
        rows.append(measure("weft, SQLite", target, args))
    stores = {k: os.environ[k] for k in ("WEFT_DATABASE_URL", "WEFT_REDIS_URL") if k in os.environ}
    if len(stores) == 2:
        with weft(stores) as target:
            rows.append(measure("weft, PostgreSQL and Redis", target, args))
    else:
        say("PostgreSQL and Redis are not measured: WEFT_DATABASE_URL or WEFT_REDIS_URL is unset")
    if args.litellm is not None:
        with litellm(args.litellm) as target:
            rows.append(measure("LiteLLM's proxy, mock", target, args))
    else:
        say("LiteLLM is not measured: --litellm names its program")
    return rows


def main() -> int:
    """Exit status 1 where the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--requests", type=int, default=2000, help="one after another, per arm")
    parser.add_argument("--connections", type=int, default=32, help="at once, for requests/s")
    parser.add_argument("--duration", type=float, default=10.0, help="seconds of requests/s")
    parser.add_argument("--litellm", type=Path, help="the `litellm` program of an installation")
    parser.add_argument("--json-dir", type=Path)
    parser.add_argument("--serve", nargs=2, metavar=("FOLDER", "PORT"), help=argparse.SUPPRESS)
    parser.add_argument("--serve-bare", type=int, metavar="PORT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve_weft(Path(args.serve[0]), int(args.serve[1]))
        return 0
    if args.serve_bare:
        serve_bare(args.serve_bare)
        return 0
    rows = run(args)
    floor = rows[0].p50_ms
    columns = ("arm", "p50 ms", "p99 ms", "overhead p50 ms", "stream p50 ms", "requests/s")
    print_table(
        "a chat completion of 16 tokens from an engine that answers at once",
        columns,
        [
            (r.arm, r.p50_ms, r.p99_ms, r.p50_ms - floor, r.stream_p50_ms, r.requests_per_s)
            for r in rows
        ],
    )
    overhead = rows[1].p50_ms - floor
    is_met = overhead <= GOAL_P50_MS
    say(f"goal: overhead p50 <= {GOAL_P50_MS} ms: {'met' if is_met else 'missed'}")
    result = {
        "settings": settings(
            requests=args.requests, connections=args.connections, duration_s=args.duration
        ),
        "rows": [{name: getattr(row, name) for name in Row.__slots__} for row in rows],
        "overhead_p50_ms": overhead,
        "is_met": is_met,
    }
    write_json(args.json_dir, "gateway_overhead", result)
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
