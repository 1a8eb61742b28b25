"""A server on loopback that takes meter events as Stripe does, and fails as it may."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl

KEY = "sk_test_local"
_DAY_S = 86_400


@dataclass
class StripeServer:
    """Events by identifier; `faults` are what becomes of the next requests."""

    url: str = ""
    events: dict[str, dict[str, str]] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)
    num_requests: int = 0

    def total(self, event_name: str, customer: str) -> int:
        """What Stripe would bill."""
        return sum(
            int(event["payload[value]"])
            for identifier, event in self.events.items()
            if identifier not in self.cancelled
            and event["event_name"] == event_name
            and event["payload[stripe_customer_id]"] == customer
        )

    def answer(self, path: str, form: dict[str, str], key: str | None) -> tuple[int, str]:
        """(status, message)."""
        self.num_requests += 1
        if key != f"Bearer {KEY}":
            return 401, "Invalid API Key provided"
        fault = self.faults.pop(0) if self.faults else ""
        if fault in ("429", "500", "503"):
            return int(fault), "try again"
        said = self._take(path, form)
        # it was done, but nobody hears of it
        return (500, "lost") if fault == "lost" else said

    def _take(self, path: str, form: dict[str, str]) -> tuple[int, str]:
        if path.endswith("meter_event_adjustments"):
            identifier = form["cancel[identifier]"]
            if identifier not in self.events:
                return 400, "No such event"
            self.cancelled.add(identifier)
            return 200, ""
        identifier, at = form["identifier"], int(form["timestamp"])
        if len(identifier) > 100:
            return 400, "identifier is too long"
        if identifier in self.events:
            return 400, f"An event already exists with identifier {identifier}."
        if not time.time() - 35 * _DAY_S < at < time.time() + 300:
            return 400, "timestamp is out of the window"
        if not form["payload[stripe_customer_id]"].startswith("cus_"):
            return 400, "No such customer"
        if int(form["payload[value]"]) < 0:
            return 400, "value must not be negative"
        self.events[identifier] = form
        return 200, ""


@contextmanager
def stripe_server() -> Iterator[StripeServer]:
    state = StripeServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            form = dict(parse_qsl(body, keep_blank_values=True))
            status, message = state.answer(self.path, form, self.headers.get("authorization"))
            answer: dict[str, Any] = form if status == 200 else {"error": {"message": message}}
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_args: object) -> None:
            """Tests are quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
