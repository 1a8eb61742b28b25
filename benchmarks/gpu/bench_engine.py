"""A decode step of a whole model: random weights of Qwen3-30B-A3B and Llama-3-8B, 1k of context.

One row is one replay of the engine's decoder, from token ids to float32 logits, with the adapters
of as many requests; adapters of rank 16 are distinct, on the attention's projections of
Qwen3-30B-A3B and on all linears of Llama-3-8B. What the runner makes once a step on the host is
outside. Useful bytes are the floor: the weights that are read (of experts, as many as are expected
of random routing), the keys and values of every context, and the pages of every adapter. The peer
`own step without adapters` is the same step, so its ratio is the retention.

The error is that of two layers of the same shape in float32, against torch's operators.
The order is by importance.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from benchmarks.gpu.harness import Case, Create, Setting, relative_error
from torch import Tensor

from weft.engine.model.config import ModelConfig, create_model_config
from weft.engine.model.decoder import AdapterBatch, Batch, Decoder, KVCache
from weft.engine.model.weights import DenseWeights, LayerWeights, ModelWeights
from weft.engine.runner import AdapterSet, create_kv_cache
from weft_adapters.format import SiteWeights
from weft_adapters.pool import PagePool, PooledAdapter
from weft_adapters.sites import ATTENTION_PROJECTIONS, BaseSpec
from weft_kernels.backend import Backend, create_backend
from weft_kernels.cuda.configs import Launch
from weft_kernels.moe import ExpertWeights

BLOCK_SIZE = 16
RANK = 16
LLAMA = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
    "rms_norm_eps": 1e-5, "rope_theta": 5e5, "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}  # fmt: skip
QWEN = {
    "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": 48,
    "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
    "intermediate_size": 6144, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    "max_position_embeddings": 40960, "tie_word_embeddings": False, "num_experts": 128,
    "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True,
}  # fmt: skip
_SMALL = {
    "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 48,
}  # fmt: skip
_SMALL_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


@dataclass(frozen=True, slots=True)
class Model:
    """A shape; `has_all_sites`: adapters are on all linears, not on the attention's alone."""

    name: str
    has_all_sites: bool

    def raw(self, setting: Setting) -> dict[str, Any]:
        """Its `config.json`."""
        full = LLAMA if self.name.startswith("llama") else QWEN
        if not setting.is_tiny:
            return full
        return {**full, **_SMALL, **(_SMALL_EXPERTS if "num_experts" in full else {})}


MODELS = (Model("qwen3-30b-a3b", has_all_sites=False), Model("llama-3-8b", has_all_sites=True))


@dataclass(frozen=True, slots=True)
class Load:
    """Requests that decode, how long each is, and distinct adapters among them, 0 for none."""

    num_requests: int
    context: int
    num_adapters: int


def cases(setting: Setting) -> Iterator[Case]:
    if setting.is_tiny:
        for model in MODELS:
            yield _case(setting, model, Load(3, 20, 2))
        yield _case(setting, MODELS[0], Load(2, 20, 0))
        return
    for model in MODELS:
        for num_adapters in (64, 0, 8, 1, 32):
            yield _case(setting, model, Load(64, 1024, num_adapters))
    for model in MODELS:
        for num_requests in (8, 1, 32):
            for num_adapters in (num_requests, 0):
                yield _case(setting, model, Load(num_requests, 1024, num_adapters))


def _case(setting: Setting, model: Model, load: Load) -> Case:
    peers: dict[str, Create] = {}
    if load.num_adapters:
        base = replace(load, num_adapters=0)
        peers["own step without adapters"] = lambda: _launch(setting, model, base)
    return Case(
        "step",
        {
            "model": model.name,
            "requests": load.num_requests,
            "context": load.context,
            "adapters": load.num_adapters,
            "rank": RANK if load.num_adapters else 0,
            "sites": "all linear" if model.has_all_sites else "attention",
        },
        lambda: _launch(setting, model, load),
        useful_bytes=_useful_bytes(setting, model, load),
        error=lambda: _error(setting, model, load.num_adapters > 0),
        tolerance=1e-3,
        peers=peers,
        is_step=True,
    )


# ---- what a step is made of ----


@dataclass(frozen=True, slots=True)
class _Base:
    raw: Mapping[str, Any]
    decoder: Decoder
    kv: KVCache
    num_blocks: int


def _create_base(raw: Mapping[str, Any], setting: Setting, num_tokens: int, kernels: str) -> _Base:
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
    return _Base(raw, Decoder(config, weights, max_model_len, backend), kv, num_blocks)


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


def _create_pool(
    raw: Mapping[str, Any], setting: Setting, has_all_sites: bool, num_adapters: int
) -> tuple[BaseSpec, PagePool, dict[str, PooledAdapter]]:
    """Adapters in pages of their own, which is what counts for the time; their numbers are the
    same."""
    base = BaseSpec.from_config(raw, "random")
    rng = np.random.default_rng(0)
    weights = {}
    for site in base.sites():
        if site.expert is None and (has_all_sites or site.projection in ATTENTION_PROJECTIONS):
            num_in, num_out = base.shape(site)
            a, b = (rng.standard_normal((RANK, n), dtype=np.float32) for n in (num_in, num_out))
            weights[site] = SiteWeights(a * num_in**-0.5, b * RANK**-0.5, 0.5)
    sizing = PagePool(base, 1 << 20, torch.float32, "cpu")
    num_bytes = sizing.num_bytes_needed(weights) * setting.dtype.itemsize // 4
    pool = PagePool(base, num_adapters * num_bytes, setting.dtype, setting.device)
    adapters = {}
    for number in range(num_adapters):
        adapter = pool.try_load(f"{number:064x}", weights)
        assert adapter is not None, "the pool was made for them"
        adapters[adapter.digest] = adapter
    return base, pool, adapters


