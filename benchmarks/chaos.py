"""An HTTP proxy on loopback that makes a store slow and faulty, and a store to put behind it.

    python -m benchmarks.chaos --upstream http://127.0.0.1:5000 --latency-ms 20 --faults 0.2

prints its address and serves until its input ends. Faults are drawn from a seed, or told one by
one. Only answers to GET have any: uploads are not what is looked at here.
"""

from __future__ import annotations

import argparse
import http.client
import logging
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, get_args
from urllib.parse import urlsplit

Fault = Literal["error", "reset", "truncated", "corrupted"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
_CHUNK = 64 * 1024
# of one connection to the next hop; headers that belong to it
_HOP_HEADERS = frozenset({"connection", "keep-alive", "transfer-encoding", "expect"})
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


@dataclass
class Chaos:
    """What the proxy does to an answer. `script` is used up first, None being no fault; then each
    answer is faulty with `fault_share`, every kind as often. `bytes_per_s` is of all connections
    together. `keeps_answers`: those to GET are had from the store once, where its
    own work is not to be measured."""

    keeps_answers: bool = False
    latency_s: float = 0.0
    bytes_per_s: float = float("inf")
    fault_share: float = 0.0
    seed: int = 0
    script: deque[Fault | None] = field(default_factory=deque)
    num_requests: Counter[str] = field(default_factory=Counter)
    num_faults: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()
        self._free_at_s = 0.0
        self.kept: dict[str, tuple[int, dict[str, str], bytes]] = {}

    def draw(self, method: str) -> Fault | None:
        with self._lock:
            self.num_requests[method] += 1
            if method != "GET":
                return None
            fault: Fault | None = None
            if self.script:
                fault = self.script.popleft()
            elif self._random.random() < self.fault_share:
                fault = self._random.choice(FAULTS)
            if fault is not None:
                self.num_faults[fault] += 1
            return fault

    def send_pause(self, num_bytes: int) -> None:
        """Wait until the wire would have taken the bytes."""
        with self._lock:
            now = time.monotonic()
            self._free_at_s = max(now, self._free_at_s) + num_bytes / self.bytes_per_s
            pause_s = self._free_at_s - now
        if pause_s > 0.001:
            time.sleep(pause_s)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet: a benchmark has a terminal to write to."""

    def _forward(self) -> None:
        chaos = self.server.chaos
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        fault = chaos.draw(self.command)
        time.sleep(chaos.latency_s)
        if fault == "error":
            self._answer(
                503, {"content-type": "application/xml"}, b"<Error><Code>SlowDown</Code></Error>"
            )
            return
        key = f"{self.path} {self.headers.get('range')}"
        if self.command != "GET" or key not in chaos.kept:
            answer = self._ask(body)
            if self.command == "GET" and chaos.keeps_answers:
                chaos.kept[key] = answer
        else:
            answer = chaos.kept[key]
        status, headers, data = answer
        if fault == "corrupted" and data:
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 0x20]) + data[middle + 1 :]
        self._answer(status, headers, data, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        upstream = urlsplit(self.server.upstream)
        connection = http.client.HTTPConnection(upstream.hostname or "", upstream.port, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_HEADERS}
        connection.request(self.command, self.path, body=body or None, headers=headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        kept = {k: v for k, v in answer.getheaders() if k.lower() not in _HOP_HEADERS}
        return answer.status, kept, data

    def _answer(
        self, status: int, headers: dict[str, str], data: bytes, fault: Fault | None = None
    ) -> None:
        self.send_response_only(status)
        if self.command != "HEAD":
            headers = {k: v for k, v in headers.items() if k.lower() != "content-length"}
            headers["content-length"] = str(len(data))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        is_cut = fault in ("truncated", "reset")
        self._send(data[: len(data) // 2] if is_cut else data)
        if is_cut:
            self.close_connection = True
            if fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
                self.connection.close()

    def _send(self, data: bytes) -> None:
        for start in range(0, len(data), _CHUNK):
            part = data[start : start + _CHUNK]
            self.server.chaos.send_pause(len(part))
            self.wfile.write(part)
        self.wfile.flush()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: str, chaos: Chaos) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.chaos = upstream, chaos

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away, or a connection that was reset on purpose, is no news."""

    def shutdown_request(self, request: object) -> None:
        assert isinstance(request, socket.socket)
        if request.fileno() >= 0:  # not one that was reset
            super().shutdown_request(request)


@contextmanager
def chaos_proxy(upstream: str, chaos: Chaos) -> Iterator[str]:
    """Serve in a thread; gives the proxy's address."""
    server = _Server(upstream, chaos)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="chaos", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def served(command: Sequence[str]) -> Iterator[str]:
    """A server in a process of its own, which prints its address and ends with its input."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.chaos", *command],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        if not address.startswith("http://"):
            raise RuntimeError("the server behind the benchmark did not start")
        yield address
    finally:
        process.stdin.close()
        process.wait(timeout=30)
        process.stdout.close()


@contextmanager
def s3_server() -> Iterator[str]:
    """moto's S3 in this process: the real API over HTTP, on loopback; gives its address."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it tells of each request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--upstream", help="default: a store in memory, behind no proxy")
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--gb-per-s", type=float, default=float("inf"))
    parser.add_argument("--faults", type=float, default=0.0, help="share of faulty answers")
    parser.add_argument("--keep", action="store_true", help="ask the store for each object once")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chaos = Chaos(
        keeps_answers=options.keep,
        latency_s=options.latency_ms / 1e3,
        bytes_per_s=options.gb_per_s * 1e9,
        fault_share=options.faults,
        seed=options.seed,
    )
    opened = chaos_proxy(options.upstream, chaos) if options.upstream else s3_server()
    with opened as address:
        sys.stdout.write(address + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
