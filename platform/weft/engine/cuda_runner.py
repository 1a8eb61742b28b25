"""The runner on CUDA: a step is one copy to the device, its kernels, and one copy back.

A launch queues all three and waits for nothing; to collect is to wait for the copy back, while the
next step may run already. Steps that only decode are padded to the next captured layout (`graphs`)
and replayed; steps with prompts, or with tokens, an embedding or a head of an adapter's own, run
the same code kernel by kernel. Tokens are chosen on the device
and the next step finds them there, but for rows whose logits the host has to change or to look at:
their step has to be collected before another is launched, which writes to the same logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from weft.engine.graphs import StepGraphs, StepOutput
from weft.engine.model.decoder import Batch, Decoder, KVCache
from weft.engine.plan import ScheduledReq, StepPlan
from weft.engine.runner import PendingStep, Runner, StepRows
from weft.engine.sampler import NO_TOKEN_ALLOWED, NON_FINITE, Sampled, sample, seed_of
from weft.engine.slot_adapters import SlotAdapters
from weft.engine.step_inputs import (
    HostBuffer,
    StepBuffers,
    StepLayout,
    buckets,
    num_ints,
    view_step,
)
from weft.engine.vocabulary_batch import VocabularyBatch, create_vocabulary_batch
from weft_adapters.pool import PooledAdapter
from weft_kernels.cuda import sample as device_sampler
from weft_kernels.cuda.attention_plan import AttentionPlanner, create_attention_planner
from weft_kernels.cuda.backend import PlannedAttention

_FAILURES = {
    device_sampler.OK: None,
    device_sampler.NOT_FINITE: NON_FINITE,
    device_sampler.NOTHING_ALLOWED: NO_TOKEN_ALLOWED,
}


class CudaRunner(Runner):
    """`max_rows`: of a step; `max_running`: requests of a step; `max_len`: tokens of a request.

    Everything is queued on a stream of its own, so that adapters are loaded beside the steps.
    """

    def __init__(
        self,
        decoder: Decoder,
        kv: KVCache,
        adapters: SlotAdapters,
        block_size: int,
        host_kv: KVCache | None = None,
        eos_token_ids: frozenset[int] = frozenset(),
        *,
        max_rows: int,
        max_running: int,
        max_len: int,
    ) -> None:
        super().__init__(decoder, kv, adapters, block_size, host_kv, eos_token_ids)
        self._slots = adapters
        self._max_rows, self._max_running, self._max_len = max_rows, max_running, max_len
        self._planner = _create_planner(decoder, kv, block_size)
        limits = self._planner.limits(max_rows, max_running, max_len, has_prefill=True)
        ints = num_ints(max_rows, max_running, self._planner.num_ints(limits))
        largest = self._decode_layout(max_running, adapters.reaches[-1])
        decode_ints = num_ints(max_running, max_running, self._planner.num_ints(largest.limits))
        self._buffers = StepBuffers(max(ints, decode_ints), 2 * max_running, self._device)
        # one is read while the next step's outcome is copied to the other
        self._outcomes = [HostBuffer(2 * max_running, self._device) for _ in range(2)]
        is_cuda = self._device.type == "cuda"
        self._stream = _create_stream(self._device) if is_cuda else None
        self._graphs = StepGraphs(self._compute, self._stream)
        if is_cuda:
            torch.cuda.synchronize(self._device)  # what was made so far was queued elsewhere

    def _decode_layout(self, num_rows: int, reach: int) -> StepLayout:
        limits = self._planner.limits(num_rows, num_rows, self._max_len, has_prefill=False)
        return StepLayout(num_rows, num_rows, limits, reach)

    def warm_up(self) -> None:
        """Capture the steps that decode: for powers of two up to all that may run, by what the
        adapters reach. Compile what prompts need: kernels differ by the size of a step, by whether
        16 divides it, and with row scales and biases."""
        with self._on_stream():
            for num_rows in reversed(buckets(self._max_running)):
                for reach in self._slots.reaches:
                    layout = self._decode_layout(num_rows, reach)
                    self._send([], self._create_rows([]), [], layout)
                    self._graphs.capture(layout)
            if self._stream is None:
                return  # the interpreter compiles nothing
            for num_rows in buckets(self._max_rows)[4:]:
                for odd, reach in product((0, 1), self._slots.widest_reaches):
                    self._run_padding(num_rows - odd, reach)
                    self._stream.synchronize()

    def _run_padding(self, num_rows: int, reach: int) -> StepOutput:
        """A step with the kernels of prompts and no request."""
        limits = self._planner.limits(num_rows, 1, self._max_len, has_prefill=True)
        layout = StepLayout(num_rows, 1, limits, reach)
        self._send([], self._create_rows([]), [], layout)
        return self._compute(layout)

    def launch(self, plan: StepPlan, adapters: Mapping[str, PooledAdapter]) -> PendingStep:
        with self._on_stream():
            if not plan.scheduled:
                self._move(plan.moves)
                return PendingStep((), lambda: ())
            items, output = self._launch(plan, adapters)
            outcome = self._outcomes[0]
            self._outcomes.reverse()
            outcome.ints[: output.picked_2N.numel()].copy_(
                output.picked_2N.view(-1), non_blocking=True
            )
            outcome.note_copy()
        return PendingStep(items, lambda: self._collect(items, output, outcome))

    def clean(self, blocks: list[int]) -> None:
        with self._on_stream():
            super().clean(blocks)

    def _on_stream(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _forward(
        self, plan: StepPlan, adapters: Mapping[str, PooledAdapter]
    ) -> tuple[list[ScheduledReq], torch.Tensor]:
        with self._on_stream():
            items, output = self._launch(plan, adapters)
            logits_NV = output.logits_NV[: len(items)].clone()
        if self._stream is not None:
            self._stream.synchronize()
        return items, logits_NV

    def _launch(
        self, plan: StepPlan, adapters: Mapping[str, PooledAdapter]
    ) -> tuple[list[ScheduledReq], StepOutput]:
        """Queue a step; the plan's items in the order of its rows of logits."""
        self._move(plan.moves)
        self._slots.update(adapters)
        items = sorted(plan.scheduled, key=self._order_key)
        rows = self._create_rows(items)
        self._row_of = {item.req: row for row, item in enumerate(items)}
        slots, reach = self._slots.slots(rows.digests)
        is_decode = len(rows.tokens) == len(items)
        vocabulary = create_vocabulary_batch(
            rows.digests, rows.logit_rows, adapters, self._decoder.config.vocab_size
        )
        can_replay = is_decode and vocabulary is None
        captured = self._graphs.find(len(items), reach) if can_replay else None
        if captured is not None:
            self._send(items, rows, slots, captured.layout)
            return items, captured.replay()
        attention, limits = self._planner.pack(rows.spans, rows.tables)
        layout = StepLayout(len(rows.tokens), len(items), limits, reach)
        self._buffers.send(layout, _values(items, rows, slots), attention)
        return items, self._compute(layout, vocabulary)

    def _send(
        self, items: Sequence[ScheduledReq], rows: StepRows, slots: Sequence[int],
        layout: StepLayout,
    ) -> None:  # fmt: skip
        """A step padded to a layout that was made before."""
        attention, _ = self._planner.pack(rows.spans, rows.tables, layout.num_rows, layout.limits)
        self._buffers.send(layout, _values(items, rows, slots), attention)

    @torch.inference_mode()
    def _compute(self, layout: StepLayout, vocabulary: VocabularyBatch | None = None) -> StepOutput:
        """The step whose metadata the device has: what is captured, and what runs otherwise."""
        parts, attention = view_step(self._buffers.step, layout)
        batch = Batch(
            tokens_T=self._buffers.take_tokens(parts),
            positions_T=parts["positions"],
            kv_slots_T=parts["kv_slots"],
            logit_rows=parts["logit_rows"],
            attention=PlannedAttention(self._planner.view(attention, layout.limits)),
            adapters=self._slots.create_device_batch(parts["slots"], layout.reach),
            num_tokens=parts["num_tokens"],
            vocabulary=vocabulary,
        )
        logits_NV = self._decoder.forward(batch, self._kv)
        rows = device_sampler.SamplingRows(
            seeds=parts["seeds"],
            positions=parts["drawn_at"],
            temperatures=parts["temperatures"],
            top_ks=parts["top_ks"],
            top_ps=parts["top_ps"],
            min_ps=parts["min_ps"],
        )
        sizes = None if vocabulary is None else vocabulary.sizes
        is_masked_N = None
        if sizes is not None:  # -inf is behind a row's own tokens, too
            is_masked_N = torch.ones(len(sizes), dtype=torch.bool, device=self._device)
        tokens_N, status_N = device_sampler.sample(logits_NV, rows, is_masked_N)
        picked_2N = self._buffers.chosen[: 2 * layout.num_logits].view(2, -1)
        torch.stack((tokens_N.to(torch.int32), status_N), out=picked_2N)
        return StepOutput(logits_NV, picked_2N, sizes)

    def _collect(
        self, items: Sequence[ScheduledReq], output: StepOutput, outcome: HostBuffer
    ) -> list[Sampled]:
        """Wait for the step, and see to the rows that are the host's. Those of a request that ended
        meanwhile are nobody's: their logits may be the next step's."""
        outcome.wait()
        num = output.picked_2N.shape[1]
        tokens, statuses = (outcome.ints[at : at + len(items)].tolist() for at in (0, num))
        results = []
        for token, status in zip(tokens, statuses, strict=True):
            failure = _FAILURES[status]
            results.append(Sampled(None if failure else token, failure))
        own = [
            i for i, item in enumerate(items)
            if item.samples and item.req.is_sampled_by_host and not item.req.is_finished
        ]  # fmt: skip
        if own:
            with self._on_stream():
                rows = torch.tensor(own).to(self._device)
                logits_NV = output.logits_NV.index_select(0, rows)
                sizes = None
                if output.vocab_sizes is not None:
                    sizes = [output.vocab_sizes[i] for i in own]
                reqs = [items[i].req for i in own]
                sampled = sample(logits_NV, reqs, self._eos_token_ids, vocab_sizes=sizes)
            for i, row in zip(own, sampled, strict=True):
                results[i] = row
        return results


