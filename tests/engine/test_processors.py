"""Filters and penalties against naive float64 implementations, one row at a time."""

from __future__ import annotations

import random
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.engine.processors import process
from weft.engine.req import Req
from weft.engine.sampler import NO_TOKEN_ALLOWED, NON_FINITE, sample
from weft.messages import EngineRequest, SamplingParams

VOCAB = 24
EOS = frozenset({3, 5})

Row = npt.NDArray[np.float64]

sampling_params = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.4, 1.0, 2.0]),
        "top_k": st.sampled_from([0, 1, 3, 10**30]),
        "top_p": st.sampled_from([1.0, 0.9, 0.5, 1e-9]),
        "min_p": st.sampled_from([0.0, 0.05, 0.5, 1.0]),
        "repetition_penalty": st.sampled_from([1.0, 0.5, 1.3, 2.0]),
        "presence_penalty": st.sampled_from([0.0, -2.0, 0.7]),
        "frequency_penalty": st.sampled_from([0.0, -0.5, 1.5]),
        "min_tokens": st.sampled_from([0, 2, 8]),
        "stop_token_ids": st.sampled_from([(), (0, 7)]),
        "logprobs": st.sampled_from([None, 0, 4]),
        "logit_bias": st.dictionaries(
            st.integers(0, VOCAB - 1), st.floats(-100, 100, width=32), max_size=4
        ).map(lambda bias: tuple(bias.items())),
    }
)


def create_req(seed: int, params: dict[str, Any]) -> Req:
    rng = random.Random(seed)
    prompt = tuple(rng.randrange(VOCAB) for _ in range(rng.randrange(1, 12)))
    request = EngineRequest(str(seed), "t", prompt, SamplingParams(max_tokens=8, **params))
    req = Req(request, 0.0)
    req.token_ids += [rng.randrange(VOCAB) for _ in range(rng.randrange(6))]
    return req


