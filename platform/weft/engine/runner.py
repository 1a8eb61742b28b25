"""Runs a step's plan: plan in, next tokens out. Everything that touches tensors in a step is here.

A step is launched, and its outcome collected when it is wanted. It knows rows and blocks; it does
not decide who runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from weft.engine.kv_cache import clean_blocks, copy_blocks
from weft.engine.model.decoder import AdapterBatch, Batch, Decoder, KVCache
from weft.engine.plan import BlockMoves, ScheduledReq, StepPlan
from weft.engine.req import Req
from weft.engine.sampler import Sampled, sample
from weft.engine.vocabulary_batch import create_vocabulary_batch
from weft_adapters.pool import PooledAdapter
from weft_kernels.backend import Attention
from weft_kernels.layers import LayerRows


class AdapterSet(Protocol):
    """The adapters that running requests hold, as the kernels read them."""

    def order_key(self, digest: str | None, num_rows: int) -> Any:
        """Requests sorted by it, with the number of rows that they bring, make the best batch."""

    def update(self, adapters: Mapping[str, PooledAdapter]) -> None: ...

    def create_batch(self, row_digests: Sequence[str | None]) -> AdapterBatch: ...


@dataclass(frozen=True, slots=True)
class StepRows:
    """The rows of a step; `spans`, `tables` and `logit_rows` (the last row of each) are by item,
    see `Backend.create_attention`. A row with a number in `taken_from`, not -1, has no token of its
    own: it takes what the step launched before this one chooses in that row of logits."""

    tokens: list[int]
    taken_from: list[int]
    positions: list[int]
    kv_slots: list[int]
    digests: list[str | None]
    logit_rows: list[int]
    spans: list[tuple[int, int, int]]
    tables: list[Sequence[int]]


@dataclass(frozen=True, slots=True)
class PendingStep:
    """A step that was launched: `items` in the order of its rows of logits. `wait` returns when it
    is over, with what became of each of them; to be called once."""

    items: Sequence[ScheduledReq]
    wait: Callable[[], Sequence[Sampled]]

    def collect(self) -> dict[Req, Sampled]:
        """The next token of each req that samples, and a failure for every req whose logits are not
        finite, also in the middle of its prompt: attention carries a non-finite value on to the
        last row, so blocks of the others hold none."""
        pairs = zip(self.items, self.wait(), strict=True)
        return {item.req: row for item, row in pairs if item.samples or row.failure is not None}


class Runner:
    """One decoder, its KV cache and its adapters, on one device."""

    def __init__(
        self,
        decoder: Decoder,
        kv: KVCache,
        adapters: AdapterSet,
        block_size: int,
        host_kv: KVCache | None = None,
        eos_token_ids: frozenset[int] = frozenset(),
    ) -> None:
        self._decoder, self._kv, self._adapters = decoder, kv, adapters
        self._host_kv, self._eos_token_ids = host_kv, eos_token_ids
        self._block_size = block_size
        self._device = kv.tensors()[0].device
        # of the step that was launched last
        self._row_of: Mapping[Req, int] = {}
        self._chosen: Sequence[int] = ()

    def warm_up(self) -> None:
        """Do what the first steps would otherwise wait for."""

    def launch(self, plan: StepPlan, adapters: Mapping[str, PooledAdapter]) -> PendingStep:
        """Have the plan's tokens computed; here it is done at once. `adapters` are those that
        requests hold, by digest; they stay as they are until the step is collected.

        Steps are computed in the order of their launches, so that the step launched before may be
        collected after this: then the token that it chooses for a request is taken from there.
        """
        if not plan.scheduled:
            self._move(plan.moves)
            return PendingStep((), lambda: ())
        items, batch, logits_NV = self._run(plan, adapters)
        samples = [item.samples for item in items]
        reqs, backend = [item.req for item in items], self._decoder.backend
        positions = [item.stop for item in items]
        sizes = None if batch.vocabulary is None else batch.vocabulary.sizes
        sampled = sample(logits_NV, reqs, self._eos_token_ids, samples, backend, positions, sizes)
        self._row_of = {req: row for row, req in enumerate(reqs)}
        self._chosen = [row.token or 0 for row in sampled]  # who failed has no use for its next
        return PendingStep(items, lambda: sampled)

    def logits(
        self, plan: StepPlan, adapters: Mapping[str, PooledAdapter]
    ) -> dict[Req, torch.Tensor]:
        """The logits of the reqs that sample: float32 `[V]` each."""
        items, logits_NV = self._forward(plan, adapters)
        return {item.req: row for item, row in zip(items, logits_NV, strict=True) if item.samples}

    def _forward(
        self, plan: StepPlan, adapters: Mapping[str, PooledAdapter]
    ) -> tuple[list[ScheduledReq], torch.Tensor]:
        """The plan's items in the order of the batch, and the logits at each one's last row."""
        items, _, logits_NV = self._run(plan, adapters)
        return items, logits_NV

    def _run(
        self, plan: StepPlan, adapters: Mapping[str, PooledAdapter]
    ) -> tuple[list[ScheduledReq], Batch, torch.Tensor]:
        self._move(plan.moves)
        self._adapters.update(adapters)
        items = sorted(plan.scheduled, key=self._order_key)
        batch = self._create_batch(items, adapters)
        return items, batch, self._decoder.forward(batch, self._kv)

    def _move(self, moves: BlockMoves) -> None:
        if self._host_kv is not None:
            copy_blocks(self._kv, self._host_kv, moves.out)
        copy_blocks(self._kv, self._kv, moves.copies)
        if self._host_kv is not None:
            copy_blocks(self._host_kv, self._kv, moves.back)

    def _order_key(self, item: ScheduledReq) -> Any:
        return self._adapters.order_key(item.req.adapter_digest, item.num_new)

    def clean(self, blocks: list[int]) -> None:
        """Zero blocks that may hold non-finite values."""
        clean_blocks(self._kv, blocks)

    def _create_rows(self, items: Sequence[ScheduledReq]) -> StepRows:
        rows = StepRows([], [], [], [], [], [], [], [])
        for item in items:
            stop, blocks = item.stop, item.req.blocks
            rows.spans.append((len(rows.tokens), item.num_new, stop))
            rows.tables.append(blocks)
            rows.tokens.extend(item.req.token_ids[item.start : stop])
            rows.taken_from.extend([-1] * item.num_new)
            if stop > len(item.req.token_ids):
                rows.tokens.append(0)
                rows.taken_from[-1] = self._row_of[item.req]
            rows.positions.extend(range(item.start, stop))
            rows.kv_slots.extend(
                blocks[p // self._block_size] * self._block_size + p % self._block_size
                for p in range(item.start, stop)
            )
            rows.digests.extend([item.req.adapter_digest] * item.num_new)
            rows.logit_rows.append(len(rows.tokens) - 1)
        return rows

    def _create_batch(
        self, items: Sequence[ScheduledReq], adapters: Mapping[str, PooledAdapter]
    ) -> Batch:
        rows = self._create_rows(items)

        def device_tensor(values: list[int]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int64).to(self._device)

        def attention(spans: Sequence[tuple[int, int, int]]) -> Attention:
            return self._decoder.backend.create_attention(
                spans, rows.tables, self._block_size, self._device, self._decoder.windows
            )

        last = None
        if len(rows.logit_rows) < len(rows.tokens):
            last = LayerRows(
                len(rows.logit_rows),
                attention([(i, 1, stop) for i, (_, _, stop) in enumerate(rows.spans)]),
                self._adapters.create_batch([rows.digests[row] for row in rows.logit_rows]),
            )
        pairs = zip(rows.tokens, rows.taken_from, strict=True)
        return Batch(
            tokens_T=device_tensor([t if row < 0 else self._chosen[row] for t, row in pairs]),
            positions_T=device_tensor(rows.positions),
            kv_slots_T=device_tensor(rows.kv_slots),
            logit_rows=device_tensor(rows.logit_rows),
            attention=attention(rows.spans),
            adapters=self._adapters.create_batch(rows.digests),
            vocabulary=create_vocabulary_batch(
                rows.digests, rows.logit_rows, adapters, self._decoder.config.vocab_size
            ),
            last=last,
        )
