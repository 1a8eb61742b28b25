"""A slice of `benchmarks.churn` on the device, held against the CPU's engine: the right weights
while adapters come and go between the slots and pages that graphs were captured over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks.churn import Churn
from tests.engine.cuda.conftest import IS_INTERPRETED
from tests.engine.test_churn import assert_right_weights

from weft.engine.graphs import CapturedStep

pytestmark = [pytest.mark.slow] if IS_INTERPRETED else [pytest.mark.slow, pytest.mark.gpu]
if IS_INTERPRETED:
    # two requests take half a minute, and those of experts minutes; test_cuda_tokens.py and
    # test_slot_adapters.py have an engine and slots that adapters come to and leave
    pytestmark.append(pytest.mark.verify)


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_no_request_gets_another_versions_tokens(
    kind: str, tmp_path: Path, device: torch.device, captured_steps: list[CapturedStep]
) -> None:
    num_requests = 2 if IS_INTERPRETED else 75
    churn = Churn(tmp_path, kind, num_requests, seed=1, device=str(device), kernels="triton")
    churn.warm_up()
    if not IS_INTERPRETED:
        assert_right_weights(churn)
        assert len({step.layout for step in captured_steps}) > 3
        return
    # too few requests for all that happens in a churn, which is what can be interpreted
    churn.run()
    verdicts = churn.compare()
    churn.isolated.close()
    assert not verdicts.mismatches, verdicts.mismatches
    assert verdicts.num_positions >= 2
    assert captured_steps
