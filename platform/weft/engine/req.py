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

    A step in flight was scheduled and not applied yet. `num_steps_in_flight` have rows of it, which
    count as computed, and choose `num_tokens_in_flight` tokens that `token_ids` does not have yet.

    `choices` are all sequences of the request, this one included. `block_hashes` name the full
    blocks known so far (see `prefix`). `num_charged` tokens of the prompt were charged as service.
    `num_tokens_at_start`: of `token_ids`, when it last took its place.
    Times are monotonic seconds.
    """

    request: EngineRequest
    arrived_s: float
    index: int = 0
    choices: list[Req] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    num_prompt_tokens: int = 0
    num_computed: int = 0
    num_steps_in_flight: int = 0
    num_tokens_in_flight: int = 0
    blocks: array[int] = field(default_factory=lambda: array("i"))
    host_blocks: list[int] = field(default_factory=list)
    prefix_root: bytes = b""
    block_hashes: list[bytes] = field(default_factory=list)
    num_published: int = 0
    num_cached_tokens: int = 0
    num_charged: int = 0
    num_tokens_at_start: int = 0
    state: ReqState = ReqState.WAITING
    finish_reason: FinishReason | None = None
    grammar: GrammarState | None = None
    counts: TokenCounts | None = None
    num_preemptions: int = 0
    num_pauses: int = 0
    num_yields: int = 0
    num_passed_over: int = 0
    started_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
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
    def eos_token_ids(self) -> frozenset[int]:
        """What ends its answers besides the base's ends of text."""
        vocabulary = self.request.vocabulary
        return frozenset() if vocabulary is None else vocabulary.eos_token_ids

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_tokens(self) -> int:
        """Prompt and answer, with what is in flight."""
        return len(self.token_ids) + self.num_tokens_in_flight

    @property
    def num_uncomputed(self) -> int:
        return self.num_tokens - self.num_computed

    @property
    def is_finished(self) -> bool:
        return self.state is ReqState.FINISHED

    @property
    def is_decoding(self) -> bool:
        """One token at the end is all that is left to compute, and it was sampled, or will be by
        the step in flight."""
        num_tokens = self.num_tokens
        is_last = num_tokens - self.num_computed == 1
        return is_last and num_tokens > self.num_prompt_tokens and not self.awaits_its_end

    @property
    def awaits_its_end(self) -> bool:
        """The step in flight chooses the last token that it may have."""
        if not self.num_tokens_in_flight:
            return False
        return self.num_tokens - self.num_prompt_tokens >= self.max_tokens

    @property
    def max_tokens(self) -> int:
        return self.request.sampling.max_tokens

    @property
    def is_processed(self) -> bool:
        """False where its logits stay what the model made them."""
        sampling = self.request.sampling
        return (
            self.grammar is not None
            or bool(sampling.logit_bias)
            or sampling.has_penalty
            or self.num_output_tokens < sampling.min_tokens
        )

    @property
    def is_sampled_by_host(self) -> bool:
        """Its logits are changed before a token is chosen, or shown."""
        return self.is_processed or self.request.sampling.logprobs is not None

    @property
    def forks_next(self) -> bool:
        """Other choices go on from its prompt when its first token is known."""
        return any(choice.state is ReqState.FORKING for choice in self.choices)

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
