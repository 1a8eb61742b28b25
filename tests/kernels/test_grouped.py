"""grouped_mm: each group of rows by its own matrix."""

from __future__ import annotations

import pytest
import torch

from weft_kernels.grouped import grouped_mm, grouped_mm_in_calls
from weft_kernels.popularity import POPULARITIES, assign_adapters


def test_grouped_mm_multiplies_each_group_by_its_own_matrix(
    device: torch.device, generator: torch.Generator
) -> None:
    ends = [0, 3, 3, 10, 11]
    x, w = torch.randn(11, 8, generator=generator), torch.randn(5, 8, 16, generator=generator)
    got = grouped_mm(x.to(device), w.to(device), torch.tensor(ends, dtype=torch.int32).to(device))
    group = [next(g for g, end in enumerate(ends) if row < end) for row in range(11)]
    want = torch.stack([x[row].double() @ w[group[row]].double() for row in range(11)])
    torch.testing.assert_close(got.cpu().double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("popularity", POPULARITIES)
@pytest.mark.parametrize("num_groups_per_call", [1, 3, 7])
def test_more_groups_than_one_call_takes(
    popularity: str, num_groups_per_call: int, device: torch.device, generator: torch.Generator
) -> None:
    counts = torch.bincount(torch.tensor(assign_adapters(popularity, 19, 16, seed=0)), minlength=16)
    ends = counts.cumsum(0).to(device, torch.int32)
    x = torch.randn(19, 8, generator=generator).to(device)
    w = torch.randn(16, 8, 16, generator=generator).to(device)
    got = grouped_mm_in_calls(x, w, ends, num_groups_per_call)
    torch.testing.assert_close(got, grouped_mm(x, w, ends), rtol=1e-6, atol=1e-6)


def test_more_groups_than_one_call_takes_without_any_row(device: torch.device) -> None:
    ends = torch.zeros(4, dtype=torch.int32, device=device)
    w = torch.ones(4, 8, 16, device=device)
    assert grouped_mm_in_calls(torch.ones(0, 8, device=device), w, ends, 3).shape == (0, 16)
