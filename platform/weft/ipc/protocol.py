"""What is said over the engine's socket: a client's calls, the engine's answers and news."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from weft.ipc.frames import Message
from weft.messages import (
    AdapterPlacement,
    EngineDeadError,
    EngineDrainingError,
    EngineInfo,
    EngineOutput,
    EngineQueueFullError,
    EngineRequest,
    EngineStats,
    Grammar,
)

# ---- the first frame of either side; their form stays ----


class Hello(Message, frozen=True, tag="hello"):
    """`protocol` names the form of all other messages."""

    protocol: str


# ---- a client's ----


class Generate(Message, frozen=True, tag="generate"):
    call: int
    request: EngineRequest


class Abort(Message, frozen=True, tag="abort"):
    request_id: str


class Prefetch(Message, frozen=True, tag="prefetch"):
    digest: str


class PrepareGrammar(Message, frozen=True, tag="grammar"):
    call: int
    grammar: Grammar


class AskStats(Message, frozen=True, tag="stats"):
    call: int
    drain: bool


class AskPlacements(Message, frozen=True, tag="placements"):
    call: int
    digest: str | None


class Unload(Message, frozen=True, tag="unload"):
    call: int
    digest: str


class Discard(Message, frozen=True, tag="discard"):
    call: int
    digest: str


class Pin(Message, frozen=True, tag="pin"):
    call: int
    digests: tuple[str, ...]


ClientMessage = (
    Hello | Generate | Abort | Prefetch | PrepareGrammar | AskStats | AskPlacements | Unload
    | Discard | Pin
)  # fmt: skip


# ---- the engine's ----


class Welcome(Message, frozen=True, tag="welcome"):
    info: EngineInfo
    not_ready_reason: str


class Status(Message, frozen=True, tag="status"):
    """Sent every second, and so a sign of life."""

    not_ready_reason: str


class Done(Message, frozen=True, tag="done"):
    call: int


class Stats(Message, frozen=True, tag="stats"):
    call: int
    stats: EngineStats


class Placements(Message, frozen=True, tag="placements"):
    call: int
    placements: tuple[AdapterPlacement, ...]


class Refused(Message, frozen=True, tag="refused"):
    """`kind`: which exception the call raises. `num_waiting` is for "queue_full"."""

    call: int
    kind: str
    message: str
    num_waiting: int = 0


class Output(Message, frozen=True, tag="output"):
    output: EngineOutput


EngineMessage = Hello | Welcome | Status | Done | Stats | Placements | Refused | Output


def _schema_of(kind: type) -> dict[str, Any]:
    return {"description": kind.__name__}


def _protocol() -> str:
    """A digest of the messages' form: processes of two releases never misread each other."""
    schemas = [
        msgspec.json.schema(messages, schema_hook=_schema_of)
        for messages in (ClientMessage, EngineMessage)
    ]
    return hashlib.sha256(msgspec.json.encode(schemas, order="deterministic")).hexdigest()


PROTOCOL = _protocol()


def refusal_of(call: int, error: Exception) -> Refused:
    """What a client is told of an exception of the engine's; `error_of` makes it one again."""
    if isinstance(error, EngineQueueFullError):
        return Refused(call, "queue_full", str(error), error.num_waiting)
    if isinstance(error, EngineDrainingError):
        return Refused(call, "draining", str(error))
    if isinstance(error, EngineDeadError):
        return Refused(call, "dead", str(error))
    if isinstance(error, ValueError):
        return Refused(call, "invalid", str(error))
    return Refused(call, "failed", f"{type(error).__name__}: {error}")


def error_of(refused: Refused) -> Exception:
    """What the call raises at the client."""
    match refused.kind:
        case "queue_full":
            return EngineQueueFullError(refused.num_waiting)
        case "draining":
            return EngineDrainingError(refused.message)
        case "dead":
            return EngineDeadError(refused.message)
        case "invalid":
            return ValueError(refused.message)
    return RuntimeError(refused.message)
