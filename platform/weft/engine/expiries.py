"""When requests that may not wait or take for ever are over. Plain Python, no tensors."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from weft.engine.plan import Refusal
from weft.engine.req import Req, ReqState

_QUEUE = Refusal("queue_timeout", "The request waited too long to be started.")
_LOADING = Refusal("adapter_loading", "The adapter is still being loaded. Try again soon.")
_DEADLINE = Refusal("deadline_exceeded", "The request took longer than it may.")
# times noted before it is worth looking for requests that are over
_LEAST_PRUNED = 64


class Expiries:
    """The times that requests came with, soonest first."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Refusal, Req]] = []
        self._num_added = 0
        self._prune_at = _LEAST_PRUNED

    def add(self, req: Req) -> None:
        """Note the timeouts of a request, if it has any."""
        request = req.request
        for timeout_s, refusal in (
            (request.queue_timeout_s, _QUEUE),
            (request.timeout_s, _DEADLINE),
            (request.adapter_timeout_s if request.adapter_digest else None, _LOADING),
        ):
            if timeout_s is not None:
                self._note(req.arrived_s + timeout_s, refusal, req)
        if len(self._due) >= self._prune_at:
            self._prune()

    def _note(self, due_s: float, refusal: Refusal, req: Req) -> None:
        self._num_added += 1
        heapq.heappush(self._due, (due_s, self._num_added, refusal, req))

    def _prune(self) -> None:
        """Let go of requests that ended in time."""
        self._due = [due for due in self._due if any(not c.is_finished for c in due[3].choices)]
        heapq.heapify(self._due)
        self._prune_at = max(_LEAST_PRUNED, 2 * len(self._due))

    @property
    def num_noted(self) -> int:
        return len(self._due)

    def pop(
        self, now: float, has_adapter: Callable[[str], bool] = lambda digest: False
    ) -> dict[Req, Refusal]:
        """The unfinished choices of requests whose time is over. `has_adapter`: it is on the
        device, and what a request for it waits for is something else."""
        over: dict[Req, Refusal] = {}
        while self._due and self._due[0][0] <= now:
            _, _, refusal, req = heapq.heappop(self._due)
            has_paused = req.num_preemptions > 0 or req.num_pauses > 0
            has_started = req.state is not ReqState.WAITING or has_paused
            if refusal is not _DEADLINE and has_started:
                continue
            if refusal is _LOADING and has_adapter(req.adapter_digest or ""):
                # it may be evicted again before the request starts
                self._note(now + (req.request.adapter_timeout_s or 0), _LOADING, req)
                continue
            for choice in req.choices:
                if choice.state is not ReqState.FINISHED:
                    over[choice] = refusal
        return over
