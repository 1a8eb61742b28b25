"""What the gateway costs per request, all checks on: the engine is replaced by one that answers at
once, so what is left is HTTP, keys, limits, tokens, usage rows, prices and budgets.

`bare` is an HTTP server with an endpoint that only reads the body and answers, and so the share of
HTTP and of this client; overhead is what a server takes beyond it with as many requests at once.
PostgreSQL and Redis are measured where WEFT_DATABASE_URL (an empty database) and WEFT_REDIS_URL
name them; LiteLLM's proxy, answering from its own mock, where `--litellm` names its program.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.gateway_servers import NUM_TOKENS, Target, bare, litellm, weft
from benchmarks.http_load import Load, load
from benchmarks.instant_engine import MODEL
from benchmarks.report import print_table, say, settings, write_json

GOAL_P50_MS = 3.0
GOAL_RATE = 3.0  # times LiteLLM's
PROMPT = "the quick brown fox jumps over the lazy dog " * 4
STORES = ("WEFT_DATABASE_URL", "WEFT_REDIS_URL")
PACKAGES = (
    "uvicorn", "uvloop", "httptools", "h11", "starlette", "fastapi", "pydantic", "sqlalchemy",
    "psycopg", "redis",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One arm's figures with as many requests at once; milliseconds as a client sees them."""

    arm: str
    load: Load
    stream_p50_ms: float


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


def measure(arm: str, target: Target, args: argparse.Namespace) -> Iterator[Row]:
    say(f"{arm} ...")
    whole, streamed = (request_to(target, stream=stream) for stream in (False, True))
    for count in args.connections:
        taken = asyncio.run(load(target.port, whole, count, args.requests, args.requests // 4))
        events = asyncio.run(load(target.port, streamed, count, args.requests // 4, count))
        yield Row(arm, taken, events.p50_ms)


Arm = tuple[str, Callable[[], AbstractContextManager[Target]]]


def arms(args: argparse.Namespace) -> Iterator[Arm]:
    yield "bare", bare
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as folder:
        alone = Path(folder)
        yield "weft, SQLite", lambda: weft(alone, {})
    stores = {name: os.environ[name] for name in STORES if name in os.environ}
    if len(stores) == len(STORES):
        with tempfile.TemporaryDirectory(prefix="weft-bench-") as folder:
            shared = Path(folder)
            yield "weft, PostgreSQL and Redis", lambda: weft(shared, stores)
            yield "weft, the same, 2 workers", lambda: weft(shared, stores, num_workers=2)
    else:
        say(f"PostgreSQL and Redis are not measured: {' or '.join(STORES)} is unset")
    if args.litellm is not None:
        yield "LiteLLM, mock", lambda: litellm(args.litellm, 1)
        yield "LiteLLM, mock, 2 workers", lambda: litellm(args.litellm, 2)
    else:
        say("LiteLLM is not measured: --litellm names its program")


def versions(args: argparse.Namespace) -> dict[str, str]:
    """Of what takes part; "none" for what is not installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    if args.litellm is not None:
        program = args.litellm.parent / "python"
        code = "from importlib.metadata import version; print(version('litellm'))"
        found["litellm"] = subprocess.check_output([program, "-c", code], text=True).strip()
    if "WEFT_DATABASE_URL" in os.environ:
        import psycopg

        url = os.environ["WEFT_DATABASE_URL"].replace("postgresql+psycopg://", "postgresql://")
        with psycopg.connect(url) as connection:
            found["PostgreSQL"] = str(connection.info.server_version)
    if "WEFT_REDIS_URL" in os.environ:
        import redis

        with redis.Redis.from_url(os.environ["WEFT_REDIS_URL"]) as client:
            found["Redis"] = client.info("server")["redis_version"]
    return found


def verdicts(rows: list[Row]) -> dict[str, bool]:
    """Of each goal whose rows were measured. One request at a time for overhead; for requests/s
    the best of each server's rows."""
    one = {row.arm: row.load for row in rows if row.load.num_connections == 1}
    found = {}
    if {"bare", "weft, SQLite"} <= one.keys():
        overhead = one["weft, SQLite"].p50_ms - one["bare"].p50_ms
        found[f"overhead p50 <= {GOAL_P50_MS} ms: {overhead:.2f}"] = overhead <= GOAL_P50_MS
    best = {
        server: max((r.load.requests_per_s for r in rows if r.arm.startswith(server)), default=0.0)
        for server in ("weft", "LiteLLM")
    }
    if best["LiteLLM"]:
        times = best["weft"] / best["LiteLLM"]
        found[f"requests/s >= {GOAL_RATE} x LiteLLM's: {times:.2f}"] = times >= GOAL_RATE
    return found


def show(rows: list[Row]) -> None:
    floors = {row.load.num_connections: row.load for row in rows if row.arm == "bare"}
    columns = (
        "arm", "at once", "p50 ms", "p99 ms", "overhead p50", "overhead p99", "stream p50 ms",
        "requests/s",
    )  # fmt: skip
    cells = []
    for row in rows:
        taken, floor = row.load, floors[row.load.num_connections]
        overheads = (taken.p50_ms - floor.p50_ms, taken.p99_ms - floor.p99_ms)
        cells.append(
            (row.arm, taken.num_connections, taken.p50_ms, taken.p99_ms, *overheads,
             row.stream_p50_ms, taken.requests_per_s)
        )  # fmt: skip
    print_table(
        "a chat completion of 16 tokens from an engine that answers at once", columns, cells
    )


def main() -> int:
    """Exit status 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--requests", type=int, default=2000, help="of each row")
    parser.add_argument(
        "--connections", type=int, nargs="+", default=[1, 8, 32], help="requests at once, by row"
    )
    parser.add_argument("--litellm", type=Path, help="the `litellm` program of an installation")
    parser.add_argument("--json-dir", type=Path)
    args = parser.parse_args()
    taking_part = versions(args)
    say(", ".join(f"{name} {number}" for name, number in taking_part.items()))
    rows: list[Row] = []
    for arm, start in arms(args):
        with start() as target:
            rows += measure(arm, target, args)
    show(rows)
    goals = verdicts(rows)
    for goal, is_met in goals.items():
        say(f"goal: {goal}: {'met' if is_met else 'missed'}")
    result = {
        "settings": settings(requests=args.requests, connections=args.connections),
        "servers": taking_part,
        "rows": [asdict(row) for row in rows],
        "goals": goals,
    }
    write_json(args.json_dir, "gateway_overhead", result)
    return 0 if all(goals.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
