"""What metering tells Prometheus of one process: sums since its start, and what it last found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_TEXTS = {
    "num_lost": ("weft_usage_lost", "Requests whose process or engine died; they cost nothing."),
    "num_orphans": ("weft_usage_orphans", "Admissions that nobody waited for, given back."),
    "num_delivered": ("weft_usage_messages_delivered", "Messages about usage that were taken."),
    "num_failures": ("weft_usage_delivery_failures", "Batches of messages that were not taken."),
}


@dataclass(slots=True)
class MeteringCounts:
    """Since the start of this process; `num_differences` is of the last verification."""

    num_lost: int = 0
    num_orphans: int = 0
    num_delivered: int = 0
    num_failures: int = 0
    num_differences: int = 0


class MeteringMetrics(Collector):
    """The counts as Prometheus' families."""

    def __init__(self, counts: MeteringCounts) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        for field in fields(self._counts):
            if field.name in _TEXTS:
                name, text = _TEXTS[field.name]
                yield CounterMetricFamily(name, text, getattr(self._counts, field.name))
        yield GaugeMetricFamily(
            "weft_billing_differences",
            "Differences between events, rollups, ledger and engines at the last verification.",
            self._counts.num_differences,
        )
