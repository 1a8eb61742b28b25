"""How the gateway calls an engine, wherever it runs, and how the engine refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from typing import Protocol

from weft.messages.facts import AdapterPlacement, EngineInfo, EngineStats
from weft.messages.outputs import EngineOutput
from weft.messages.requests import EngineRequest, Grammar


class EngineQueueFullError(Exception):
    """The bounded waiting queue is full; nothing was admitted."""

    def __init__(self, num_waiting: int) -> None:
        super().__init__(f"The engine's queue is full ({num_waiting} requests are waiting).")
        self.num_waiting = num_waiting


class EngineDrainingError(Exception):
    """The engine is shutting down and admits nothing more."""


class EngineDeadError(Exception):
    """The engine has ended by a fault, or cannot be reached; `str(error)` says why."""


class EngineClient(Protocol):
    """How the gateway sees an engine, wherever it runs."""

    @property
    def info(self) -> EngineInfo:
        """The engine's fixed facts."""

    @property
    def is_ready(self) -> bool:
        """True after warm-up, while the engine thread lives, makes progress and is not draining.

        Of an engine in another process this is what was heard of it last, at most seconds ago."""

    @property
    def not_ready_reason(self) -> str:
        """Why `is_ready` is False, as a sentence; empty when it is True."""

    async def prepare_grammar(self, grammar: Grammar) -> None:
        """Have `grammar` compiled before `generate` needs it: that may take seconds, which neither
        the caller's event loop nor the engine has. ValueError for one that cannot be used."""

    async def generate(self, req: EngineRequest) -> AsyncIterator[EngineOutput]:
        """Admit `req` at once, and give its outputs.

        Raises before there is an iterator: `EngineQueueFullError`, `EngineDrainingError`,
        `EngineDeadError`, or `ValueError` for a request that can never run (its prompt with
        max_tokens does not fit, a token id outside the vocabulary). Leaving the iterator early
        does not abort: call `abort`. A caller that is cancelled here has admitted nothing.
        """

    def abort(self, request_id: str) -> None:
        """End a request within one step; its last output has reason "abort". Idempotent."""

    async def stats(self, *, drain: bool = False) -> EngineStats:
        """The engine's counters now; `drain` empties the histogram buffers."""

    async def placements(self, adapter_digest: str | None = None) -> Sequence[AdapterPlacement]:
        """Of all adapters that are on a tier of the engine, or on their way; or of one, wherever it
        is."""

    async def unload_adapter(self, adapter_digest: str) -> None:
        """Have the adapter leave the device and host memory when the requests that use it have
        ended; one that comes for it before keeps it on the device."""

    def prefetch_adapter(self, adapter_digest: str) -> None:
        """Hint that a request for this adapter is near: start bringing it to the device."""

    async def discard_adapter(self, adapter_digest: str) -> None:
        """Its files were removed from the store: have it leave every tier of the engine, as
        `unload_adapter` does."""

    async def pin_adapters(self, adapter_digests: Collection[str]) -> None:
        """These versions, and no others, stay on the tiers that they reach."""

    async def drain(self, deadline_s: float) -> None:
        """Admit nothing more from this client, let what runs for it finish for `deadline_s`, abort
        the rest."""
