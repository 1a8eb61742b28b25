"""Random batches, ranks and sizes of the adapted linear against its twin."""

from __future__ import annotations

import pytest
import torch
from tests.kernels.cuda.lora_cases import assert_near, create_case
from tests.kernels.cuda.lora_forms import run

from weft_kernels.cuda.lora import FORMS

# a bare GPU image does not have it
pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(st.integers(-1, 4), min_size=1, max_size=24),
    ranks=st.lists(st.integers(1, 40), min_size=5, max_size=5),
    widths=st.lists(st.integers(1, 80), min_size=1, max_size=3),
    num_in=st.integers(1, 90),
    form=st.sampled_from(FORMS),
    seed=st.integers(0, 9),
)
def test_any_batch_is_the_twins(
    rows: list[int], ranks: list[int], widths: list[int], num_in: int, form: str, seed: int
) -> None:
    case = create_case(
        rows, ranks=ranks, num_adapters=5, num_in=num_in, widths=tuple(widths),
        with_vectors=seed % 2 == 0, with_bias=seed % 3 == 0, seed=seed,
    )  # fmt: skip
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert_near(run(case, form, device), case.twin())
