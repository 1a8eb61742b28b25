"""From logits to tokens, for all rows of a step at once.

The order is vLLM's: log-probabilities of the raw logits; least length, bias, penalties and grammar
(see `processors`); temperature; min-p; top-k; top-p. A row's random number is a hash of (seed,
position) and nothing else, so a request gives the same tokens alone, in any batch, after a
preemption and on any device (up to near-ties of the logits).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from weft.engine.plan import Refusal
from weft.engine.processors import process
from weft.engine.req import Req
from weft.messages import TokenLogprobs
from weft_kernels.backend import Backend

NON_FINITE = Refusal(
    "non_finite",
    "The model produced non-finite logits for this request; its adapter's weights may be too large "
    "for the engine's number format.",
)
NO_TOKEN_ALLOWED = Refusal(
    "no_token_allowed",
    "No next token satisfies both the response format and the other parameters of this request.",
)

_NUM_CANDIDATES = 512
_LEAST_TEMPERATURE = torch.finfo(torch.float32).tiny
_TORCH = Backend()


@dataclass(frozen=True, slots=True)
class Sampled:
    """A row's next token, or why it has none."""

    token: int | None
    failure: Refusal | None = None
    logprobs: TokenLogprobs | None = None


def seed_of(req: Req) -> int:
    """The request's seed, or one made from its id, plus the number of the choice: 64 bits."""
    seed = req.request.sampling.seed
    if seed is None:
        seed = int.from_bytes(hashlib.sha256(req.request_id.encode()).digest()[:8], "little")
    return (seed + req.index) & 0xFFFFFFFFFFFFFFFF


