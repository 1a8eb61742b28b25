"""The small operators, at the shapes of Llama-3-8B and Qwen3-30B-A3B, beside what torch has."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from benchmarks.gpu.harness import Case, Setting, relative_error
from torch import Tensor

from weft_kernels import activation, norm, reference
from weft_kernels.cuda.configs import Launch, get_config
from weft_kernels.cuda.rms_norm import rms_norm
from weft_kernels.cuda.rotary import rotate_heads
from weft_kernels.cuda.sample import SamplingRows, sample
from weft_kernels.cuda.silu_mul import silu_mul
from weft_kernels.rotary import Rope, apply_rotary, create_rotary_table

EPS = 1e-6
MAX_LEN = 4096
ROPE = Rope(1e6)
# the twins are loops
CHECKED_ROWS = 8


def cases(setting: Setting) -> Iterator[Case]:
    tiny = setting.is_tiny
    for num_tokens in (3,) if tiny else (1, 8, 64, 256, 2048):
        for width in (16,) if tiny else (2048, 4096):
            yield _rms_norm(setting, num_tokens, width)
        for num_heads, head_dim in ((3, 8),) if tiny else ((36, 128), (40, 128)):
            yield _rotary(setting, num_tokens, num_heads, head_dim)
        for width in (20,) if tiny else (768, 14336):
            yield _silu_mul(setting, num_tokens, width)
    for num_rows in (2,) if tiny else (1, 8, 64, 256):
        for vocab in (130,) if tiny else (128256, 151936):
            for top_p in (None, 1.0, 0.95):
                yield _sample(setting, num_rows, vocab, top_p)


def _random(setting: Setting, *shape: int) -> Tensor:
    return torch.randn(shape, device=setting.device).to(setting.dtype)


def _rms_norm(setting: Setting, num_tokens: int, width: int) -> Case:
    """With the residual's addition, in place on x."""

    def inputs() -> tuple[Tensor, Tensor, Tensor]:
        x, delta = _random(setting, 2, num_tokens, width)
        return x, delta, _random(setting, width)

    def create() -> Launch:
        x, delta, weight = inputs()
        return lambda: rms_norm(x, weight, EPS, delta)

    def create_torch() -> Launch:
        x, delta, weight = inputs()
        return lambda: norm.rms_norm(x.add_(delta), weight, EPS)

    def error() -> float:
        x, delta, weight = inputs()
        want = reference.rms_norm((x + delta)[:CHECKED_ROWS], weight, EPS)
        return relative_error(rms_norm(x, weight, EPS, delta)[:CHECKED_ROWS], want)

    return Case(
        "rms_norm",
        {"tokens": num_tokens, "width": width},
        create,
        # reads x, delta and the weight; writes x and y
        useful_bytes=(4 * num_tokens + 1) * width * setting.dtype.itemsize,
        error=error,
        config=get_config("rms_norm", width=width),
        peers={"torch: add, rms_norm": create_torch},
    )


