"""Who gives what back when others need it: blocks of the KV cache, and places of adapters."""

from __future__ import annotations

from collections.abc import Collection

from weft.engine.blocks import BlockManager
from weft.engine.draft import StepDraft
from weft.engine.memory import SequenceMemory
from weft.engine.queues import WaitingQueues
from weft.engine.req import Req
from weft.engine.running import RunningSet


class Reclaimer:
    """Takes from those that wait with blocks first, then from who runs and has the least claim."""

    def __init__(
        self,
        waiting: WaitingQueues,
        running: RunningSet,
        memory: SequenceMemory,
        blocks: BlockManager,
    ) -> None:
        self._waiting, self._running, self._memory = waiting, running, memory
        self._blocks = blocks

    def pause(self, refused: Collection[Req]) -> bool:
        """Pause who runs with an adapter that has to make room; True when one is in flight, so that
        it can only be paused when nothing is."""
        leaving = [req for req in self._running.leaving_adapters() if req not in refused]
        for req in leaving:
            if not req.num_steps_in_flight:
                self._running.pause(req)
        return any(req.num_steps_in_flight for req in leaving)

    def relieve(self, refused: Collection[Req]) -> None:
        """Preempt until all that decode can have the blocks they need for one more token."""
        while self.num_missing(refused) > self._blocks.num_free:
            if not self.reclaim():
                return

    def num_missing(self, refused: Collection[Req]) -> int:
        """Blocks that all who decode need for one more token each."""
        return sum(
            self._memory.num_missing(req, 1)
            for req in self._running.reqs
            if req.is_decoding and req not in refused
        )

    def reclaim(self) -> bool:
        """Make some blocks free, at the cost of who has least claim to them; False at the end."""
        if self._drop_forks() or self._take_from_paused():
            return True
        victim = self._running.victim()
        if victim is not None:
            self._running.preempt(victim)
        return victim is not None

    def drop_held(self, step: StepDraft) -> bool:
        """Nobody runs: who waits with blocks gives them up. Those that pause go on when their
        adapter is back, so only where others, or they, lack blocks."""
        return self._drop_forks() or (step.lacks_blocks and self._take_from_paused())

    def _drop_forks(self) -> bool:
        """Waiting choices give up the prompt they share; they compute or match it again."""
        forks = [req for req in self._waiting if req.blocks and not req.num_pauses]
        for req in forks:
            self._memory.free(req)
        return bool(forks)

    def _take_from_paused(self) -> bool:
        """Who pauses and has the least claim gives its blocks up."""
        req = self._running.least_claim(r for r in self._waiting if r.blocks and r.num_pauses)
        if req is not None:
            self._running.take_blocks(req)
        return req is not None
