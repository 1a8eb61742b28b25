"""Spans of inference requests, as a collector on loopback gets them over OTLP."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tests.gateway.conftest import migrated
from tests.gateway.echo import EchoEngine
from tests.gateway.site import Site
from tests.tiny import BASE, create_lora

from weft.app import create_app
from weft.demo.tokens import write_tokenizer
from weft.server.http import background_server
from weft.settings import ServerSettings
from weft.telemetry import spans
from weft.telemetry.spans import SpanSender
from weft.tokenizer import BaseTokenizer

__all__ = ["migrated"]

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CANARY = "canary-7f3a"


class Collector:
    """Takes OTLP over HTTP. While `is_stuck` is set it takes requests and answers none."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.paths: set[str] = set()
        self.is_stuck = threading.Event()
        self._free = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.paths.add(self.path)
                body = self.rfile.read(int(self.headers["content-length"]))
                if collector.is_stuck.is_set():
                    collector._free.wait(30)
                    return
                collector.bodies.append(body)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Nobody reads it."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def spans(self) -> list[Any]:
        return [
            span
            for body in self.bodies
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def wait_for(self, request_id: str) -> Any:
        """The span of a request."""
        deadline = time.monotonic() + 20
        while True:
            for span in self.spans:
                if attributes(span)["weft.request_id"] == request_id:
                    return span
            assert time.monotonic() < deadline, "no such span came"
            time.sleep(0.02)

    def close(self) -> None:
        self._free.set()
        self._server.shutdown()
        self._server.server_close()


def attributes(span: Any) -> dict[str, Any]:
    """By name, as Python's values."""

    def value(wire: Any) -> Any:
        kind = wire.WhichOneof("value")
        if kind == "array_value":
            return [value(item) for item in wire.array_value.values]
        return getattr(wire, kind)

    return {entry.key: value(entry.value) for entry in span.attributes}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, migrated: Path, collector: Collector
) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("traced")
    for folder in ("base", "data"):
        (root / folder).mkdir()
    write_tokenizer(root / "base")
    shutil.copy(migrated, root / "data" / "weft.db")
    settings = ServerSettings(
        base_dir=root / "base", data_dir=root / "data", port=0, otlp_endpoint=collector.url
    )
    engine = EchoEngine()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spans, "_INTERVAL_S", 0.05)
        # what makes the framework tell all that it sees by itself, where it is let
        patch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        app = create_app(settings, engine, BaseTokenizer.from_dir(root / "base"))
        with background_server(app, settings) as url:
            operator_key = (settings.data_dir / "operator_key").read_text().strip()
            http = httpx2.Client(base_url=url, timeout=20.0)
            running = Site(url, app, engine, settings, operator_key, http)
            yield running
            running.close()


@pytest.fixture(scope="module")
def acme(site: Site) -> str:
    return site.tenant("acme")


def test_a_span_says_who_asked_for_what_and_what_came_of_it(
    site: Site, acme: str, collector: Collector
) -> None:
    body = {
        "model": BASE, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4,
        "temperature": 0.5, "top_p": 0.9, "seed": 7, "n": 2,
    }  # fmt: skip
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": f"x={CANARY}"}
    answer = site.call(acme, "POST", "/v1/chat/completions", json=body, headers=headers)
    span = collector.wait_for(answer.headers["x-request-id"])
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert span.trace_state == ""
    assert span.name == f"chat {BASE}"
    assert span.kind == Span.SPAN_KIND_SERVER
    assert 0 < span.end_time_unix_nano - span.start_time_unix_nano < 20e9
    told = attributes(span)
    usage = answer.json()["usage"]
    assert told == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "weft",
        "gen_ai.request.model": BASE,
        "gen_ai.request.max_tokens": 4,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.seed": 7,
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.stream": False,
        "gen_ai.response.model": BASE,
        "gen_ai.response.finish_reasons": ["length", "length"],
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
        "gen_ai.usage.cache_read.input_tokens": 1,
        "http.response.status_code": 200,
        "weft.request_id": answer.headers["x-request-id"],
        "weft.tenant_id": answer.headers["openai-organization"],
        "weft.project_id": told["weft.project_id"],
        "weft.base_model": BASE,
    }
    assert told["weft.project_id"].startswith("proj_")


def test_a_span_names_the_adapter_and_its_version(
    site: Site, acme: str, collector: Collector
) -> None:
    site.create_adapter(acme, "bot")
    site.upload(acme, "bot", create_lora()).raise_for_status()
    body = {"model": "bot", "prompt": "hello", "max_tokens": 2, "stream": True}
    answer = site.call(acme, "POST", "/v1/completions", json=body)
    told = attributes(span := collector.wait_for(answer.headers["x-request-id"]))
    assert span.name == "text_completion bot"
    assert span.parent_span_id == b""
    assert told["gen_ai.request.model"] == "bot"
    assert told["gen_ai.response.model"] == "bot@v1"
    assert told["weft.adapter_version"] == 1
    assert told["weft.adapter_digest"] == answer.headers["x-weft-adapter-digest"]
    assert told["weft.adapter_id"]
    assert 0 < told["gen_ai.response.time_to_first_chunk"] < 20


