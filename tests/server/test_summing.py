"""Metrics of several processes, added up."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from weft.server.summing import add_up


def _text(count: int, seconds: float, level: float) -> bytes:
    registry = CollectorRegistry()
    Counter("weft_requests", "Requests.", ("kind",), registry=registry).labels("a").inc(count)
    Histogram("weft_seconds", "Time.", buckets=(1, 2), registry=registry).observe(seconds)
    Gauge("weft_level", "Level.", registry=registry).set(level)
    return generate_latest(registry)


def _samples(text: bytes) -> dict[str, float]:
    rows = (line.rsplit(" ", 1) for line in text.decode().splitlines() if line[0] != "#")
    return {name: float(value) for name, value in rows}


def test_counters_histograms_and_gauges_are_added_up() -> None:
    texts = [_text(3, 0.5, 1), _text(4, 1.5, 2)]
    summed = _samples(add_up(texts))
    assert summed['weft_requests_total{kind="a"}'] == 7
    assert summed['weft_seconds_bucket{le="1.0"}'] == 1
    assert summed['weft_seconds_bucket{le="+Inf"}'] == 2
    assert summed["weft_seconds_sum"] == 2.0
    assert summed["weft_level"] == 3
    created = 'weft_requests_created{kind="a"}'
    assert summed[created] == min(_samples(text)[created] for text in texts)


def test_of_a_process_that_has_ended_counters_count_and_gauges_do_not() -> None:
    ended = add_up((), ended=(_text(3, 0.5, 1),))
    ended = add_up((), ended=(ended, _text(1, 0.5, 1)))
    summed = _samples(add_up([_text(4, 1.5, 2)], ended=(ended,)))
    assert summed['weft_requests_total{kind="a"}'] == 8
    assert summed["weft_seconds_count"] == 3
    assert summed["weft_level"] == 2


def test_nothing_adds_up_to_nothing() -> None:
    assert add_up(()) == b""
    assert add_up((b"",)) == b""
