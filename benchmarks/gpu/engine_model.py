"""Models of random weights that decode: what a step of `bench_engine` is made of.

A base with its weights and a full cache, adapters in a pool, and a batch of requests that each
decode one token, once as the decoder takes it and once as the engine plans it.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from benchmarks.gpu.harness import Setting
from torch import Tensor

from weft.engine.kv_cache import create_kv_cache
from weft.engine.model.config import ModelConfig, create_model_config
from weft.engine.model.decoder import AdapterBatch, Batch, Decoder, KVCache
from weft.engine.model.weights import DenseWeights, LayerWeights, ModelWeights
from weft.engine.plan import ScheduledReq, StepPlan
from weft.engine.req import Req
from weft.engine.runner import AdapterSet
from weft.messages import EngineRequest, SamplingParams
from weft_adapters.pool import PagePool, PooledAdapter
from weft_adapters.site_weights import SiteWeights
from weft_adapters.sites import ATTENTION_PROJECTIONS, BaseSpec, Site
from weft_kernels.backend import Backend, create_backend
from weft_kernels.moe import ExpertWeights

BLOCK_SIZE = 16
_NOISE = 1 << 22


@dataclass(frozen=True, slots=True)
class Load:
    """Requests that decode, how long each is, and distinct adapters among them, 0 for none."""

    num_requests: int
    context: int
    num_adapters: int


@dataclass(frozen=True, slots=True)
class Base:
    raw: Mapping[str, Any]
    decoder: Decoder
    kv: KVCache
    num_blocks: int


@dataclass(frozen=True, slots=True)
class Adapters:
    """Adapters in a pool, by digest, and the slots from which a batch takes its own."""

    slots: AdapterSet
    pooled: Mapping[str, PooledAdapter]

    def choose(self, load: Load) -> dict[str, PooledAdapter]:
        """The adapters of a load."""
        return {digest: self.pooled[digest] for digest in sorted(self.pooled)[: load.num_adapters]}


def create_base(raw: Mapping[str, Any], setting: Setting, num_tokens: int, kernels: str) -> Base:
    """Random weights and a cache of random keys and values with room for `num_tokens`."""
    config = create_model_config(raw)
    backend = create_backend(kernels, setting.device, setting.dtype)
    weights = _create_weights(config, setting, backend)
    num_blocks = 1 + num_tokens // BLOCK_SIZE
    kv = create_kv_cache(
        config.num_layers, num_blocks, (BLOCK_SIZE, config.num_kv_heads, config.head_dim),
        setting.dtype, setting.device,
    )  # fmt: skip
    for cache in kv.tensors():
        cache[1:].normal_()
    max_model_len = min(config.max_position_embeddings, 8192)
    return Base(raw, Decoder(config, weights, max_model_len, backend), kv, num_blocks)


def _create_weights(config: ModelConfig, setting: Setting, backend: Backend) -> ModelWeights:
    hidden, inner, expert = (
        config.hidden_size,
        config.intermediate_size,
        config.moe_intermediate_size,
    )

    def matrix(*shape: int) -> Tensor:
        """`[..., in, out]`; what goes in comes out about as large."""
        empty = torch.empty(shape, dtype=setting.dtype, device=setting.device)
        return empty.normal_(0.0, shape[-2] ** -0.5)

    def ones(size: int) -> Tensor:
        return torch.ones(size, dtype=setting.dtype, device=setting.device)

    def layer(i: int) -> LayerWeights:
        has_norms = config.qk_norm == "head"
        if i in config.moe_layers:
            mlp: DenseWeights | ExpertWeights = ExpertWeights(
                matrix(hidden, config.num_experts),
                matrix(config.num_experts, hidden, 2 * expert),
                matrix(config.num_experts, expert, hidden),
            )
        else:
            gate_up = backend.create_linear_weight(matrix(hidden, 2 * inner))
            mlp = DenseWeights(
                gate_up, None, backend.create_linear_weight(matrix(inner, hidden)), None
            )
        return LayerWeights(
            input_norm=ones(hidden),
            qkv=backend.create_linear_weight(matrix(hidden, config.q_size + 2 * config.kv_size)),
            qkv_bias=None,
            q_norm=ones(config.head_dim) if has_norms else None,
            k_norm=ones(config.head_dim) if has_norms else None,
            o=backend.create_linear_weight(matrix(config.q_size, hidden)),
            o_bias=None,
            post_norm=ones(hidden),
            mlp=mlp,
            shared=None,
        )

    return ModelWeights(
        embed_VH=matrix(config.vocab_size, hidden) * config.vocab_size**0.5,
        layers=tuple(layer(i) for i in range(config.num_layers)),
        norm=ones(hidden),
        head=backend.create_linear_weight(matrix(hidden, config.vocab_size)),
    )


def adapted_sites(base: BaseSpec, has_all_sites: bool) -> list[Site]:
    """Where adapters are; of experts nowhere."""
    return [
        site
        for site in base.sites()
        if site.expert is None and (has_all_sites or site.projection in ATTENTION_PROJECTIONS)
    ]


def create_adapters(
    base: Base, setting: Setting, has_all_sites: bool, num: int, ranks: Sequence[int]
) -> Adapters:
    """`num` adapters in pages of their own, which is what counts for the time, and as many slots.
    They share their numbers; `ranks` are given to them in turn."""
    spec = BaseSpec.from_config(base.raw, "random")
    sites = adapted_sites(spec, has_all_sites)
    by_rank = {rank: _create_site_weights(spec, sites, rank) for rank in set(ranks)}
    weights = [by_rank[ranks[i % len(ranks)]] for i in range(num)]
    sizing = PagePool(spec, 1 << 20, torch.float32, "cpu")
    num_bytes = sum(sizing.num_bytes_needed(each) for each in weights)
    pool = PagePool(spec, num_bytes * setting.dtype.itemsize // 4, setting.dtype, setting.device)
    # before there are adapters in the pool: it prepares them for the slots as it loads them
    slots = _create_slots(base.decoder.backend, spec, pool, num, max(ranks))
    pooled = {}
    for number, each in enumerate(weights):
        adapter = pool.try_load(f"{number:064x}", each)
        assert adapter is not None, "the pool was made for them"
        pooled[adapter.digest] = adapter
    return Adapters(slots, pooled)


def _create_site_weights(
    base: BaseSpec, sites: Sequence[Site], rank: int
) -> dict[Site, SiteWeights]:
    """Pieces of one long vector, a different one for each site: to draw all would take longer than
    the measurement."""
    noise = np.random.default_rng(0).standard_normal(_NOISE, dtype=np.float32)
    starts = random.Random(0)

    def piece(width: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        start = starts.randrange(_NOISE - rank * width)
        return noise[start : start + rank * width].reshape(rank, width)

    weights = {}
    for site in sites:
        num_in, num_out = base.shape(site)
        weights[site] = SiteWeights(piece(num_in) * num_in**-0.5, piece(num_out) * rank**-0.5, 0.5)
    return weights


def _create_slots(
    backend: Backend, base: BaseSpec, pool: PagePool, num: int, max_rank: int
) -> AdapterSet:
    """As the engine chooses them."""
    from weft.engine.active import ActiveSet
    from weft.engine.in_place import InPlaceAdapters
    from weft.engine.slot_adapters import SlotAdapters

    if backend.reads_page_tables:
        return SlotAdapters(base, pool, num, max_rank)
    if backend.reads_pages:
        return InPlaceAdapters(base, pool)
    return ActiveSet(base, pool, pool.dtype, num)


def create_batch(base: Base, load: Load, adapters: Adapters, device: torch.device) -> Batch:
    """Every request decodes its last token; its blocks lie anywhere."""
    tables = _create_tables(base, load)
    last = load.context - 1
    slots = [row[last // BLOCK_SIZE] * BLOCK_SIZE + last % BLOCK_SIZE for row in tables]
    vocab_size = base.decoder.config.vocab_size

    def ints(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    return Batch(
        tokens_T=torch.randint(0, vocab_size, (load.num_requests,), device=device),
        positions_T=ints([last] * load.num_requests),
        kv_slots_T=ints(slots),
        logit_rows=ints(list(range(load.num_requests))),
        attention=base.decoder.backend.create_attention(
            [(i, 1, load.context) for i in range(load.num_requests)],
            tables, BLOCK_SIZE, device, base.decoder.windows,
        ),
        adapters=_create_rows(adapters, load),
    )  # fmt: skip


def _create_tables(base: Base, load: Load) -> list[list[int]]:
    num_blocks = -(-load.context // BLOCK_SIZE)
    blocks = 1 + torch.randperm(base.num_blocks - 1)[: load.num_requests * num_blocks]
    tables: list[list[int]] = blocks.view(load.num_requests, num_blocks).tolist()
    return tables


def _create_rows(adapters: Adapters, load: Load) -> AdapterBatch:
    chosen = adapters.choose(load)
    adapters.slots.update(chosen)
    rows = sorted(_digests(chosen, load), key=lambda digest: adapters.slots.order_key(digest, 1))
    return adapters.slots.create_batch(rows)


def _digests(chosen: Mapping[str, PooledAdapter], load: Load) -> list[str | None]:
    """Each request's adapter, as they come."""
    if not chosen:
        return [None] * load.num_requests
    digests: list[str | None] = [list(chosen)[i % len(chosen)] for i in range(load.num_requests)]
    random.Random(0).shuffle(digests)
    return digests


def create_plan(base: Base, load: Load, chosen: Mapping[str, PooledAdapter]) -> StepPlan:
    """The same step as the engine's scheduler hands it over: of greedy requests."""
    vocab_size = base.decoder.config.vocab_size
    items = []
    tables, digests = _create_tables(base, load), _digests(chosen, load)
    for i, (table, digest) in enumerate(zip(tables, digests, strict=True)):
        tokens = tuple(torch.randint(0, vocab_size, (load.context,)).tolist())
        request = EngineRequest(str(i), "t", tokens, SamplingParams(1, temperature=0), digest)
        req = Req(request, 0.0, blocks=array("i", table), num_computed=load.context - 1)
        items.append(ScheduledReq(req, load.context - 1, 1, samples=True))
    return StepPlan(tuple(items))
