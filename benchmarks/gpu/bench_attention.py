"""Attention and KV writes, with the heads of Llama-3-8B and Qwen3-30B-A3B.

Decode: batches of requests of one length. Prefill: a chunk of a prompt, at its start or behind
8,192 cached tokens. Mixed: a chunk beside 63 decoding requests of 1,024 tokens, in two launches.
Peers run on the same lengths, but torch's SDPA has its keys and values side by side, a request
after another, which no server with a block manager can give it; for prefill they are repeated for
the query heads before the clock runs. `varlen_attn` reads the block tables; where torch lacks it,
the row says so. The order is by importance.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from benchmarks.gpu.harness import Case, Setting, relative_error
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right

from weft_kernels import reference_attention
from weft_kernels.attention import Int8Cache
from weft_kernels.attention import write_kv as write_kv_by_torch
from weft_kernels.cuda.attention import paged_attention
from weft_kernels.cuda.attention_plan import (
    AttentionPlanner,
    create_attention_planner,
)
from weft_kernels.cuda.attention_tuning import (
    BLOCK_SIZE,
    RandomStep,
    create_random_cache,
    create_random_step,
)
from weft_kernels.cuda.configs import Launch, get_config
from weft_kernels.cuda.kv_write import Cache, Fp8Cache, write_kv

Lengths = Sequence[tuple[int, int]]
KV_NAMES = {torch.int8: "int8", torch.bfloat16: "bf16", torch.float32: "fp32"}


@dataclass(frozen=True, slots=True)
class Heads:
    """The attention heads of a model: KV heads, query heads for each, and their width."""

    model: str
    num_kv_heads: int
    groups: int
    head_dim: int


MODELS = (Heads("llama-3-8b", 8, 4, 128), Heads("qwen3-30b-a3b", 4, 8, 128))
TINY = (Heads("tiny", 2, 2, 16),)


def cases(setting: Setting) -> Iterator[Case]:
    tiny = setting.is_tiny
    for batch in (2,) if tiny else (64, 1, 8, 256):
        for context in (70,) if tiny else (1024, 128, 8192):
            for heads in TINY if tiny else MODELS:
                lengths = [(1, context)] * batch
                shape = {"batch": batch, "context": context}
                for kv in (setting.dtype, torch.int8) if tiny or batch == 64 else (setting.dtype,):
                    yield _attention("decode", setting, heads, lengths, kv, shape)
    for heads in TINY if tiny else MODELS:
        for chunk, cached in ((20, 0), (20, 17)) if tiny else ((512, 0), (2048, 0), (512, 8192)):
            lengths = [(chunk, cached + chunk)]
            shape = {"chunk": chunk, "cached": cached}
            yield _attention("prefill", setting, heads, lengths, setting.dtype, shape)
        chunk, batch, context = (20, 2, 33) if tiny else (512, 63, 1024)
        lengths = [(chunk, chunk)] + [(1, context)] * batch
        shape = {"chunk": chunk, "batch": batch, "context": context}
        yield _attention("mixed", setting, heads, lengths, setting.dtype, shape)
        for num_tokens in (3,) if tiny else (1, 64, 2048):
            for kv in (setting.dtype, torch.int8):
                yield _kv_write(setting, heads, num_tokens, kv)


# ---- attention ----


def _attention(
    what: str, setting: Setting, heads: Heads, lengths: Lengths, kv: torch.dtype,
    shape: dict[str, int],
) -> Case:  # fmt: skip
    planner = create_attention_planner(heads.num_kv_heads, heads.groups, heads.head_dim, kv)
    scale = heads.head_dim**-0.5
    rows, keys = (sum(column) for column in zip(*lengths, strict=True))
    pairs = sum(n * (total - n) + n * (n + 1) // 2 for n, total in lengths)
    width = heads.num_kv_heads * heads.head_dim
    # an int8 key has its scale beside it, in float32
    kv_bytes = 2 * keys * (width * kv.itemsize + 4 * heads.num_kv_heads * (kv == torch.int8))

    def create() -> Launch:
        step = _create_step(setting, heads, lengths, kv)
        metadata = step.metadata(planner)
        return lambda: paged_attention(step.q_TND, step.k_cache, step.v_cache, metadata, scale)

    def error() -> float:
        return _error(setting, heads, lengths, kv, planner)

    return Case(
        f"attention_{what}",
        {"model": heads.model, "kv": KV_NAMES[kv], **shape},
        create,
        # keys and values of every context, queries in, output out
        useful_bytes=kv_bytes + 2 * rows * heads.groups * width * setting.dtype.itemsize,
        error=error,
        flops=4 * pairs * heads.groups * width,
        config=asdict(planner.decode if what == "decode" else planner.prefill),
        peers=_peers(what, setting, heads, lengths, kv),
    )


def _create_step(setting: Setting, heads: Heads, lengths: Lengths, kv: torch.dtype) -> RandomStep:
    return create_random_step(
        lengths, heads.num_kv_heads, heads.groups, heads.head_dim, setting.dtype, kv, setting.device
    )


def _error(
    setting: Setting, heads: Heads, lengths: Lengths, kv: torch.dtype, planner: AttentionPlanner
) -> float:
    """Of a whole step, against float64 for its first request and its last."""
    step = _create_step(setting, heads, lengths, kv)
    scale = heads.head_dim**-0.5
    got = paged_attention(step.q_TND, step.k_cache, step.v_cache, step.metadata(planner), scale)
    chosen = sorted({0, len(lengths) - 1})
    ours, wants = [], []
    for i in chosen:
        first, num_new, total = step.spans[i]
        blocks = torch.tensor(step.tables[i], device=setting.device)
        k, v = (
            _wide(cache, blocks).flatten(0, 1)[:total] for cache in (step.k_cache, step.v_cache)
        )
        q = step.q_TND[first : first + num_new].double()
        ours.append(got[first : first + num_new].flatten())
        wants.append(_attend_in_float64(q, k, v, heads.groups, scale).flatten())
    return relative_error(torch.cat(ours), torch.cat(wants))


def _wide(cache: Cache, blocks: Tensor) -> Tensor:
    if isinstance(cache, Int8Cache):
        return cache.data[blocks].double() * cache.scale[blocks].double()
    assert isinstance(cache, Tensor)
    return cache[blocks].double()


def _attend_in_float64(q: Tensor, k: Tensor, v: Tensor, groups: int, scale: float) -> Tensor:
    """One request: q `[Q, N G, D]`, k and v `[L, N, D]`; a head at a time, for the memory."""
    seen = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).tril(len(k) - len(q))
    out = torch.empty_like(q)
    for h in range(q.shape[1]):
        scores = (scale * q[:, h] @ k[:, h // groups].T).masked_fill(~seen, -torch.inf)
        out[:, h] = scores.softmax(-1) @ v[:, h // groups]
    return out


# ---- peers ----


def _peers(
    what: str, setting: Setting, heads: Heads, lengths: Lengths, kv: torch.dtype
) -> dict[str, Callable[[], Launch]]:
    peers: dict[str, Callable[[], Launch]] = {}
    if kv == torch.int8:
        return peers  # they read no caches of 8 bits
    if what == "decode":
        peers["torch SDPA, contiguous KV"] = lambda: _sdpa_decode(setting, heads, lengths)
    elif what == "prefill":
        peers["torch SDPA, contiguous repeated KV"] = lambda: _sdpa_prefill(setting, heads, lengths)
    if setting.device.type == "cuda":
        peers["torch varlen_attn, block tables, one split"] = lambda: _varlen(
            setting, heads, lengths, 1
        )
        peers["torch varlen_attn, block tables, its splits"] = lambda: _varlen(
            setting, heads, lengths, None
        )
    return peers


def _sdpa_decode(setting: Setting, heads: Heads, lengths: Lengths) -> Launch:
    batch, (_, context) = len(lengths), lengths[0]
    shape = (batch, heads.num_kv_heads, context, heads.head_dim)
    q = torch.randn(batch, heads.num_kv_heads * heads.groups, 1, heads.head_dim)
    q = q.to(setting.device, setting.dtype)
    k, v = (torch.randn(shape, dtype=setting.dtype, device=setting.device) for _ in range(2))
    return lambda: functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def _sdpa_prefill(setting: Setting, heads: Heads, lengths: Lengths) -> Launch:
    ((num_new, total),) = lengths
    num_heads = heads.num_kv_heads * heads.groups
    q, k, v = (
        torch.randn(
            1, num_heads, length, heads.head_dim, dtype=setting.dtype, device=setting.device
        )
        for length in (num_new, total, total)
    )
    mask = causal_lower_right(num_new, total)
    return lambda: functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _varlen(setting: Setting, heads: Heads, lengths: Lengths, num_splits: int | None) -> Launch:
    """Reads the same caches through the same block tables. With more than one split it may leave
    rows unwritten (pytorch issue 194167), so that time is a bound, not a choice."""
    from torch.nn.attention import varlen

    known = inspect.signature(varlen.varlen_attn).parameters
    if "block_table" not in known:
        raise RuntimeError(f"varlen_attn of torch {torch.__version__} takes no block tables")
    step = _create_step(setting, heads, lengths, setting.dtype)
    k_cache, v_cache = step.k_cache, step.v_cache
    assert isinstance(k_cache, Tensor)
    assert isinstance(v_cache, Tensor)
    num_blocks = max(map(len, step.tables))
    table = torch.zeros(len(lengths), num_blocks, dtype=torch.int32)
    for i, blocks in enumerate(step.tables):
        table[i, : len(blocks)] = torch.tensor(blocks)
    table = table.to(setting.device)
    new = torch.tensor([0, *(n for n, _ in lengths)], dtype=torch.int32)
    cu_seq_q = new.cumsum(0, dtype=torch.int32).to(setting.device)
    used = torch.tensor([total for _, total in lengths], dtype=torch.int32, device=setting.device)
    max_q, max_k = (max(column) for column in zip(*lengths, strict=True))
    return lambda: varlen.varlen_attn(
        step.q_TND, k_cache, v_cache, cu_seq_q, None, max_q, max_k,
        window_size=(-1, 0), enable_gqa=True, seqused_k=used, block_table=table,
        num_splits=num_splits,
    )  # fmt: skip


# ---- KV writes ----


def _kv_write(setting: Setting, heads: Heads, num_tokens: int, kv: torch.dtype) -> Case:
    width = heads.num_kv_heads * heads.head_dim
    num_blocks = -(-num_tokens // BLOCK_SIZE) + 4

    def inputs() -> tuple[Cache, Cache, Tensor, Tensor, Tensor]:
        k_cache, v_cache = (
            create_random_cache(num_blocks, heads.num_kv_heads, heads.head_dim, kv, setting.device)
            for _ in range(2)
        )
        # as they come: behind the queries of a fused projection
        fused = torch.randn(num_tokens, (heads.groups + 2) * width).to(
            setting.device, setting.dtype
        )
        k, v = fused[:, -2 * width : -width], fused[:, -width:]
        new_shape = (num_tokens, heads.num_kv_heads, heads.head_dim)
        slots = torch.randperm(num_blocks * BLOCK_SIZE)[:num_tokens].to(setting.device)
        return k_cache, v_cache, k.view(new_shape), v.view(new_shape), slots

    def create() -> Launch:
        arguments = inputs()
        return lambda: write_kv(*arguments)

    def create_torch() -> Launch:
        k_cache, v_cache, k, v, slots = inputs()
        assert not isinstance(k_cache, Fp8Cache)
        assert not isinstance(v_cache, Fp8Cache)

        def launch() -> None:
            write_kv_by_torch(k_cache, k, slots)
            write_kv_by_torch(v_cache, v, slots)

        return launch

    def error() -> float:
        k_cache, v_cache, k, v, slots = inputs()
        write_kv(k_cache, v_cache, k, v, slots)
        pairs = ((k_cache, k), (v_cache, v))
        got = [_wide(cache, slots // BLOCK_SIZE) for cache, _ in pairs]
        at = torch.arange(num_tokens, device=setting.device)
        rows = [blocks[at, slots % BLOCK_SIZE] for blocks in got]
        wants = [
            reference_attention.rounded_kv(x[:, None]) if kv == torch.int8 else x for _, x in pairs
        ]
        return relative_error(torch.cat(rows), torch.cat(wants).view(-1, *k.shape[1:]))

    return Case(
        "kv_write",
        {"model": heads.model, "kv": KV_NAMES[kv], "tokens": num_tokens},
        create,
        # reads k, v and slots; writes the same values, and scales
        useful_bytes=num_tokens
        * (
            2 * width * (setting.dtype.itemsize + kv.itemsize)
            + 8
            + 8 * heads.num_kv_heads * (kv == torch.int8)
        ),
        error=error,
        config=get_config("kv_write", width=width),
        peers={"torch: index_copy_ each": create_torch},
    )