def create_logits(seed: int, num_rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3.0 * torch.randn(num_rows, VOCAB, generator=generator)


def processed(logits: Row, req: Req) -> Row:
    s = req.request.sampling
    out = logits.copy()
    answer = req.token_ids[req.num_prompt_tokens :]
    if len(answer) < s.min_tokens:
        for token in (*EOS, *s.stop_token_ids):
            out[token] = -np.inf
    for token, bias in s.logit_bias:
        out[token] += bias
    for token in set(req.token_ids):
        r = s.repetition_penalty
        out[token] = out[token] / r if out[token] > 0 else out[token] * r
    for token in set(answer):
        out[token] -= s.frequency_penalty * answer.count(token) + s.presence_penalty
    return out


def distribution(logits: Row, req: Req) -> Row:
    """What vLLM's sampler draws from: temperature, min-p, top-k, top-p."""
    s = req.request.sampling
    scaled = processed(logits, req) / s.temperature
    probs: Row = np.exp(scaled - scaled.max())
    probs[probs < s.min_p * probs.max()] = 0.0
    order = np.argsort(-probs, kind="stable")
    if s.top_k:
        probs[order[s.top_k :]] = 0.0
    probs /= probs.sum()
    if s.top_p < 1:
        kept = 0.0
        for token in order:
            if kept >= s.top_p:
                probs[token] = 0.0
            kept += probs[token]
    probs /= probs.sum()
    return probs


@settings(max_examples=150, deadline=None)
@given(st.lists(sampling_params, min_size=1, max_size=6), st.integers(0, 10**6))
def test_processed_logits_are_the_references_row_by_row(
    rows: list[dict[str, Any]], seed: int
) -> None:
    reqs = [create_req(seed + i, params) for i, params in enumerate(rows)]
    logits = create_logits(seed, len(reqs))
    got = logits.clone()
    process(got, reqs, EOS)
    for i, req in enumerate(reqs):
        want = processed(logits[i].double().numpy(), req)
        np.testing.assert_allclose(got[i].numpy(), want, rtol=1e-5, atol=1e-5)
        if not req.is_processed:
            assert torch.equal(got[i], logits[i])


@settings(max_examples=150, deadline=None)
@given(st.lists(sampling_params, min_size=1, max_size=6), st.integers(0, 10**6))
def test_no_token_is_drawn_that_the_reference_filters_out(
    rows: list[dict[str, Any]], seed: int
) -> None:
    reqs = [create_req(seed + i, params) for i, params in enumerate(rows)]
    logits = create_logits(seed, len(reqs))
    kept = logits.clone()
    sampled = sample(logits, reqs, EOS)
    assert torch.equal(logits, kept), "the caller's logits were changed"
    for i, (req, row) in enumerate(zip(reqs, sampled, strict=True)):
        wide = logits[i].double().numpy()
        assert row.token is not None
        assert (row.logprobs is None) == (req.request.sampling.logprobs is None)
        if req.request.sampling.temperature == 0:
            best = processed(wide, req)
            assert best[row.token] >= best.max() - 1e-4
        else:
            assert distribution(wide, req)[row.token] > 0
        assert sample(logits[i : i + 1], [req], EOS)[0].token == row.token


@settings(max_examples=60, deadline=None)
@given(st.lists(sampling_params, min_size=1, max_size=8), st.integers(0, 10**6))
def test_few_candidates_filter_as_all_of_them_do_also_among_equals(
    rows: list[dict[str, Any]], seed: int
) -> None:
    reqs = [create_req(seed + i, {**params, "seed": seed}) for i, params in enumerate(rows)]
    logits = create_logits(seed, len(reqs)).round()  # many equals
    with mock.patch("weft.engine.sampler._NUM_CANDIDATES", 2):
        few = sample(logits, reqs, EOS)
    assert few == sample(logits, reqs, EOS)


def test_of_equals_the_lower_ids_are_kept() -> None:
    logits = torch.zeros(400, VOCAB)
    logits[:, 20] = 1.0
    reqs = [create_req(1, {"temperature": 1.0, "top_k": 4, "seed": i}) for i in range(400)]
    assert {row.token for row in sample(logits, reqs)} == {20, 0, 1, 2}
    few = [create_req(1, {"temperature": 1.0, "top_p": 0.2, "seed": i}) for i in range(400)]
    assert {row.token for row in sample(logits, few)} == {20, 0, 1, 2}  # e, 1, 1, 1 of e + 23


@pytest.mark.parametrize(
    "params",
    [
        {"min_p": 0.1},
        {"min_p": 0.02, "top_k": 9, "top_p": 0.8},
        {"repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.4},
        {"logit_bias": ((1, 2.5), (2, -100.0)), "temperature": 0.7},
        {"min_tokens": 8, "stop_token_ids": (1, 2)},
    ],
)
def test_draws_follow_the_references_distribution(params: dict[str, Any]) -> None:
    logits, num = create_logits(4, 1) / 2, 8_000
    reqs = []
    for seed in range(num):
        req = create_req(1, {"temperature": 1.0, "seed": seed, **params})
        reqs.append(req)
    tokens = [row.token for row in sample(logits.expand(num, -1).contiguous(), reqs, EOS)]
    want = distribution(logits[0].double().numpy(), reqs[0])
    counts = np.bincount(np.array(tokens, dtype=np.int64), minlength=VOCAB)
    assert not counts[want == 0].any()
    likely = want > 0
    chi_square = ((counts[likely] - num * want[likely]) ** 2 / (num * want[likely])).sum()
    assert chi_square < 60.0  # the 99.99 % point of chi-square with 23 degrees of freedom is 58.6


def test_counts_follow_a_growing_sequence() -> None:
    params = {"temperature": 0.0, "frequency_penalty": 1.0, "repetition_penalty": 1.2}
    req, fresh = create_req(3, params), create_req(3, params)
    for token in (1, 1, 7, 1):
        req.token_ids.append(token)
        fresh.token_ids.append(token)
        fresh.counts = None
        logits = create_logits(token, 1)
        grown, counted = logits.clone(), logits.clone()
        process(grown, [req], EOS)
        process(counted, [fresh], EOS)
        assert torch.equal(grown, counted)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logprobs_are_of_the_raw_distribution(temperature: float) -> None:
    reqs = [
        create_req(i, {"temperature": temperature, "logprobs": n, "logit_bias": ((6, 100.0),)})
        for i, n in enumerate([0, None, 5, 20])
    ]
    logits = create_logits(0, len(reqs))
    want = logits.double().log_softmax(dim=1)
    for i, row in enumerate(sample(logits, reqs, EOS)):
        n = reqs[i].request.sampling.logprobs
        assert row.token == 6
        if n is None:
            assert row.logprobs is None
            continue
        assert row.logprobs is not None
        assert row.logprobs.token_id == 6
        assert row.logprobs.logprob == pytest.approx(float(want[i, 6]), abs=1e-5)
        values, ids = want[i].topk(n)
        assert [token for token, _ in row.logprobs.top] == ids.tolist()
        assert [value for _, value in row.logprobs.top] == pytest.approx(values.tolist(), abs=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_with_no_token_left_fails_alone(temperature: float) -> None:
    everything = tuple(range(VOCAB))
    params = {"temperature": temperature, "min_tokens": 8, "stop_token_ids": everything}
    reqs = [create_req(0, {"temperature": temperature}), create_req(1, params), create_req(2, {})]
    logits = create_logits(0, 3)
    logits[2, 0] = torch.nan
    first, dead, broken = sample(logits, reqs, EOS)
    assert first.failure is None
    assert (dead.token, dead.failure) == (None, NO_TOKEN_ALLOWED)
    assert (broken.token, broken.failure) == (None, NON_FINITE)


def test_a_row_in_the_middle_of_its_prompt_is_only_checked() -> None:
    params = {"temperature": 1.0, "logprobs": 3, "min_tokens": 8,
              "stop_token_ids": tuple(range(VOCAB))}  # fmt: skip
    reqs = [create_req(1, params), create_req(2, params)]
    logits = create_logits(0, 2)
    logits[1, 4] = torch.inf
    fine, broken = sample(logits, reqs, EOS, [False, False])
    assert (fine.failure, fine.logprobs) == (None, None)
    assert broken.failure is NON_FINITE
