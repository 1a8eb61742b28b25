"""The engine on Triton's kernels gives the tokens that it gives on torch's.

Interpreted on a CPU, with steps padded as captured ones are; on a CUDA device by graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.engine.cuda.conftest import IS_INTERPRETED
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from weft.engine.build import BuiltEngine
from weft.engine.cuda_runner import CudaRunner
from weft.engine.graphs import StepOutput
from weft.engine.offline import Completion, load_adapters, run_requests
from weft.engine.plan import ScheduledReq
from weft.engine.runner import StepRows
from weft.engine.step_inputs import StepLayout
from weft.messages import EngineRequest, SamplingParams

if TYPE_CHECKING:
    from tests.bench import Bench
    from tests.oracle import NearTies

pytestmark = [] if IS_INTERPRETED else [pytest.mark.gpu]

NUM_TOKENS = 4 if IS_INTERPRETED else 64
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS_AND_ROUTER = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"]
SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
}
EXPERTS: dict[str, Any] = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    "mlp_only_layers": [1],
}  # fmt: skip
ADAPTERS: dict[str, dict[str, Any]] = {
    "dense": {
        "attention": {"r": 8, "target_modules": ATTENTION},
        "all": {"r": 12, "target_modules": "all-linear"},
        "dora": {"r": 4, "target_modules": ["q_proj", "up_proj"], "use_dora": True},
    },
    "moe": {
        "attention": {"r": 8, "target_modules": ATTENTION},
        "modules": {"r": 4, "target_modules": ["q_proj", "down_proj"]},
        "experts": {"r": 4, "target_modules": ["v_proj"], "target_parameters": EXPERTS_AND_ROUTER},
    },
}
# what others of the same list have in other pairs, where it is interpreted
LONG = [pytest.mark.verify] if IS_INTERPRETED else []
KERNELS = {"kernels": "triton", "device": "cpu" if IS_INTERPRETED else "cuda"}


@pytest.fixture(scope="module")
def benches(
    tmp_path_factory: pytest.TempPathFactory, create_bench: Callable[..., Bench]
) -> Mapping[str, Bench]:
    def create(kind: str) -> Bench:
        torch.manual_seed(0)
        model_type, sizes = ("qwen3", SIZES) if kind == "dense" else ("qwen3_moe", SIZES | EXPERTS)
        auto: Any = AutoModelForCausalLM
        model: PreTrainedModel = auto.from_config(AutoConfig.for_model(model_type, **sizes))
        return create_bench(tmp_path_factory.mktemp(kind), model, ADAPTERS[kind])

    return {kind: create(kind) for kind in ADAPTERS}


def requests_for(digests: Mapping[str, str]) -> list[EngineRequest]:
    """A request of its own length for the base and for each adapter, and one more for the last;
    they end one after another."""
    names = [None, *digests, list(digests)[-1]]
    requests = []
    for i, name in enumerate(names):
        prompt = tuple((7 * i + 31 * j) % 256 for j in range(3 + 5 * i))
        sampling = SamplingParams(NUM_TOKENS - i % 3, temperature=0, ignore_eos=True)
        digest = None if name is None else digests[name]
        requests.append(EngineRequest(f"{i}:{name}", "t", prompt, sampling, digest))
    return requests


def build(bench: Bench, **options: Any) -> tuple[BuiltEngine, dict[str, str]]:
    built, digests = bench.build(max_running=6, max_adapters_in_batch=3, **options)
    load_adapters(built, digests.values())
    return built, digests


def run(built: BuiltEngine, requests: Sequence[EngineRequest]) -> Mapping[str, Completion]:
    completions = run_requests(built, requests)
    built.tiers.close()
    return completions


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "is_warm", "is_async"),
    [
        pytest.param(kind, "padded" in way, "asynchronous" in way, id=f"{kind}: {way}", marks=marks)
        for kind, way, marks in [
            ("dense", "as they come", LONG),
            ("dense", "as they come, asynchronous", ()),
            ("dense", "padded", ()),
            ("dense", "padded, asynchronous", LONG),
            ("moe", "as they come, asynchronous", ()),
            ("moe", "padded", ()),
        ]
    ],
)
def test_mixed_batches_give_the_oracles_tokens(
    benches: Mapping[str, Bench], near_ties: NearTies, kind: str, is_warm: bool, is_async: bool
) -> None:
    bench = benches[kind]
    # as they come, prompts also stand beside rows that decode
    options: dict[str, Any] = {} if is_warm else {"max_step_tokens": 24}
    built, digests = build(bench, **KERNELS, **options, async_scheduling=is_async)
    assert built.info.kernels == "triton"
    runner = built.engine._runner
    assert isinstance(runner, CudaRunner)
    if is_warm:
        built.engine.warm_up()
    paddings: list[int] = []
    send = runner._send

    def note(
        items: Sequence[ScheduledReq], rows: StepRows, slots: Sequence[int], layout: StepLayout
    ) -> None:
        paddings.append(layout.num_rows - len(items))
        send(items, rows, slots, layout)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "_send", note)
        requests = requests_for(digests)
        completions = run(built, requests)
    assert any(paddings) == is_warm
    for request in requests:
        name = request.request_id.partition(":")[2]
        adapter = None if name == "None" else name
        prompt, got = request.prompt_token_ids, completions[request.request_id].token_ids
        assert len(got) == request.sampling.max_tokens
        near_ties.assert_greedy(bench.oracle, adapter, prompt, got)
    near_ties.assert_rare()


SAMPLING: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 1.3},
    "top-k and top-p": {"temperature": 0.9, "top_k": 30, "top_p": 0.8},
    "min-p, no seed": {"temperature": 2.0, "min_p": 0.2, "seed": None},
    "logprobs": {"temperature": 0.7, "logprobs": 3},
    "penalty": {"temperature": 0.0, "repetition_penalty": 1.5},
    "bias": {"temperature": 0.0, "logit_bias": ((65, 100.0),)},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_step_of_padding_changes_nothing(benches: Mapping[str, Bench], kind: str) -> None:
    built, _ = build(benches[kind], **KERNELS)
    runner = built.engine._runner
    assert isinstance(runner, CudaRunner)
    for tensor in runner._kv.tensors():
        tensor.fill_(3)
    for num_rows in (1, 21):
        with runner._on_stream():
            output = runner._run_padding(num_rows, runner._slots.reaches[-1])
            assert bool(output.logits_NV.isfinite().all())
    assert all(bool((tensor == 3).all()) for tensor in runner._kv.tensors())
    built.tiers.close()


# a last bit may move a rounded value by a step, so that other devices may draw other tokens
ROUNDED = [{"kv_dtype": "int8", "quantization": "int8"}] if IS_INTERPRETED else []


@pytest.mark.slow
@pytest.mark.parametrize(
    "rounding", [{}, *ROUNDED], ids=lambda options: "-".join(options) or "none"
)
def test_tokens_are_chosen_as_on_the_cpu(
    benches: Mapping[str, Bench], rounding: dict[str, Any]
) -> None:
    bench, found = benches["dense"], []
    requests = [
        EngineRequest(
            name, "t", (5, 9, 200, i), SamplingParams(3, ignore_eos=True, **{"seed": i} | options)
        )
        for i, (name, options) in enumerate(SAMPLING.items())
    ]
    for options in (KERNELS, {"kernels": "torch"}):
        built, _ = build(bench, **options, **rounding)
        found.append(run(built, requests))
    got, want = found
    for name in SAMPLING:
        assert got[name].token_ids == want[name].token_ids, name
        assert len(got[name].logprobs) == len(want[name].logprobs)
        for mine, own in zip(got[name].logprobs, want[name].logprobs, strict=True):
            assert mine.token_id == own.token_id
            assert mine.logprob == pytest.approx(own.logprob, abs=1e-3)
    assert got["bias"].token_ids == [65] * 3
    assert len(got["logprobs"].logprobs) == 3


@pytest.mark.slow
def test_a_token_taken_on_the_device_is_the_one_that_the_host_would_send(
    benches: Mapping[str, Bench],
) -> None:
    drawn = ["temperature", "top-k and top-p", "min-p, no seed"]
    ends: list[dict[str, Any]] = [{}, *[{"stop_token_ids": tuple(range(0, 320, 4))}] * 2]
    found = []
    for is_async in (False, True):
        # the prompts of later requests stand beside rows that decode
        options: dict[str, Any] = {"max_step_tokens": 8, "async_scheduling": is_async}
        built, digests = build(benches["dense"], **KERNELS, **options)
        # rows with an adapter stand behind those without, whoever came first
        requests = [
            EngineRequest(
                f"{name} {i}", "t", tuple(range(3 + 5 * i)),
                SamplingParams(4 + i, ignore_eos=True, **{"seed": i} | SAMPLING[name], **ends[i]),
                digests["attention"] if i == 0 else None,
            )
            for i, name in enumerate(drawn)
        ]  # fmt: skip
        completions = run(built, requests)
        found.append({name: (c.token_ids, c.finish_reason) for name, c in completions.items()})
        assert built.engine.scheduler.blocks.num_free == built.engine.scheduler.blocks.num_usable
    assert found[0] == found[1]
    assert {reason for _, reason in found[0].values()} == {"stop", "length"}


@pytest.mark.slow
def test_who_computes_what_is_not_finite_fails_alone(benches: Mapping[str, Bench]) -> None:
    built, _ = build(benches["dense"], **KERNELS)
    bad = 77
    with torch.inference_mode():
        built.decoder.weights.embed_VH[bad] = torch.nan
    sampling = SamplingParams(2, temperature=0, ignore_eos=True)
    prompts = {"good": (1, 2, 3), "bad": (1, bad, 3)}
    requests = [EngineRequest(name, "t", prompt, sampling) for name, prompt in prompts.items()]
    completions = run(built, requests)
    assert completions["good"].error is None
    assert len(completions["good"].token_ids) == 2
    assert "non-finite" in (completions["bad"].error or "")
    assert all(bool(t.isfinite().all()) for t in built.engine._runner._kv.tensors())


@pytest.mark.slow
@pytest.mark.skipif(IS_INTERPRETED, reason="the interpreter is on the host")
def test_nothing_in_a_step_waits_for_the_device(
    benches: Mapping[str, Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps with prompts; that one can be captured shows the same of steps that decode."""
    built, digests = build(benches["moe"], **KERNELS, prefix_cache=False)
    run_requests(built, requests_for(digests))  # a first call may copy small tables
    runner = built.engine._runner
    assert isinstance(runner, CudaRunner)
    compute, layouts = runner._compute, []

    def watched(layout: StepLayout) -> StepOutput:
        layouts.append(layout)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return compute(layout)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(runner, "_compute", watched)
    run(built, requests_for(digests))
    assert any(layout.num_rows > layout.num_logits for layout in layouts)
