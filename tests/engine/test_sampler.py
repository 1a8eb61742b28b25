"""The sampler: greedy, filtered draws against a plain numpy implementation, and determinism."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from weft.engine.req import Req
from weft.engine.sampler import NON_FINITE, seed_of, uniform
from weft.engine.sampler import sample as sample_rows
from weft.messages import EngineRequest, SamplingParams

VOCAB = 16

Probs = npt.NDArray[np.float64]


def sample(logits: torch.Tensor, reqs: list[Req]) -> list[int | None]:
    """The tokens alone; every row without one is not finite here."""
    rows = sample_rows(logits, reqs)
    assert all((row.token is None) == (row.failure is NON_FINITE) for row in rows)
    return [row.token for row in rows]


def create_req(name: str = "r", prompt_len: int = 3, **sampling: Any) -> Req:
    params = SamplingParams(max_tokens=8, **sampling)
    return Req(EngineRequest(name, "t", tuple(range(prompt_len)), params), 0.0)


def filtered(logits: torch.Tensor, temperature: float, top_k: int, top_p: float) -> Probs:
    """Temperature, then top-k, then the smallest set of best tokens that holds `top_p`."""
    wide = logits.double().numpy() / temperature
    probs: Probs = np.exp(wide - wide.max())
    probs /= probs.sum()
    order = np.argsort(-probs, kind="stable")
    if top_k:
        probs[order[top_k:]] = 0.0
        probs /= probs.sum()
    kept = 0.0
    for token in order:
        if kept >= top_p:
            probs[token] = 0.0
        kept += probs[token]
    probs /= probs.sum()
    return probs


def create_logits(seed: int = 0, num_rows: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2.0 * torch.randn(num_rows, VOCAB, generator=generator)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.7), (6, 0.8), (1, 1.0),
                                              (0, 1e-6), (10**30, 1.0)])  # fmt: skip
def test_draws_follow_the_filtered_distribution(
    temperature: float, top_k: int, top_p: float
) -> None:
    logits, num = create_logits(), 8_000
    want = filtered(logits[0], temperature, top_k, top_p)
    reqs = [create_req(temperature=temperature, top_k=top_k, top_p=top_p, seed=i)
            for i in range(num)]  # fmt: skip
    tokens = sample(logits.expand(num, -1).contiguous(), reqs)
    counts = np.bincount([t for t in tokens if t is not None], minlength=VOCAB)
    assert counts.sum() == num
    assert not counts[want == 0].any(), "a filtered token was drawn"
    likely = want > 0
    chi_square = ((counts[likely] - num * want[likely]) ** 2 / (num * want[likely])).sum()
    # the 99.99 % point of chi-square with at most 15 degrees of freedom
    assert chi_square < 44.3


def test_top_p_keeps_no_token_once_it_is_reached() -> None:
    halves = torch.tensor([[1.0, 1.0, -300.0]]).expand(50, -1).contiguous()
    assert sample(halves, [create_req(top_p=0.5, seed=i) for i in range(50)]) == [0] * 50
    above = sample(halves, [create_req(top_p=0.5001, seed=i) for i in range(50)])
    assert set(above) == {0, 1}


def test_temperature_0_is_greedy_and_takes_the_first_of_equals() -> None:
    logits = create_logits(num_rows=5)
    logits[4] = 1.0
    want = [*logits[:4].argmax(dim=1).tolist(), 0]
    assert sample(logits, [create_req(temperature=0) for _ in range(5)]) == want


@pytest.mark.parametrize("temperature", [1e-4, 1e-30, 1e-50])
def test_a_temperature_near_0_is_greedy(temperature: float) -> None:
    logits = create_logits(num_rows=5)
    reqs = [create_req(temperature=temperature, seed=i) for i in range(5)]
    assert sample(logits, reqs) == logits.argmax(dim=1).tolist()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_row_that_is_not_finite_gives_none_and_no_other_does(
    bad: float, temperature: float
) -> None:
    logits = create_logits(num_rows=3)
    reqs = [create_req(temperature=temperature, seed=i) for i in range(3)]
    good = sample(logits, reqs)
    logits[1, 7] = bad
    assert sample(logits, reqs) == [good[0], None, good[2]]


def test_each_row_of_a_mixed_batch_has_its_own_parameters() -> None:
    logits = create_logits(num_rows=64)
    kinds: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 0.7, "top_k": 3, "seed": 5},
        {"temperature": 1.5, "top_p": 0.4},
        {"temperature": 1.0, "seed": 9},
    ]
    reqs = [create_req(f"r{i}", prompt_len=i + 1, **kinds[i % 4]) for i in range(64)]
    together = sample(logits, reqs)
    assert together == [sample(logits[i : i + 1], [req])[0] for i, req in enumerate(reqs)]
    order = list(reversed(range(64)))
    assert sample(logits[order], [reqs[i] for i in order]) == together[::-1]


def test_another_seed_or_position_draws_anew_and_the_same_ones_do_not() -> None:
    logits = torch.zeros(1, 4096)

    def token(seed: int, prompt_len: int) -> int | None:
        return sample(logits, [create_req(seed=seed, prompt_len=prompt_len)])[0]

    assert token(1, 5) == token(1, 5)
    assert len({token(seed, 5) for seed in range(20)}) > 15
    assert len({token(1, length) for length in range(1, 21)}) > 15


def test_a_request_without_a_seed_gets_one_from_its_id() -> None:
    assert seed_of(create_req("a")) == seed_of(create_req("a"))
    assert seed_of(create_req("a")) != seed_of(create_req("b"))
    assert seed_of(create_req("a", seed=7)) == seed_of(create_req("b", seed=7)) == 7
    assert seed_of(create_req(seed=-1)) == 2**64 - 1
    choice = create_req(seed=-1)
    choice.index = 3
    assert seed_of(choice) == 2


def test_the_stream_of_a_seed_is_uniform_and_unlike_its_neighbours() -> None:
    streams = np.array([uniform([seed] * 4096, range(4096)) for seed in range(8)])
    assert streams.min() >= 0.0
    assert streams.max() < 1.0
    for stream in streams:
        counts = np.histogram(stream, bins=16, range=(0.0, 1.0))[0]
        assert ((counts - 256) ** 2 / 256).sum() < 44.3
    assert np.abs(np.corrcoef(streams) - np.eye(8)).max() < 0.06
    after = np.corrcoef(streams[:, :-1].ravel(), streams[:, 1:].ravel())[0, 1]
    assert abs(after) < 0.03
