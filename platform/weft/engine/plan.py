"""What one step runs: the value that the scheduler hands to the runner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from weft.engine.req import Req
from weft.messages import ErrorCode


@dataclass(frozen=True, slots=True)
class ScheduledReq:
    """A request's part of a step: tokens `[start, start + num_new)` are computed.

    `samples` is True when they reach the end, so that the step yields the next token. The last of
    them may be one that the step before is still choosing.
    """

    req: Req
    start: int
    num_new: int
    samples: bool

    @property
    def stop(self) -> int:
        return self.start + self.num_new


@dataclass(frozen=True, slots=True)
class BlockMoves:
    """Copies of whole KV blocks before the step computes, in this order: all of `out` (device,
    host), then all of `copies` (from, to) on the device, then all of `back` (host, device)."""

    out: tuple[tuple[int, int], ...] = ()
    copies: tuple[tuple[int, int], ...] = ()
    back: tuple[tuple[int, int], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.out or self.copies or self.back)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request ends without an answer, or before its answer is whole."""

    code: ErrorCode
    reason: str


@dataclass(frozen=True, slots=True)
class StepPlan:
    """`refused` requests end now; the engine says so to their callers."""

    scheduled: tuple[ScheduledReq, ...]
    moves: BlockMoves = field(default_factory=BlockMoves)
    refused: Mapping[Req, Refusal] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        return sum(item.num_new for item in self.scheduled)
