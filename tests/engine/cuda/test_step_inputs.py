"""A step's metadata come out of the packed tensor as they went in, and padding is inert."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weft.engine.graphs import StepGraphs, StepOutput
from weft.engine.step_inputs import StepBuffers, StepLayout, buckets, num_ints, view_step
from weft_kernels.cuda.attention_plan import AttentionLimits, FormLimits

NOTHING = FormLimits(0, 0, 0)
LIMITS = AttentionLimits(NOTHING, NOTHING, 5)
VALUES: dict[str, list[float]] = {
    "seeds": [-1, 2**62], "drawn_at": [7, 8], "tokens": [1, 2, 3], "positions": [4, 5, 6],
    "kv_slots": [2**33, 0, 9], "logit_rows": [0, 2], "temperatures": [0.5, 0.0],
    "top_ps": [0.9, 0.8], "min_ps": [0.1, 0.0], "taken_from": [-1, 1, -1],
    "top_ks": [3, 0], "slots": [-1, 2, 0], "num_tokens": [3],
}  # fmt: skip


def test_parts_come_out_as_they_went_in_and_padding_is_inert(device: torch.device) -> None:
    attention = np.arange(5, dtype=np.int32)
    buffers = StepBuffers(num_ints(5, 3, 5), 7, device)
    buffers.packed.fill_(-7)
    layout = StepLayout(num_rows=5, num_logits=3, limits=LIMITS, reach=0)
    for _ in range(2):  # what the step before left behind does not stay
        buffers.send(layout, {name: [] for name in VALUES}, attention)
        buffers.send(layout, VALUES, attention)
    parts, plan = view_step(buffers.step, layout)
    assert plan.tolist() == attention.tolist()
    blanks = {"kv_slots": -1, "slots": -1, "top_ps": 1}
    for name, values in VALUES.items():
        if name == "taken_from":
            continue
        got = parts[name].tolist()
        assert got[: len(values)] == pytest.approx(values, rel=1e-6), name
        assert got[len(values) :] == [blanks.get(name, 0)] * (len(got) - len(values)), name
        assert parts[name].storage_offset() * parts[name].itemsize % 16 == 0


def test_a_row_takes_its_token_from_the_step_before_or_from_the_host(device: torch.device) -> None:
    buffers = StepBuffers(num_ints(5, 3, 0), 7, device)
    layout = StepLayout(num_rows=5, num_logits=3, limits=LIMITS, reach=0)
    buffers.chosen.copy_(torch.arange(100, 107))
    buffers.send(layout, VALUES, np.zeros(0, dtype=np.int32))
    parts, _ = view_step(buffers.step, layout)
    assert buffers.take_tokens(parts).tolist() == [1, 101, 3, 0, 0]
    assert buffers.chosen.tolist() == list(range(100, 107))


def test_what_is_still_being_copied_is_not_written_over(device: torch.device) -> None:
    buffers = StepBuffers(num_ints(5, 3, 0), 7, device)
    layout = StepLayout(num_rows=5, num_logits=3, limits=LIMITS, reach=0)
    nothing = np.zeros(0, dtype=np.int32)
    buffers.send(layout, VALUES, nothing)
    sent = [host.ints.clone() for host in buffers._hosts]
    buffers.send(layout, VALUES | {"tokens": [7, 8, 9]}, nothing)
    is_kept = [bool((a == b.ints).all()) for a, b in zip(sent, buffers._hosts[::-1], strict=True)]
    assert is_kept == [False, True]  # the older is filled anew


def test_a_step_that_is_too_large_is_refused(device: torch.device) -> None:
    buffers = StepBuffers(num_ints(3, 2, 4), 6, device)
    with pytest.raises(ValueError, match="more than"):
        buffers.send(StepLayout(3, 2, LIMITS, 0), VALUES, np.zeros(5, dtype=np.int32))


def test_buckets_are_powers_of_two_and_the_most_itself() -> None:
    assert buckets(1) == [1]
    assert buckets(8) == [1, 2, 4, 8]
    assert buckets(11) == [1, 2, 4, 8, 11]


def test_a_captured_step_is_found_by_its_rows_and_reach() -> None:
    def compute(layout: StepLayout) -> StepOutput:
        return StepOutput(torch.zeros(layout.num_logits), torch.zeros(2, layout.num_logits))

    graphs = StepGraphs(compute, stream=None)
    for num_rows in (8, 4):
        graphs.capture(StepLayout(num_rows, num_rows, LIMITS, 1))
    assert graphs.find(9, 1) is None
    assert graphs.find(3, 0) is None
    for num_rows, size in ((1, 4), (4, 4), (5, 8), (8, 8)):
        found = graphs.find(num_rows, 1)
        assert found is not None
        assert found.layout.num_rows == size
        assert len(found.replay().logits_NV) == size
