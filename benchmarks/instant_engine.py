"""An engine that has every answer ready: what is left of a request's time is the gateway's.

As `python -m benchmarks.instant_engine` it is the engine's process of several gateway workers.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path

from weft.ipc.server import engine_socket
from weft.messages import (
    AdapterPlacement,
    EngineInfo,
    EngineOutput,
    EngineRequest,
    EngineStats,
    Grammar,
    Usage,
)
from weft.server.control import ChildEnd, Started

MODEL = "instant"


class InstantEngine:
    """An `EngineClient` whose tokens are all "a"."""

    is_ready = True
    not_ready_reason = ""

    def __init__(self) -> None:
        config = {
            "model_type": "qwen3", "hidden_size": 16, "intermediate_size": 32,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
            "head_dim": 8, "vocab_size": 264, "tie_word_embeddings": False,
            "max_position_embeddings": 4096,
        }  # fmt: skip
        digest = "sha256:" + "ba" * 32
        self.info = EngineInfo(MODEL, digest, config, 4096, 16, "float32", "none", "none", {})
        self._num_prompt_tokens = self._num_generation_tokens = 0

    async def prepare_grammar(self, grammar: Grammar) -> None:
        """Nothing is sampled."""

    async def generate(self, req: EngineRequest) -> AsyncIterator[EngineOutput]:
        self._num_prompt_tokens += len(req.prompt_token_ids)
        self._num_generation_tokens += req.sampling.max_tokens
        return self._outputs(req)

    @staticmethod
    async def _outputs(req: EngineRequest) -> AsyncIterator[EngineOutput]:
        num_prompt, num_tokens = len(req.prompt_token_ids), req.sampling.max_tokens
        for i in range(1, num_tokens + 1):
            is_last = i == num_tokens
            yield EngineOutput(
                req.request_id, "a", (97,), Usage(num_prompt, i), "length" if is_last else None,
                is_last=is_last,
            )  # fmt: skip

    def abort(self, request_id: str) -> None:
        """It is over."""

    async def stats(self, *, drain: bool = False) -> EngineStats:
        return EngineStats(
            0, 0, 1, 1, 1, 1, self._num_prompt_tokens, self._num_generation_tokens, 0
        )

    async def placements(self, adapter_digest: str | None = None) -> Sequence[AdapterPlacement]:
        return ()

    async def unload_adapter(self, adapter_digest: str) -> None:
        """It has none."""

    def prefetch_adapter(self, adapter_digest: str) -> None:
        """It has none."""

    async def discard_adapter(self, adapter_digest: str) -> None:
        """It has none."""

    async def pin_adapters(self, adapter_digests: Collection[str]) -> None:
        """It has none."""

    async def drain(self, deadline_s: float) -> None:
        """Nothing runs."""


async def _offer(end: ChildEnd) -> None:
    """Until the supervisor is gone."""
    reader, writer = await end.open()
    async with engine_socket(InstantEngine(), Path(end.handover.engine_socket)):
        writer.send(Started())
        async for _ in reader:
            pass


def main() -> int:
    asyncio.run(_offer(ChildEnd()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
