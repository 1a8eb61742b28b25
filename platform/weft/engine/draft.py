"""A step's plan in the making. Plain Python, no tensors."""

from __future__ import annotations

from dataclasses import dataclass, field

from weft.engine.fairness import ANSWER_TOKEN_COST, PROMPT_TOKEN_COST
from weft.engine.plan import Refusal, ScheduledReq
from weft.engine.queues import WaitingQueues
from weft.engine.req import Req


@dataclass(slots=True)
class StepDraft:
    """`num_reserved` blocks and one token each are kept for `decoding`, and `num_kept` blocks for
    the prompt of the oldest running request: who came later would take them again and again, and
    give them back computing nothing new."""

    waiting: WaitingQueues
    budget: int
    decoding: dict[Req, int]
    num_reserved: int
    num_kept: int = 0
    scheduled: list[ScheduledReq] = field(default_factory=list)
    refused: dict[Req, Refusal] = field(default_factory=dict)
    is_closed: bool = False  # a request has waited for blocks too long: nothing may start
    is_closed_to_adapters: bool = False
    lacks_yield: bool = False  # one who is in flight would have to yield
    lacks_blocks: bool = False  # some could have started if there were more
    tried: set[Req] = field(default_factory=set)

    def take(self, req: Req, num_new: int) -> None:
        """Have the step compute `num_new` more tokens of `req`, and charge its tenant for them."""
        stop = req.num_computed + num_new
        samples = stop == req.num_tokens
        self.scheduled.append(ScheduledReq(req, req.num_computed, num_new, samples))
        # what was computed once, or came from the cache, is not charged again
        num_prompt = max(0, min(stop, req.num_prompt_tokens) - req.num_charged)
        req.num_charged += num_prompt
        cost = PROMPT_TOKEN_COST * num_prompt + (ANSWER_TOKEN_COST if samples else 0.0)
        self.waiting.charge(req, cost)
