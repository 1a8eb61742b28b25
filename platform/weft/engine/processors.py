"""What requests ask to be done to their logits before a token is chosen, for all rows at once.

Legend: M rows, V vocabulary. Everything is in vLLM's order: least length, bias, repetition, then
frequency and presence; a grammar's mask could stand anywhere, since -inf stays -inf.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from weft.engine.counts import TokenCounts
from weft.engine.req import Req


def process(logits_MV: Tensor, reqs: Sequence[Req], eos_token_ids: frozenset[int]) -> None:
    """Change `logits_MV` in place, float32 `[M, V]`; row i is that of reqs[i]."""
    _forbid_ends(logits_MV, reqs, eos_token_ids)
    _add_bias(logits_MV, reqs)
    _penalize(logits_MV, reqs)
    _apply_grammars(logits_MV, reqs)


def _forbid_ends(logits_MV: Tensor, reqs: Sequence[Req], eos_token_ids: frozenset[int]) -> None:
    """`min_tokens`: neither end of text nor a stop token before so many tokens."""
    pairs = [
        (row, token)
        for row, req in enumerate(reqs)
        if req.num_output_tokens < req.request.sampling.min_tokens
        for token in eos_token_ids.union(req.eos_token_ids, req.request.sampling.stop_token_ids)
    ]
    if pairs:
        rows, tokens = torch.tensor(pairs, device=logits_MV.device).unbind(1)
        logits_MV[rows, tokens] = -torch.inf


def _add_bias(logits_MV: Tensor, reqs: Sequence[Req]) -> None:
    entries = [
        (row, token, bias)
        for row, req in enumerate(reqs)
        for token, bias in req.request.sampling.logit_bias
    ]
    if entries:
        rows, tokens, biases = zip(*entries, strict=True)
        device = logits_MV.device
        place = (torch.tensor(rows, device=device), torch.tensor(tokens, device=device))
        values = torch.tensor(biases, dtype=torch.float32, device=device)
        logits_MV.index_put_(place, values, accumulate=True)


def _penalize(logits_MV: Tensor, reqs: Sequence[Req]) -> None:
    """With c[t] the count of t in the answer: for each t of prompt or answer
    `l[t] = l[t] / r if l[t] > 0 else l[t] * r`, then `l[t] -= frequency * c[t]`
    and `l[t] -= presence * (c[t] > 0)`."""
    chosen = [i for i, req in enumerate(reqs) if req.request.sampling.has_penalty]
    if not chosen:
        return
    counts = [_counts_of(reqs[i]) for i in chosen]
    sizes = [len(c.ids) for c in counts]
    device = logits_MV.device
    rows = torch.from_numpy(np.repeat(np.array(chosen), sizes)).to(device)
    tokens = _joined([c.ids for c in counts]).to(device)
    times = _joined([c.counts for c in counts]).to(device)
    factors = [
        (s.repetition_penalty, s.frequency_penalty, s.presence_penalty)
        for s in (reqs[i].request.sampling for i in chosen)
    ]
    table = torch.from_numpy(np.repeat(np.array(factors, dtype=np.float32), sizes, axis=0))
    repetition, frequency, presence = table.to(device).unbind(1)
    values = logits_MV[rows, tokens]
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= frequency * times
    values -= presence * (times > 0)
    logits_MV[rows, tokens] = values


def _counts_of(req: Req) -> TokenCounts:
    if req.counts is None:
        req.counts = TokenCounts()
    req.counts.take(req.token_ids, req.num_prompt_tokens)
    return req.counts


def _joined(arrays: Sequence[array[int]]) -> Tensor:
    return torch.from_numpy(np.frombuffer(bytearray().join(arrays), dtype=np.int64))


def _apply_grammars(logits_MV: Tensor, reqs: Sequence[Req]) -> None:
    chosen = [(i, req.grammar) for i, req in enumerate(reqs) if req.grammar is not None]
    if not chosen:
        return
    from xgrammar import allocate_token_bitmask, apply_token_bitmask_inplace

    rows, num_known = [row for row, _ in chosen], chosen[0][1].vocab_size
    mask = allocate_token_bitmask(logits_MV.shape[0], num_known)  # int32, one bit a token
    for row, grammar in chosen:
        grammar.fill(mask, row)
    if num_known < logits_MV.shape[1]:  # by an adapter's tokens, which no grammar knows
        logits_MV[rows, num_known:] = -torch.inf
    known_MV = logits_MV[:, :num_known]
    apply_token_bitmask_inplace(known_MV, mask.to(logits_MV.device), indices=rows)
