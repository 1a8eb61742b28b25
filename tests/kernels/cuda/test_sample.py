"""sample against its twin and against the engine's sampler, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count, islice
from typing import Any

import pytest
import torch

from weft.engine.req import Req
from weft.engine.sampler import sample as sample_on_cpu
from weft.engine.sampler import seed_of, uniform
from weft.messages import EngineRequest, SamplingParams
from weft_kernels import reference
from weft_kernels.cuda.sample import NOT_FINITE, NOTHING_ALLOWED, OK, SamplingRows, sample

VOCAB = 133
CONFIG = {"BLOCK_V": 64, "BLOCK_K": 256, "num_warps": 1, "num_stages": 1}
NAN, INF = float("nan"), float("inf")

# seed, position, temperature, top_k, top_p, min_p
Parameters = tuple[int, int, float, int, float, float]

GRID: list[Parameters] = [
    (11 * i, i, temperature, top_k, top_p, min_p)
    for i, (temperature, top_k, top_p, min_p) in enumerate(
        [
            (0.0, 5, 0.5, 0.1), (1.0, 0, 1.0, 0.0), (0.3, 0, 1.0, 0.0), (2.0, 0, 1.0, 0.05),
            (1.0, 1, 1.0, 0.0), (1.0, 5, 1.0, 0.0), (0.7, 40, 1.0, 0.0), (5.0, 132, 1.0, 0.0),
            (1.0, VOCAB, 0.9, 0.0), (1.0, 10**6, 1.0, 0.0), (1.0, 0, 0.5, 0.0), (2.0, 0, 0.9, 0.0),
            (9.0, 0, 0.999, 0.0), (1.0, 0, 0.0, 0.0), (1.0, 0, 1e-6, 0.0), (3.0, 20, 0.8, 0.0),
            (3.0, 20, 0.8, 0.2), (1.0, 0, 0.7, 0.01), (1.0, 0, 1.0, 1.0), (1e-45, 0, 1.0, 0.0),
            (1e-3, 7, 0.9, 0.0), (100.0, 50, 0.5, 0.0),
        ]
    )
]  # fmt: skip


def _rows(parameters: Sequence[Parameters], device: torch.device) -> SamplingRows:
    seeds, positions, temperatures, top_ks, top_ps, min_ps = zip(*parameters, strict=True)
    signed = [seed - (1 << 64) if seed >= 1 << 63 else seed for seed in seeds]
    return SamplingRows(
        torch.tensor(signed, dtype=torch.int64, device=device),
        torch.tensor(positions, dtype=torch.int64, device=device),
        torch.tensor(temperatures, dtype=torch.float32, device=device),
        torch.tensor(top_ks, dtype=torch.int32, device=device),
        torch.tensor(top_ps, dtype=torch.float32, device=device),
        torch.tensor(min_ps, dtype=torch.float32, device=device),
    )


def _sample(
    logits: torch.Tensor, parameters: Sequence[Parameters] | None, device: torch.device, **more: Any
) -> list[int]:
    """The tokens of rows that are all in order."""
    rows = None if parameters is None else _rows(parameters, device)
    tokens, status = sample(logits.to(device), rows, config=CONFIG, **more)
    assert status.tolist() == [OK] * len(logits)
    return tokens.tolist()


@pytest.mark.parametrize("spread", [0.5, pytest.param(4.0, marks=pytest.mark.verify), 20.0])
def test_it_is_the_twin(spread: float, device: torch.device, generator: torch.Generator) -> None:
    """Spreads from almost flat, where no cut leaves few scores, to a handful of likely tokens."""
    logits = spread * torch.randn(len(GRID), VOCAB, generator=generator)
    got = _sample(logits, GRID, device)
    assert got == [reference.sample(x, *p) for x, p in zip(logits, GRID, strict=True)]


@pytest.mark.parametrize(
    ("distance", "top_k", "top_p", "least_u"),
    [(5.0, 0, 0.9, 0.75), (9.0, 0, 0.995, 0.9995), (5.0, 100, 1.0, 0.75)],
)
def test_what_is_kept_may_lie_far_from_the_best(
    distance: float,
    top_k: int,
    top_p: float,
    least_u: float,
    device: torch.device,
    generator: torch.Generator,
) -> None:
    """Beyond the first cuts: one likely token, the first, and of the others what is asked for.

    Small random numbers draw the likely one, so the seeds are those of large ones.
    """
    logits = (-distance - torch.rand(VOCAB, generator=generator)).repeat(5, 1)
    logits[:, 0] = 0.0
    seeds = islice((s for s in count() if reference.uniform(s, 3) > least_u), 5)
    parameters = [(seed, 3, 1.0, top_k, top_p, 0.0) for seed in seeds]
    want = [reference.sample(x, *p) for x, p in zip(logits, parameters, strict=True)]
    assert 0 not in want
    assert _sample(logits, parameters, device) == want


@pytest.mark.parametrize("block_k", [16, 64])
def test_scores_that_are_left_may_fill_several_blocks(
    block_k: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> None:
    logits = torch.randn(2, VOCAB, generator=generator).to(dtype)
    grid = [GRID[7], GRID[16]]
    tokens, _ = sample(logits.to(device), _rows(grid, device), config=CONFIG | {"BLOCK_K": block_k})
    assert tokens.tolist() == [reference.sample(x, *p) for x, p in zip(logits, grid, strict=True)]


def test_it_is_the_engines_sampler(device: torch.device, generator: torch.Generator) -> None:
    logits = 3.0 * torch.randn(len(GRID), VOCAB, generator=generator)
    reqs, grid = [], [parameters for parameters in GRID if parameters[2] <= 2 and parameters[4]]
    for seed, position, temperature, top_k, top_p, min_p in grid:
        sampling = SamplingParams(
            max_tokens=1, seed=seed, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
        )
        request = EngineRequest("r", "t", tuple(range(position + 1)), sampling)
        reqs.append(Req(request, 0.0))
    parameters = [
        (seed_of(req), len(req.token_ids), *p[2:]) for req, p in zip(reqs, grid, strict=True)
    ]
    logits = logits[: len(grid)]
    want = [row.token for row in sample_on_cpu(logits.clone(), reqs)]
    assert _sample(logits, parameters, device) == want


def test_the_random_stream_is_the_engines(device: torch.device) -> None:
    """Of 2^9 equally likely tokens the drawn one is the first 9 bits of u."""
    seeds = [0, 1, 7, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
    pairs = [(seed, position) for seed in seeds for position in (0, 1, 133, 10**6)]
    logits = torch.zeros(len(pairs), 512)
    got = _sample(logits, [(*pair, 1.0, 0, 1.0, 0.0) for pair in pairs], device)
    assert got == [int(u * 512) for u in uniform(*zip(*pairs, strict=True))]
    assert got == [int(reference.uniform(*pair) * 512) for pair in pairs]
    assert len(set(got)) > len(pairs) // 2


def test_a_row_is_the_same_alone_and_in_any_order(
    device: torch.device, generator: torch.Generator
) -> None:
    grid = GRID[1::4]
    logits = 3.0 * torch.randn(len(grid), VOCAB, generator=generator)
    together = _sample(logits, grid, device)
    assert _sample(logits.flip(0), grid[::-1], device) == together[::-1]
    assert _sample(logits[2:3], grid[2:3], device) == together[2:3]


def test_of_equals_the_lower_ids_are_better(device: torch.device) -> None:
    """Over a block's border, where top-k and top-p end among equals; one seed draws the last."""
    logits = torch.full((3, VOCAB), -1.0)
    logits[:, 60:70] = 2.0
    for top_k, top_p, kept in ((4, 1.0, 4), (10, 0.25, 3), (9, 0.5, 5)):
        parameters = [(seed, 3, 1.0, top_k, top_p, 0.0) for seed in (2, 20, 36)]
        got = _sample(logits, parameters, device)
        assert set(got) <= set(range(60, 60 + kept))
        assert max(got) == 59 + kept
        assert got == [reference.sample(x, *p) for x, p in zip(logits, parameters, strict=True)]


