"""One generation in flight, as the scheduler sees it. Plain Python, no tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from weft.messages import EngineRequest, FinishReason, Usage


class ReqState(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False, slots=True)
class Req:
    """`num_computed` tokens of `token_ids` have keys and values in `blocks`.

    arrived_s, first_token_s and last_token_s are monotonic seconds.
    """

    request: EngineRequest
    arrived_s: float
    token_ids: list[int] = field(default_factory=list)
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    state: ReqState = ReqState.WAITING
    finish_reason: FinishReason | None = None
    num_preemptions: int = 0
    num_passed_over: int = 0
    started_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.prompt_token_ids)

    @property
    def request_id(self) -> str:
        return self.request.request_id

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
    def usage(self) -> Usage:
        """What counts so far: a prompt counts from the step that first computes some of it."""
        num_prompt_tokens = 0 if self.started_s is None else self.num_prompt_tokens
        return Usage(num_prompt_tokens, self.num_output_tokens)
