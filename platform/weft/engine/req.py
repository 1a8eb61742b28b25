"""One sequence in flight, as the scheduler sees it. Plain Python, no tensors.

A request for `n` choices is `n` sequences over one prompt: the first computes the prompt, the
others fork off its blocks when it is done.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from weft.messages import EngineRequest, FinishReason, Usage

if TYPE_CHECKING:
    from weft.engine.counts import TokenCounts
    from weft.engine.grammar import GrammarState


class ReqState(Enum):
    """FORKING: a choice whose prompt the first choice still computes."""

    FORKING = "forking"
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False, slots=True)
class Req:
    """Choice `index` of a request. `num_computed` tokens of `token_ids` have keys and values in
    `blocks`, or, while it is swapped out, in `host_blocks`. `blocks` are int32, as every step hands
    them to kernels.

    `choices` are all sequences of the request, this one included. `block_hashes` name the full
    blocks known so far (see `prefix`). `num_charged` tokens of the prompt were charged as service.
    Times are monotonic seconds.
    """

    request: EngineRequest
    arrived_s: float
    index: int = 0
    choices: list[Req] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    num_computed: int = 0
    blocks: array[int] = field(default_factory=lambda: array("i"))
    host_blocks: list[int] = field(default_factory=list)
    prefix_root: bytes = b""
    block_hashes: list[bytes] = field(default_factory=list)
    num_published: int = 0
    num_cached_tokens: int = 0
    num_charged: int = 0
    state: ReqState = ReqState.WAITING
    finish_reason: FinishReason | None = None
    grammar: GrammarState | None = None
    counts: TokenCounts | None = None
    num_preemptions: int = 0
    num_yields: int = 0
    num_passed_over: int = 0
    started_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.prompt_token_ids)
        self.choices = [self]

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def tenant_id(self) -> str:
        return self.request.tenant_id

    @property
    def adapter_digest(self) -> str | None:
        return self.request.adapter_digest

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed(self) -> int:
        return len(self.token_ids) - self.num_computed

    @property
    def is_finished(self) -> bool:
        return self.state is ReqState.FINISHED

    @property
    def is_decoding(self) -> bool:
        """One token at the end is all that is left to compute, and it was sampled."""
        return len(self.token_ids) - self.num_computed == 1 and self.num_output_tokens > 0

    @property
    def usage(self) -> Usage:
        """What the whole request has used so far: a prompt counts once, from the step that first
        computes some of it."""
        first = self.choices[0]
        if first.started_s is None:
            return Usage(0, 0)
        return Usage(
            first.num_prompt_tokens,
            sum(choice.num_output_tokens for choice in self.choices),
            first.num_cached_tokens,
        )


def create_choices(request: EngineRequest, now: float) -> list[Req]:
    """The sequences of a request; all but the first wait for its prompt."""
    choices = [Req(request, now, index) for index in range(request.sampling.n)]
    for choice in choices:
        choice.choices = choices
        if choice.index > 0:
            choice.state = ReqState.FORKING
    return choices