def test_greedy_takes_the_first_of_the_best(dtype: torch.dtype, device: torch.device) -> None:
    logits = torch.zeros(3, VOCAB, dtype=dtype)
    logits[0, [130, 70]] = 5.0
    logits[1] = -7.0
    logits[2, VOCAB - 1] = 0.5
    assert _sample(logits, None, device) == [70, 0, VOCAB - 1]


def test_a_bad_row_is_flagged_and_the_others_are_not(
    device: torch.device, generator: torch.Generator
) -> None:
    logits = torch.randn(6, VOCAB, generator=generator)
    want = _sample(logits, [GRID[1]] * 6, device)
    logits[1, 132], logits[2, 0], logits[4, 70] = NAN, INF, -INF
    for rows in (_rows([GRID[1]] * 6, device), None):
        tokens, status = sample(logits.to(device), rows, config=CONFIG)
        assert status.tolist() == [OK, NOT_FINITE, NOT_FINITE, OK, NOT_FINITE, OK]
        assert tokens[[1, 2, 4]].tolist() == [0, 0, 0]
        if rows is not None:
            assert tokens[[0, 3, 5]].tolist() == [want[0], want[3], want[5]]


def test_a_masked_token_is_never_drawn(device: torch.device, generator: torch.Generator) -> None:
    grid = GRID[::3]
    logits = torch.randn(len(grid), VOCAB, generator=generator)
    allowed = [3, 64, 65, 130]
    masked = torch.full_like(logits, -INF)
    masked[:, allowed] = logits[:, allowed]
    is_masked = torch.ones(len(grid), dtype=torch.bool, device=device)
    got = _sample(masked, grid, device, is_masked_N=is_masked)
    assert set(got) <= set(allowed)
    assert got == [reference.sample(x, *p) for x, p in zip(masked, grid, strict=True)]