def _create_adapters(backend: Backend, base: BaseSpec, pool: PagePool, num: int) -> AdapterSet:
    """As the engine chooses them."""
    from weft.engine.active import ActiveSet
    from weft.engine.in_place import InPlaceAdapters
    from weft.engine.slot_adapters import SlotAdapters

    if backend.reads_page_tables:
        return SlotAdapters(base, pool, num, RANK)
    if backend.reads_pages:
        return InPlaceAdapters(base, pool)
    return ActiveSet(base, pool, pool.dtype, num)


def _create_batch(base: _Base, load: Load, adapters: AdapterBatch, device: torch.device) -> Batch:
    """Every request decodes its last token; its blocks lie anywhere."""
    num_blocks = -(-load.context // BLOCK_SIZE)
    blocks = 1 + torch.randperm(base.num_blocks - 1)[: load.num_requests * num_blocks]
    tables = blocks.view(load.num_requests, num_blocks).tolist()
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
        adapters=adapters,
    )  # fmt: skip


def _adapter_batch(base: _Base, setting: Setting, has_all_sites: bool, load: Load) -> AdapterBatch:
    spec, pool, adapters = _create_pool(base.raw, setting, has_all_sites, max(load.num_adapters, 1))
    found = _create_adapters(base.decoder.backend, spec, pool, len(adapters))
    return _rows_of(found, adapters, load)


def _rows_of(found: AdapterSet, adapters: Mapping[str, PooledAdapter], load: Load) -> AdapterBatch:
    digests = sorted(adapters)[: load.num_adapters]
    found.update({digest: adapters[digest] for digest in digests})
    if not digests:
        return found.create_batch([None] * load.num_requests)
    rows = [digests[i % len(digests)] for i in range(load.num_requests)]
    random.Random(0).shuffle(rows)
    rows.sort(key=lambda digest: found.order_key(digest, 1))
    return found.create_batch(rows)


# ---- one launch, its bytes and its error ----

# Only the last model stays: two of them are more than half of a device's memory.


@lru_cache(maxsize=1)
def _shared_base(setting: Setting, model: Model) -> _Base:
    num_tokens = 2 * 20 * 3 if setting.is_tiny else 64 * 1024
    kernels = "triton" if setting.is_tiny else "auto"
    return _create_base(model.raw(setting), setting, num_tokens + BLOCK_SIZE, kernels)


@lru_cache(maxsize=1)
def _shared_adapters(setting: Setting, model: Model, load: Load) -> AdapterBatch:
    base = _shared_base(setting, model)
    return _adapter_batch(base, setting, model.has_all_sites, load)


def _launch(setting: Setting, model: Model, load: Load) -> Launch:
    base = _shared_base(setting, model)
    adapters = _shared_adapters(setting, model, load)
    batch = _create_batch(base, load, adapters, setting.device)
    return lambda: base.decoder.forward(batch, base.kv)


def _useful_bytes(setting: Setting, model: Model, load: Load) -> int:
    raw = model.raw(setting)
    config, spec = create_model_config(raw), BaseSpec.from_config(raw, "random")
    hidden, size = config.hidden_size, setting.dtype.itemsize
    attention = hidden * (2 * config.q_size + 2 * config.kv_size)
    numbers = hidden * config.vocab_size + config.num_layers * attention
    for i in range(config.num_layers):
        if i not in config.moe_layers:
            numbers += 3 * hidden * config.intermediate_size
            continue
        missed = (1 - config.num_experts_per_tok / config.num_experts) ** load.num_requests
        num_hit = round(config.num_experts * (1 - missed))
        numbers += hidden * config.num_experts
        numbers += num_hit * 3 * hidden * config.moe_intermediate_size
    numbers += 2 * config.num_layers * config.kv_size * load.num_requests * load.context
    for site in spec.sites():
        if site.expert is None and (
            model.has_all_sites or site.projection in ATTENTION_PROJECTIONS
        ):
            numbers += load.num_adapters * RANK * sum(spec.shape(site))
    return size * numbers


@torch.inference_mode()
def _error(setting: Setting, model: Model, has_adapters: bool) -> float:
    exact = replace(setting, dtype=torch.float32)
    raw = {**model.raw(setting), "num_hidden_layers": 2}
    raw["vocab_size"] = min(raw["vocab_size"], 1024)
    load = Load(4, 40, 3 if has_adapters else 0)
    logits = []
    for kernels in ("triton", "torch"):
        torch.manual_seed(0)
        base = _create_base(raw, exact, load.num_requests * 48, kernels)
        adapters = _adapter_batch(base, exact, model.has_all_sites, load)
        batch = _create_batch(base, load, adapters, exact.device)
        logits.append(base.decoder.forward(batch, base.kv))
    return relative_error(*logits)
