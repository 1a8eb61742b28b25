"""Sends spans to an OpenTelemetry collector, beside the requests that they are of.

Imported only where spans are asked for: OpenTelemetry's packages are an extra (`weft[telemetry]`).
What a span says is its maker's; nothing is added here but the process.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from importlib.metadata import version

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

logger = logging.getLogger("weft.telemetry")

# spans that wait to be sent; while the collector is away, the oldest are dropped
MAX_WAITING = 4096
_MAX_BATCH = 512
_INTERVAL_S = 1.0
_EXPORT_TIMEOUT_S = 5.0
# for the last spans when the server ends
CLOSE_S = 3.0


class SpanSender:
    """Takes spans at once and sends them from a thread of its own. `close` ends it."""

    def __init__(self, endpoint: str, max_waiting: int = MAX_WAITING) -> None:
        url = endpoint.rstrip("/") + "/v1/traces"
        self._exporter = OTLPSpanExporter(url, timeout=_EXPORT_TIMEOUT_S)
        # not the process's global one: what others trace is theirs
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "weft", "service.version": version("weft")}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._exporter,
                max_queue_size=max_waiting,
                schedule_delay_millis=_INTERVAL_S * 1000,
                max_export_batch_size=min(_MAX_BATCH, max_waiting),
            )
        )
        self._tracer = self._provider.get_tracer("weft")
        self._propagator = TraceContextTextMapPropagator()

    def send(
        self,
        name: str,
        started_ns: int,
        ended_ns: int,
        attributes: Mapping[str, AttributeValue],
        *,
        traceparent: str | None = None,
        has_failed: bool = False,
    ) -> None:
        """A server's span, in the trace that `traceparent` (W3C) names. Never waits.

        A caller's `tracestate` is left out: it is free text that would be sent on.
        """
        parent = Context()
        if traceparent is not None:
            parent = self._propagator.extract({"traceparent": traceparent}, parent)
        span = self._tracer.start_span(
            name, parent, SpanKind.SERVER, attributes, start_time=started_ns
        )
        if has_failed:
            span.set_status(Status(StatusCode.ERROR))
        span.end(ended_ns)

    def close(self) -> None:
        """Send what waits, for `CLOSE_S` at most; blocks for that long."""
        # a collector that hangs is not waited for by the process's end either
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_S)
        if closing.is_alive():
            logger.warning("the last spans could not be sent in %.0f s", CLOSE_S)
            self._exporter.shutdown()  # type: ignore[no-untyped-call]
