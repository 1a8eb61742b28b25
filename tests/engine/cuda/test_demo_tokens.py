"""The demo base with all its adapters: the device's engine gives the CPU's tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from tests.engine.cuda.conftest import IS_INTERPRETED

from weft.engine.build import warm_up
from weft.engine.graphs import CapturedStep
from weft.engine.offline import load_adapters, run_requests
from weft.messages import EngineRequest, SamplingParams

if TYPE_CHECKING:
    from tests.bench import Bench
    from tests.oracle import NearTies

pytestmark = [pytest.mark.slow] if IS_INTERPRETED else [pytest.mark.slow, pytest.mark.gpu]
NUM_TOKENS = 2 if IS_INTERPRETED else 64


def test_the_devices_engine_gives_the_cpus_tokens(
    demo: Bench, near_ties: NearTies, device: torch.device, captured_steps: list[CapturedStep]
) -> None:
    sampling = SamplingParams(NUM_TOKENS, temperature=0, ignore_eos=True)
    names = [None, *demo.oracle.adapter_dirs][: 3 if IS_INTERPRETED else None]
    prompts = {name: tuple(range(40 + i, 45 + 3 * i)) for i, name in enumerate(names)}
    got: dict[str, dict[str | None, list[int]]] = {}
    for place, kernels in ((str(device), "triton"), ("cpu", "torch")):
        built, digests = demo.build(
            device=place, kernels=kernels, max_model_len=256, max_running=len(names)
        )
        load_adapters(built, [digests[name] for name in names if name])
        warm_up(built.engine)
        requests = [
            EngineRequest(str(name), "t", prompts[name], sampling, digests.get(name or ""))
            for name in names
        ]
        answers = run_requests(built, requests)
        got[kernels] = {name: answers[str(name)].token_ids for name in names}
        built.tiers.close()
    for name in names:
        near_ties.assert_equal_tokens(
            demo.oracle, name, prompts[name], got["triton"][name], got["torch"][name]
        )
    near_ties.assert_rare()
    assert len(captured_steps) >= NUM_TOKENS - 1
    # adapters matter: not all answer as the base does
    assert len({tuple(tokens) for tokens in got["triton"].values()}) > 1