def uniform(
    seeds: Sequence[int], positions: Sequence[int]
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """`u[i]` in [0, 1) from (seeds[i], positions[i]): SplitMix64 (Steele, Lea & Flood 2014)."""
    with np.errstate(over="ignore"):
        z = _mix(np.array(seeds, dtype=np.uint64)) + np.array(positions, dtype=np.uint64)
        z = _mix(z + np.uint64(0x9E3779B97F4A7C15))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(
    z: np.ndarray[tuple[int], np.dtype[np.uint64]],
) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def sample(
    logits_NV: Tensor,
    reqs: Sequence[Req],
    eos_token_ids: frozenset[int] = frozenset(),
    samples: Sequence[bool] | None = None,
    backend: Backend = _TORCH,
    positions: Sequence[int] | None = None,
    vocab_sizes: Sequence[int] | None = None,
) -> list[Sampled]:
    """The next token of each request; where `samples` is False only whether its row is finite.
    `positions`: how many tokens stand before it; None: those that the request has. `vocab_sizes`:
    how many tokens each row has, -inf behind them; None: V.

    logits_NV float32 `[N, V]`, left as it is. Rows without parameters cost nothing but their
    argmax.
    """
    tokens, finite = backend.greedy(logits_NV)
    if vocab_sizes is not None:
        _correct_finite(finite, logits_NV, vocab_sizes)
    wanted = range(len(reqs)) if samples is None else [i for i, s in enumerate(samples) if s]
    changed = [i for i in wanted if reqs[i].is_processed]
    drawn = [i for i in wanted if reqs[i].request.sampling.temperature > 0]
    dead: set[int] = set()
    work_NV = logits_NV
    if changed:
        rows = torch.tensor(changed, device=logits_NV.device)
        work_MV = logits_NV.index_select(0, rows)
        process(work_MV, [reqs[i] for i in changed], eos_token_ids)
        best, token = work_MV.max(dim=1)
        tokens.index_copy_(0, rows, token)
        dead = {i for i, value in zip(changed, best.tolist(), strict=True) if value == -torch.inf}
        if not set(drawn).isdisjoint(changed):
            work_NV = logits_NV.index_copy(0, rows, work_MV)
    if drawn:
        rows = torch.tensor(drawn, device=logits_NV.device)
        at = [len(reqs[i].token_ids) if positions is None else positions[i] for i in drawn]
        chosen = _draw(work_NV.index_select(0, rows), [reqs[i] for i in drawn], at)
        tokens.index_copy_(0, rows, chosen)
    logprobs = _logprobs(logits_NV, tokens, reqs, wanted)
    results = []
    for i, (token_id, is_finite) in enumerate(zip(tokens.tolist(), finite.tolist(), strict=True)):
        failure = NO_TOKEN_ALLOWED if i in dead else None
        failure = failure if is_finite else NON_FINITE
        results.append(Sampled(None if failure else token_id, failure, logprobs.get(i)))
    return results


def _correct_finite(finite_N: Tensor, logits_NV: Tensor, vocab_sizes: Sequence[int]) -> None:
    """What is behind a row's own tokens is no fault."""
    vocab = logits_NV.shape[1]
    for size in set(vocab_sizes) - {vocab}:
        own = torch.tensor([i for i, n in enumerate(vocab_sizes) if n == size])
        own = own.to(logits_NV.device)
        is_finite = logits_NV.index_select(0, own)[:, :size].isfinite().all(dim=1)
        finite_N.index_copy_(0, own, is_finite)


def _draw(logits_NV: Tensor, reqs: Sequence[Req], positions: Sequence[int]) -> Tensor:
    """Inverse-CDF draw from the filtered distribution, in the order of the vocabulary: a last bit
    of a logit moves the borders between tokens and never swaps two of them. int64 `[N]`."""
    device = logits_NV.device
    # a temperature near 0 would overflow: subtract the maximum first; one that float32 rounds to 0
    # would divide 0 by 0
    shifted = logits_NV - logits_NV.amax(dim=1, keepdim=True)
    temperature = _column([r.request.sampling.temperature for r in reqs], device)
    scores = shifted / temperature.clamp_(min=_LEAST_TEMPERATURE)
    min_p = [r.request.sampling.min_p for r in reqs]
    if any(min_p):
        # p >= min_p * max(p), and the best score is 0
        scores.masked_fill_(scores < _column(min_p, device).log(), -torch.inf)
    vocab = logits_NV.shape[1]
    filtered = [
        i
        for i, s in enumerate(req.request.sampling for req in reqs)
        if 0 < s.top_k < vocab or s.top_p < 1.0
    ]
    if filtered:
        rows = torch.tensor(filtered, device=device)
        part = _filter(scores.index_select(0, rows), [reqs[i] for i in filtered])
        scores.index_copy_(0, rows, part)
    cdf = scores.double().softmax(dim=1).cumsum(dim=1)
    u = uniform([seed_of(r) for r in reqs], positions)
    total = cdf[:, -1:].contiguous()
    place = torch.searchsorted(cdf, torch.from_numpy(u).to(device)[:, None] * total, right=True)
    last = torch.searchsorted(cdf, total)  # of the tokens that are left; u * total may round up
    return torch.minimum(place, last).clamp_(max=vocab - 1)[:, 0]


def _filter(scores_NV: Tensor, reqs: Sequence[Req]) -> Tensor:
    """Scores with -inf outside the `top_k` best and, of those, outside the smallest set of the best
    whose probability reaches `top_p`; of equals, the lower ids are better.

    Most of the probability is in few tokens, which are found much faster than all are sorted.
    """
    vocab = scores_NV.shape[1]
    top_k = [r.request.sampling.top_k for r in reqs]
    width = max([_NUM_CANDIDATES, *(k for k in top_k if k < vocab)])
    # a device that sorts fast would wait longer for the answers to what the CPU asks below
    is_cpu = scores_NV.device.type == "cpu"
    if width >= vocab or not is_cpu:
        width = vocab
    num_kept, least, is_enough = _best(scores_NV, reqs, width)
    short = [i for i, ok in enumerate(is_enough.tolist()) if not ok] if width < vocab else []
    if short:
        rows = torch.tensor(short, device=scores_NV.device)
        part = _best(scores_NV.index_select(0, rows), [reqs[i] for i in short], vocab)
        num_kept.index_copy_(0, rows, part[0])
        least.index_copy_(0, rows, part[1])
    kept = scores_NV >= least
    if not is_cpu or bool((kept.sum(dim=1, keepdim=True) != num_kept).any()):
        is_tie = scores_NV == least
        num_ties = num_kept - (scores_NV > least).sum(dim=1, keepdim=True)
        kept = (scores_NV > least) | (is_tie & (is_tie.cumsum(dim=1) <= num_ties))
    return scores_NV.masked_fill(~kept, -torch.inf)


def _best(scores_NV: Tensor, reqs: Sequence[Req], width: int) -> tuple[Tensor, Tensor, Tensor]:
    """How many tokens a row keeps and the least score among them, both `[N, 1]`, and whether the
    `width` best were enough to tell, `[N]`."""
    device, vocab = scores_NV.device, scores_NV.shape[1]
    sampling = [req.request.sampling for req in reqs]
    top_k = torch.tensor([min(s.top_k or vocab, vocab) for s in sampling], device=device)[:, None]
    top_p = _column([s.top_p for s in sampling], device)
    best_NW = scores_NV.topk(width, dim=1).values  # sorted
    ranks = torch.arange(width, device=device)[None]
    weights = best_NW.exp().double().masked_fill(ranks >= top_k, 0.0)  # the best score is 0
    total = weights.sum(dim=1, keepdim=True)
    if not all(0 < s.top_k < vocab for s in sampling):
        whole = scores_NV.exp().sum(dim=1, keepdim=True, dtype=torch.float64)
        total = torch.where(top_k < vocab, total, whole)
    until = weights.cumsum(dim=1)
    is_kept = (ranks < top_k) & ((until - weights < top_p * total) | (top_p >= 1.0) | (ranks == 0))
    num_kept = is_kept.sum(dim=1, keepdim=True)
    least = best_NW.gather(1, num_kept - 1)
    return num_kept, least, (num_kept < width)[:, 0] | (top_k[:, 0] <= width)


def _column(values: list[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None]


def _logprobs(
    logits_NV: Tensor, tokens_N: Tensor, reqs: Sequence[Req], wanted: Sequence[int]
) -> dict[int, TokenLogprobs]:
    """Of the rows that ask for them, from the raw logits."""
    counts = {i: n for i in wanted if (n := reqs[i].request.sampling.logprobs) is not None}
    if not counts:
        return {}
    rows = torch.tensor(list(counts), device=logits_NV.device)
    logprobs = logits_NV.index_select(0, rows).log_softmax(dim=1)
    tokens = tokens_N.index_select(0, rows)
    own = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
    num_top = min(max(counts.values()), logits_NV.shape[1])
    values, ids = (t.tolist() for t in logprobs.topk(num_top, dim=1))
    table = zip(counts.items(), tokens.tolist(), own, ids, values, strict=True)
    return {
        i: TokenLogprobs(token, logprob, tuple(zip(top_ids[:n], top[:n], strict=True)))
        for (i, n), token, logprob, top_ids, top in table
    }
