"""Loading takes its part of a core while the engine steps, and all of it while it does not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from weft_adapters.pace import LoadSpan, Pace


def work(seconds: float) -> None:
    end_s = time.thread_time() + seconds
    while time.thread_time() < end_s:
        pass


def load(pace: Pace, pause: Callable[[], None], num_pieces: int = 10) -> float:
    """Wall seconds for pieces of 2 ms of work."""
    started_s = time.monotonic()
    with pace.span("read", "d"):
        for _ in range(num_pieces):
            pace.note_step()
            work(0.002)
            pause()
    return time.monotonic() - started_s


def test_loading_rests_while_the_engine_steps() -> None:
    pace = Pace(0.1)
    assert load(pace, pace.pause) >= 0.15


def test_several_threads_share_one_part() -> None:
    pace = Pace(0.2)
    threads = [threading.Thread(target=load, args=(pace, pace.pause)) for _ in range(2)]
    started_s = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - started_s >= 0.15


def test_copies_rest_less() -> None:
    pace = Pace(0.02)
    started_s = time.monotonic()
    with pace.span("copy", "d"):
        for _ in range(10):
            pace.note_step()
            work(0.002)
            pace.pause_copy()
    assert 0.03 <= time.monotonic() - started_s < 0.9


def test_nobody_rests_beside_an_engine_that_has_nothing_to_do() -> None:
    pace = Pace(0.001)
    started_s = time.monotonic()
    for _ in range(10):
        work(0.002)
        pace.pause()
    assert time.monotonic() - started_s < 2  # at that part: 20 s


def test_without_a_limit_nobody_rests() -> None:
    pace = Pace()
    assert load(pace, pace.pause) < 2


@pytest.mark.parametrize("share", [0.0, -1.0, 1.1])
def test_a_part_of_nothing_or_of_more_than_a_core_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share of a core"):
        Pace(share)


def test_spans_tell_who_did_what_when() -> None:
    spans: list[LoadSpan] = []
    pace = Pace(on_span=spans.append)
    with pytest.raises(ValueError, match="broken"), pace.span("copy", "d"):
        raise ValueError("broken")
    (span,) = spans
    assert (span.kind, span.digest, span.thread_id) == ("copy", "d", threading.get_ident())
    assert span.started_s <= span.ended_s
