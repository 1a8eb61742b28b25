"""Rotary positions against their twin."""

from __future__ import annotations

import pytest
import torch

from weft_kernels import reference
from weft_kernels.rotary import Rope, apply_rotary, create_rotary_table

MAX_LEN = 5000


@pytest.mark.parametrize("head_dim", [2, 8, 64])
@pytest.mark.parametrize("theta", [1e4, 1e6])
@pytest.mark.parametrize("positions", [[], [0], [4999, 0, 3, 3, 133, 7, 1]])
def test_it_is_the_twin(
    positions: list[int],
    theta: float,
    head_dim: int,
    device: torch.device,
    generator: torch.Generator,
) -> None:
    x = torch.randn(len(positions), 3, head_dim, generator=generator)
    table = create_rotary_table(MAX_LEN, head_dim, Rope(theta), device)
    rows = table[torch.tensor(positions, dtype=torch.int64, device=device)]
    got = apply_rotary(x.to(device), rows)
    want = reference.rotary(x, positions, Rope(theta))
    # an angle of up to 5000 in float32 is right to 5000 / 2^24
    torch.testing.assert_close(got.cpu().double(), want, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("head_dim", [2, 14, 64])
@pytest.mark.parametrize(
    "rope",
    [
        Rope(1e4, "linear", factor=2.5),
        Rope(5e5, "llama3", factor=8.0, original_max_len=512),
        Rope(1e4, "llama3", 32.0, 64, low_freq_factor=2.0, high_freq_factor=9.0),
        Rope(1e6, "yarn", factor=4.0, original_max_len=512, attention_factor=1.14),
        Rope(1e4, "yarn", 8.0, 64, beta_slow=0.5, beta_fast=8.0, truncate=False),
        Rope(1e4, "yarn", 4.0, 4, attention_factor=0.7),
    ],
)
def test_scaled_frequencies_are_the_twins(
    rope: Rope, head_dim: int, device: torch.device, generator: torch.Generator
) -> None:
    positions = [0, 1, 7, 133, 700]
    x = torch.randn(len(positions), 3, head_dim, generator=generator)
    table = create_rotary_table(701, head_dim, rope, device)
    got = apply_rotary(x.to(device), table[torch.tensor(positions, device=device)])
    torch.testing.assert_close(
        got.cpu().double(), reference.rotary(x, positions, rope), rtol=1e-4, atol=1e-3
    )


def test_position_0_changes_nothing(device: torch.device, generator: torch.Generator) -> None:
    x = torch.randn(1, 2, 16, generator=generator).to(device)
    table = create_rotary_table(1, 16, Rope(1e4), device)
    assert torch.equal(apply_rotary(x, table), x)


def test_a_score_depends_on_the_distance_only(
    device: torch.device, generator: torch.Generator
) -> None:
    q, k = torch.randn(2, 1, 1, 32, generator=generator).to(device)
    table = create_rotary_table(MAX_LEN, 32, Rope(1e4), device)

    def score(query_at: int, key_at: int) -> float:
        turned_q = apply_rotary(q, table[query_at][None])
        turned_k = apply_rotary(k, table[key_at][None])
        return float((turned_q * turned_k).sum())

    assert score(10, 3) == pytest.approx(score(107, 100), abs=1e-4)
    assert score(10, 3) != pytest.approx(score(10, 4), abs=1e-4)


def test_heads_of_a_fused_projection_may_be_strided(
    device: torch.device, generator: torch.Generator
) -> None:
    fused = torch.randn(7, 3 * 16, generator=generator)
    heads = fused.to(device)[:, 16:32].view(7, 2, 8)
    table = create_rotary_table(7, 8, Rope(1e4), device)
    want = reference.rotary(fused[:, 16:32].reshape(7, 2, 8), range(7), Rope(1e4))
    got = apply_rotary(heads, table)
    torch.testing.assert_close(got.cpu().double(), want, rtol=1e-5, atol=1e-5)