def test_a_row_without_an_allowed_token_says_so(device: torch.device) -> None:
    logits = torch.full((3, VOCAB), -INF)
    logits[1, 5] = 1.0
    logits[2, 7] = NAN
    is_masked = torch.ones(3, dtype=torch.bool, device=device)
    for rows in (_rows([GRID[3]] * 3, device), None):
        tokens, status = sample(logits.to(device), rows, is_masked, config=CONFIG)
        assert status.tolist() == [NOTHING_ALLOWED, OK, NOT_FINITE]
        assert tokens.tolist() == [0, 5, 0]


@pytest.mark.parametrize("vocab", [1, 7, 64])
def test_any_size_of_vocabulary_and_rows_that_are_strided(
    vocab: int, device: torch.device, generator: torch.Generator
) -> None:
    grid = GRID[1::3]
    wide = torch.randn(len(grid), vocab + 9, generator=generator)
    wide[:, vocab:] = 50.0
    got = _sample(wide.to(device)[:, :vocab], grid, device)
    pairs = zip(wide[:, :vocab], grid, strict=True)
    assert got == [reference.sample(x, *p) for x, p in pairs]


def test_an_empty_batch_has_no_tokens(device: torch.device) -> None:
    tokens, status = sample(torch.empty(0, VOCAB, device=device))
    assert tokens.shape == status.shape == (0,)


def test_bad_arguments_are_refused(device: torch.device) -> None:
    rows = _rows(GRID[:2], device)
    with pytest.raises(ValueError, match=r"logits must be \[N, V\]"):
        sample(torch.zeros(2, 0, device=device))
    with pytest.raises(ValueError, match="unit stride"):
        sample(torch.zeros(VOCAB, 2, device=device).t(), rows)
    with pytest.raises(ValueError, match=r"seeds must be contiguous \[3\] of torch.int64"):
        sample(torch.zeros(3, VOCAB, device=device), rows)
    with pytest.raises(ValueError, match="is_masked must be contiguous"):
        sample(torch.zeros(2, VOCAB, device=device), rows, torch.zeros(2, device=device))