def _rotary(setting: Setting, num_tokens: int, num_heads: int, head_dim: int) -> Case:
    """With the norms of the heads, on the first heads of a projection that holds v, too."""
    num_kv_heads = max(1, num_heads // 9)

    def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        qkv = _random(setting, num_tokens, num_heads + num_kv_heads, head_dim)
        positions = torch.randint(0, MAX_LEN, (num_tokens,), device=setting.device)
        table = create_rotary_table(MAX_LEN, head_dim, ROPE, setting.device)
        return qkv[:, :num_heads], positions, table, _random(setting, num_heads, head_dim)

    def create() -> Launch:
        x, positions, table, weight = inputs()
        return lambda: rotate_heads(x, positions, table, weight, EPS)

    def create_torch() -> Launch:
        x, positions, table, weight = inputs()
        rows = table[positions].to(setting.dtype)
        return lambda: apply_rotary(norm.rms_norm(x, weight, EPS), rows)

    def error() -> float:
        x, positions, table, weight = inputs()
        x, positions = x[:CHECKED_ROWS], positions[:CHECKED_ROWS]
        heads = range(num_heads)
        y = torch.stack([reference.rms_norm(x[:, n], weight[n], EPS) for n in heads], dim=1)
        cos, sin = table[positions].cpu().double().unbind(1)
        (y1, y2), cos, sin = y.chunk(2, dim=-1), cos[:, None], sin[:, None]
        want = torch.cat((y1 * cos - y2 * sin, y2 * cos + y1 * sin), dim=-1)
        return relative_error(rotate_heads(x, positions, table, weight, EPS), want)

    per_row = 2 * num_heads * head_dim * setting.dtype.itemsize + 4 * head_dim + 8
    return Case(
        "rotary",
        {"tokens": num_tokens, "heads": num_heads, "head_dim": head_dim},
        create,
        # reads and writes x; reads a row of the table and a position, and once the weights
        useful_bytes=num_tokens * per_row + num_heads * head_dim * setting.dtype.itemsize,
        error=error,
        config=get_config("rotary", width=head_dim),
        peers={"torch: rms_norm, rotary": create_torch},
    )


def _silu_mul(setting: Setting, num_tokens: int, width: int) -> Case:
    def create() -> Launch:
        gate_up = _random(setting, num_tokens, 2 * width)
        return lambda: silu_mul(gate_up)

    def create_torch() -> Launch:
        gate_up = _random(setting, num_tokens, 2 * width)
        return lambda: activation.silu_mul(gate_up)

    def error() -> float:
        gate_up = _random(setting, num_tokens, 2 * width)
        return relative_error(silu_mul(gate_up), reference.silu_mul(gate_up))

    return Case(
        "silu_mul",
        {"tokens": num_tokens, "width": width},
        create,
        useful_bytes=3 * num_tokens * width * setting.dtype.itemsize,
        error=error,
        config=get_config("silu_mul", width=width),
        peers={"torch: silu, mul": create_torch},
    )


def _sample(setting: Setting, num_rows: int, vocab: int, top_p: float | None) -> Case:
    """Best tokens without a top_p; else draws at temperature 0.8."""

    def inputs() -> tuple[Tensor, SamplingRows | None]:
        logits = 3.0 * torch.randn(num_rows, vocab, device=setting.device)
        if top_p is None:
            return logits, None
        return logits, SamplingRows(
            seeds=torch.randint(0, 1 << 62, (num_rows,), device=setting.device),
            positions=torch.randint(0, MAX_LEN, (num_rows,), device=setting.device),
            temperatures=torch.full((num_rows,), 0.8, device=setting.device),
            top_ks=torch.zeros(num_rows, dtype=torch.int32, device=setting.device),
            top_ps=torch.full((num_rows,), top_p, device=setting.device),
            min_ps=torch.zeros(num_rows, device=setting.device),
        )

    def create() -> Launch:
        logits, rows = inputs()
        return lambda: sample(logits, rows)

    def create_torch() -> Launch:
        logits, _ = inputs()
        u = torch.rand(num_rows, 1, dtype=torch.float64, device=setting.device)
        return lambda: _torch_sample(logits, top_p, u)

    def error() -> float:
        """Of the ids: 0 or far above any tolerance."""
        logits, rows = inputs()
        tokens = sample(logits, rows)[0].tolist()
        if rows is None:
            return relative_error(torch.tensor(tokens), logits.argmax(dim=1))
        seeds, positions = rows.seeds.tolist(), rows.positions.tolist()
        # 0.8 and top_p as float32 has them
        temperature, least = float(rows.temperatures[0]), float(rows.top_ps[0])
        twins = [
            reference.sample(logits[i], seeds[i], positions[i], temperature, 0, least)
            for i in range(min(num_rows, CHECKED_ROWS))
        ]
        return relative_error(torch.tensor(tokens[: len(twins)]), torch.tensor(twins))

    return Case(
        "sample",
        {"rows": num_rows, "vocab": vocab, "form": "greedy" if top_p is None else f"p{top_p}"},
        create,
        useful_bytes=num_rows * vocab * 4,
        error=error,
        tolerance=0.0,
        config=get_config("sample", vocab=vocab),
        peers={"torch: sort, cumsum": create_torch},
    )


def _torch_sample(logits: Tensor, top_p: float | None, u: Tensor) -> Tensor:
    """The same with torch's kernels and without its order of the vocabulary: best first."""
    if top_p is None:
        return logits.argmax(dim=1)
    scores = (logits - logits.amax(dim=1, keepdim=True)) / 0.8
    if top_p == 1.0:
        cdf = scores.double().softmax(dim=1).cumsum(dim=1)
        return torch.searchsorted(cdf, u * cdf[:, -1:], right=True)[:, 0]
    ordered, ids = scores.sort(dim=1, descending=True)
    weights = ordered.exp().double()
    until = weights.cumsum(dim=1)
    kept = weights.masked_fill(until - weights >= top_p * until[:, -1:], 0.0).cumsum(dim=1)
    place = torch.searchsorted(kept, u * kept[:, -1:], right=True).clamp(max=kept.shape[1] - 1)
    return ids.gather(1, place)[:, 0]