def _create_stream(device: torch.device) -> torch.cuda.Stream:
    create: Any = torch.cuda.Stream  # its constructor has no annotations
    stream: torch.cuda.Stream = create(device)
    return stream


def _create_planner(decoder: Decoder, kv: KVCache, block_size: int) -> AttentionPlanner:
    config = decoder.config
    return create_attention_planner(
        config.num_kv_heads,
        config.num_heads // config.num_kv_heads,
        config.head_dim,
        kv.tensors()[0].dtype,
        decoder.windows,
        block_size,
    )


def _values(
    items: Sequence[ScheduledReq], rows: StepRows, slots: Sequence[int]
) -> Mapping[str, ArrayLike]:
    """A step's numbers by name. Rows that do not sample here take their best token, which costs
    least."""
    drawn = [
        item.samples and item.req.request.sampling.temperature > 0
        and not item.req.is_sampled_by_host
        for item in items
    ]  # fmt: skip
    own = [
        (item.req, item.req.request.sampling) if is_drawn else None
        for item, is_drawn in zip(items, drawn, strict=True)
    ]
    seeds = np.array([seed_of(row[0]) if row else 0 for row in own], dtype=np.uint64)
    return {
        "seeds": seeds.view(np.int64),
        "drawn_at": [item.stop for item in items],
        "tokens": rows.tokens,
        "taken_from": rows.taken_from,
        "positions": rows.positions,
        "kv_slots": rows.kv_slots,
        "logit_rows": rows.logit_rows,
        "temperatures": [row[1].temperature if row else 0.0 for row in own],
        "top_ps": [row[1].top_p if row else 1.0 for row in own],
        "min_ps": [row[1].min_p if row else 0.0 for row in own],
        "top_ks": [row[1].top_k if row else 0 for row in own],
        "slots": slots,
        "num_tokens": [len(rows.tokens)],
    }
