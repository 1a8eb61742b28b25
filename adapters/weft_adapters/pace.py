"""How loading shares the machine with the engine: its part of a core, and what it did when.

On a CPU the threads that load take cores, memory bandwidth and the interpreter from the engine's
step. They work in small pieces and rest between them, as long as the engine steps.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

# the engine has nothing to do when it has not stepped for so long
_IDLE_S = 0.25
# a copy to the device is the shorter part, and a request waits for just that
_COPY_SHARE = 0.5
# work between two rests: short beside a step, and not so short that every step is interrupted
_PIECE_S = 0.001

LoadKind = Literal["download", "read", "copy"]


@dataclass(frozen=True, slots=True)
class LoadSpan:
    """One piece of loading: store to disk, disk to host (with hashing), or host to device. Times
    are monotonic seconds, rests included."""

    kind: LoadKind
    digest: str
    thread_id: int
    started_s: float
    ended_s: float


class Pace:
    """`pause` is called between pieces of work by any thread that loads; all of them together take
    at most `share` of a core while the engine steps, copies apart. None: no limit, for engines
    whose steps do not run on the host. `on_span` is told of each piece, by the thread that did it.
    """

    def __init__(
        self, share: float | None = None, on_span: Callable[[LoadSpan], None] | None = None
    ) -> None:
        if share is not None and not 0 < share <= 1:
            raise ValueError(f"the loader's share of a core must be above 0 and at most 1: {share}")
        self._share = share
        self.on_span = on_span
        self._stepped_s = 0.0
        self._rested_until_s = 0.0
        self._lock = threading.Lock()
        self._own = threading.local()

    def note_step(self) -> None:
        """The engine runs a step."""
        self._stepped_s = time.monotonic()

    def pause(self) -> None:
        """Rest for what the calling thread has worked since its last pause."""
        if self._share is not None:
            self._rest(self._share)

    def pause_copy(self) -> None:
        """The same between copies to the device, which rest less."""
        if self._share is not None:
            self._rest(max(self._share, _COPY_SHARE))

    def _rest(self, share: float) -> None:
        used_s = self._take_used() + float(getattr(self._own, "unrested_s", 0.0))
        now = time.monotonic()
        is_idle = now - self._stepped_s > _IDLE_S
        self._own.unrested_s = used_s if used_s < _PIECE_S and not is_idle else 0.0
        if used_s < _PIECE_S or is_idle:
            return
        with self._lock:
            begun_s = max(self._rested_until_s, now - used_s)
            self._rested_until_s = begun_s + used_s / share
            rest_s = self._rested_until_s - now
        time.sleep(max(0.0, rest_s))

    def _take_used(self) -> float:
        """CPU seconds of this thread since the last call."""
        now_s = time.thread_time()
        used_s = now_s - float(getattr(self._own, "used_s", now_s))
        self._own.used_s = now_s
        return used_s

    @contextmanager
    def span(self, kind: LoadKind, digest: str) -> Iterator[None]:
        started_s = time.monotonic()
        self._take_used()
        try:
            yield
        finally:
            if self.on_span is not None:
                thread_id = threading.get_ident()
                self.on_span(LoadSpan(kind, digest, thread_id, started_s, time.monotonic()))
            if kind == "copy":
                self.pause_copy()
            else:
                self.pause()