def test_what_went_wrong_is_told_by_a_word(site: Site, acme: str, collector: Collector) -> None:
    body = {"model": BASE, "prompt": "hello", "max_tokens": 3}
    refused = site.call(acme, "POST", "/v1/completions", json={**body, "model": CANARY})
    unknown = site.call("weft_live_x", "POST", "/v1/completions", json=body)
    site.engine.fails_after = 1
    try:
        failed = site.call(acme, "POST", "/v1/completions", json=body)
        broken = site.call(acme, "POST", "/v1/completions", json={**body, "stream": True})
    finally:
        site.engine.fails_after = None
    for answer, fault, is_error in (
        (refused, "404", False),
        (unknown, "401", False),
        (failed, str(failed.status_code), True),
        (broken, "generation_failed", True),
    ):
        span = collector.wait_for(answer.headers["x-request-id"])
        assert attributes(span)["error.type"] == fault
        assert (span.status.code == 2) is is_error
        assert ("weft.tenant_id" in attributes(span)) is (fault != "401")


def test_no_prompt_answer_or_secret_is_in_a_span(
    site: Site, acme: str, collector: Collector
) -> None:
    chat = {
        "messages": [{"role": "system", "content": CANARY}, {"role": "user", "content": CANARY}]
    }
    said: dict[str, object] = {
        "stop": [f"{CANARY}-stop"], "user": CANARY, "metadata": {"a": CANARY}, "cache_salt": CANARY,
        "response_format": {"type": "json_schema", "json_schema": {"name": CANARY, "schema": {}}},
    }  # fmt: skip
    headers = {"x-client-request-id": CANARY, "user-agent": CANARY, "tracestate": f"x={CANARY}"}
    answers = [
        site.call(acme, "POST", path, json={"model": BASE, **body}, headers=headers)
        for path, body in (
            ("/v1/chat/completions", chat | said),
            ("/v1/chat/completions", chat | {"stream": True}),
            ("/v1/chat/completions", chat | {"temperature": CANARY}),
            ("/v1/chat/completions", chat | {CANARY: 1}),
            ("/v1/completions", {"prompt": CANARY, "model": CANARY}),
            ("/v1/completions", {"prompt": CANARY}),
            (f"/v1/completions?key={CANARY}", {"prompt": CANARY}),
            ("/generate", {"inputs": CANARY}),
        )
    ]
    assert [a.status_code for a in answers].count(200) >= 4
    assert any(CANARY in a.text for a in answers), "the engine echoes"
    for answer in answers:
        collector.wait_for(answer.headers["x-request-id"])
    assert collector.paths == {"/v1/traces"}, "neither logs nor metrics"
    assert {span.name.partition(" ")[0] for span in collector.spans} == {"chat", "text_completion"}
    sent = b"".join(collector.bodies)
    for secret in (CANARY, acme, acme.rsplit("_", 1)[1], site.operator_key):
        assert secret.encode() not in sent


@pytest.mark.parametrize("how", ["refuses", "hangs"])
def test_a_collector_that_is_away_costs_no_request_anything(how: str) -> None:
    """And no memory: what waits is bounded."""
    collector = Collector()
    collector.is_stuck.set()
    url = collector.url
    if how == "refuses":
        with closing(socket.create_server(("127.0.0.1", 0))) as sock:
            url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    sender = SpanSender(url, max_waiting=16)
    started_s = time.monotonic()
    for number in range(2000):
        sender.send("chat", number + 1, number + 2, {"gen_ai.operation.name": "chat"})
    assert time.monotonic() - started_s < 2.0
    started_s = time.monotonic()
    sender.close()
    assert time.monotonic() - started_s < spans.CLOSE_S + 2
    assert collector.bodies == []
    collector.close()


@pytest.mark.parametrize(
    "name", ["otel:4318", "ftp://x", "http://", "http://a:b@x", "http://x/?t=1"]
)
def test_the_collectors_address_is_a_url_without_a_password(name: str) -> None:
    with pytest.raises(ValueError, match="otlp_endpoint must be like"):
        ServerSettings(base_dir=Path("base"), otlp_endpoint=name)


def test_a_server_without_spans_imports_none_of_their_packages() -> None:
    code = (
        "import sys, weft.app; from weft.telemetry.build import create_span_sender as create; "
        "assert create(None) is None; "
        "heavy = ('opentelemetry.sdk', 'opentelemetry.exporter', 'google.protobuf'); "
        "sys.exit(any(name.startswith(heavy) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
