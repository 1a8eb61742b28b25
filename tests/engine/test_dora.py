"""Row scales of DoRA: through the base as it is served, computed once and not by a step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.engine.families import CASES, create_model
from tests.engine.preparations import record_threads, run_in_turn

from weft.engine.model.served_weights import ServedWeights
from weft.engine.offline import load_adapters
from weft.messages import EngineRequest, SamplingParams
from weft_kernels.quantized import quantize

if TYPE_CHECKING:
    from tests.bench import Bench

LORA: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "o_proj", "up_proj"]}
PROMPT = (5, 9, 200, 31)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, create_bench: Callable[..., Bench]) -> Bench:
    adapters = {"dora": {**LORA, "use_dora": True}, "plain": LORA}
    root = tmp_path_factory.mktemp("dora")
    return create_bench(root, create_model(CASES["llama, biases, llama3"]), adapters)


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_they_are_of_the_rounded_rows_where_the_base_is_rounded(
    bench: Bench, tmp_path: Path, quantization: str
) -> None:
    model = bench.oracle.model(None)
    rounded = type(bench.oracle)(tmp_path, bench.oracle.adapter_dirs)
    with torch.no_grad():
        exact = {name: weight.clone() for name, weight in model.named_parameters()}
        for name, weight in model.named_parameters():
            if name.endswith("_proj.weight"):
                weight.copy_(quantize(weight.T, quantization).dense().T)
        model.save_pretrained(tmp_path)
        for name, weight in model.named_parameters():
            weight.copy_(exact[name])
    built, digests = bench.build(quantization=quantization)
    load_adapters(built, digests.values())
    sampling = SamplingParams(1, temperature=0)
    requests = [EngineRequest(name, "t", PROMPT, sampling, digests[name]) for name in digests]
    got = bench.first_step_logits(built, requests)
    built.tiers.close()
    for name in digests:
        want = rounded.logits(name, PROMPT)[-1]
        assert float((got[name] - want).abs().max()) < 1e-4 * max(1.0, float(want.abs().max()))


@pytest.mark.slow
def test_they_are_computed_once_by_a_thread_that_reads(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = record_threads(monkeypatch, ServedWeights, "row_norms")
    for _ in range(2):  # the second engine finds those of the first
        built, digests = bench.build(derived_dir=tmp_path, max_running=1)
        run_in_turn(built, [digests["plain"], digests["dora"], digests["plain"]])
        built.tiers.close()
        num_sites = 3 * 2
        assert threads == ["weft-adapter-reader-0"] * num_sites
