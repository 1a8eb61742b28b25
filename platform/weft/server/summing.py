"""Metrics of several processes as if one had counted them all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

_Labels = tuple[tuple[str, str], ...]


class _Summed(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def add_up(texts: Iterable[bytes], ended: Iterable[bytes] = ()) -> bytes:
    """One text exposition of several: samples with the same name and labels are added up, but when
    a series was created is the earliest time. Of processes that have `ended` counters still count,
    so that no counter goes back; their gauges do not."""
    families: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, _Labels], float]] = {}
    for family in chain(_parse(ended, without="gauge"), _parse(texts)):
        families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
        known = values.setdefault(family.name, {})
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            if sample.name.endswith("_created"):
                known[key] = min(known.get(key, sample.value), sample.value)
            else:
                known[key] = known.get(key, 0.0) + sample.value
    for name, family in families.items():
        for (sample_name, labels), value in values[name].items():
            family.add_sample(sample_name, dict(labels), value)
    registry = CollectorRegistry()
    registry.register(_Summed(families.values()))
    return generate_latest(registry)


def _parse(texts: Iterable[bytes], without: str = "") -> Iterator[Metric]:
    for text in texts:
        for family in text_string_to_metric_families(text.decode()):
            if family.type != without or family.name.endswith("_created"):
                yield family
