"""Weights of few bits, keys and values of 8: what is computed, how far it is off, what it takes."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.engine.exploding import register_exploding_adapter
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from weft.engine.build import BuiltEngine
from weft.engine.config import EngineConfig
from weft.engine.memory_plan import kv_token_bytes, weight_bytes
from weft.engine.model.config import create_model_config, read_hf_config
from weft.engine.model.weights import DenseWeights, LayerWeights, load_weights
from weft.engine.offline import load_adapters, run_requests
from weft.messages import EngineRequest, SamplingParams
from weft_kernels.backend import Backend
from weft_kernels.moe import QuantizedExperts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.bench import Bench

QUANTIZATIONS = ["int8", "int4"]
# the median, relative to max(1, max |logit|); a few requests lie where a router nearly ties
LOGIT_ERRORS = {"int8": 0.05, "int4": 0.5, "int8 KV": 0.03}
# a key that lies halfway between two steps may be rounded either way by another batch
NEAR_TIE = 0.02


def create_prompts(num: int, seed: int = 0) -> list[tuple[int, ...]]:
    rng = random.Random(seed)
    beginning = tuple(rng.randrange(256) for _ in range(37))
    return [
        (beginning if i % 2 else ()) + tuple(rng.randrange(256) for _ in range(3 + 7 * (i % 4)))
        for i in range(num)
    ]


def create_requests(bench: Bench, digests: dict[str, str], num: int) -> list[EngineRequest]:
    names = [None, *bench.oracle.adapter_dirs]
    sampling = SamplingParams(24, temperature=0, ignore_eos=True)
    return [
        EngineRequest(
            f"{i}:{names[i % len(names)]}", "t", prompt, sampling,
            digests.get(names[i % len(names)] or ""),
        )
        for i, prompt in enumerate(create_prompts(num))
    ]  # fmt: skip


def adapter_of(request: EngineRequest) -> str | None:
    name = request.request_id.partition(":")[2]
    return None if name == "None" else name


def first_logits(bench: Bench, num: int, **options: Any) -> dict[str, torch.Tensor]:
    built, digests = bench.build(**options)
    load_adapters(built, digests.values())
    logits = bench.first_step_logits(built, create_requests(bench, digests, num))
    built.tiers.close()
    return logits


def error_of(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).abs().max() / max(1.0, float(want.abs().max())))


# ---- what is computed ----


def copy_layer_(target: Any, layer: LayerWeights) -> None:
    """Write a layer's dequantized weights into transformers' module."""
    attention = target.self_attn
    q, kv = attention.q_proj.out_features, attention.k_proj.out_features
    for name, part in zip("qkv", torch.split(layer.qkv.dense(), [q, kv, kv], dim=1), strict=True):
        getattr(attention, f"{name}_proj").weight.copy_(part.T)
    attention.o_proj.weight.copy_(layer.o.dense().T)
    mlp = target.mlp
    if isinstance(layer.mlp, DenseWeights):
        gate, up = layer.mlp.gate_up.dense().chunk(2, dim=1)
        mlp.gate_proj.weight.copy_(gate.T)
        mlp.up_proj.weight.copy_(up.T)
        mlp.down_proj.weight.copy_(layer.mlp.down.dense().T)
    else:
        assert isinstance(layer.mlp, QuantizedExperts)
        mlp.experts.gate_up_proj.copy_(layer.mlp.gate_up_EHF.dense().transpose(1, 2))
        mlp.experts.down_proj.copy_(layer.mlp.down_EFH.dense().transpose(1, 2))


def save_rounded(bench: Bench, quantization: str, folder: Path) -> None:
    """A checkpoint of the values that an engine with this quantization computes with."""
    config = create_model_config(read_hf_config(bench.base_dir))
    weights = load_weights(
        bench.base_dir,
        config,
        torch.float32,
        torch.device("cpu"),
        Backend(),
        quantization=quantization,
    )
    model = AutoModelForCausalLM.from_pretrained(bench.base_dir, dtype=torch.float32)
    with torch.no_grad():
        for target, layer in zip(model.model.layers, weights.layers, strict=True):
            copy_layer_(target, layer)
    model.save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "quantization"), [("dense", "int8"), ("dense", "int4"), ("moe", "int8"),
                               ("demo", "int8"), ("demo", "int4")],
)  # fmt: skip
def test_logits_are_transformers_on_the_rounded_weights(
    name: str, quantization: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bench: Bench = request.getfixturevalue(name)
    save_rounded(bench, quantization, tmp_path)
    rounded = type(bench.oracle)(tmp_path, bench.oracle.adapter_dirs)
    got = first_logits(bench, 6, quantization=quantization)
    for item in create_requests(bench, {}, 6):
        want = rounded.logits(adapter_of(item), item.prompt_token_ids)[-1]
        assert error_of(got[item.request_id], want) < 1e-4, item.request_id


# ---- how far it is off ----


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dense", "demo"])
def test_logits_of_fewer_bits_stay_near(name: str, request: pytest.FixtureRequest) -> None:
    bench: Bench = request.getfixturevalue(name)
    want = first_logits(bench, 12)
    ways: dict[str, dict[str, Any]] = {
        "int8": {"quantization": "int8"},
        "int4": {"quantization": "int4"},
        "int8 KV": {"kv_dtype": "int8"},
    }
    errors = {}
    for way, options in ways.items():
        got = first_logits(bench, 12, **options)
        errors[way] = median(error_of(got[key], logits) for key, logits in want.items())
        assert 0 < errors[way] < LOGIT_ERRORS[way]
    assert errors["int8"] < errors["int4"]


# ---- the int8 KV cache in the engine ----


def tokens_of(built: BuiltEngine, requests: Sequence[EngineRequest]) -> dict[str, list[int]]:
    return {key: c.token_ids for key, c in run_requests(built, requests).items()}


def assert_same_tokens(
    bench: Bench, request: EngineRequest, got: Sequence[int], want: Sequence[int]
) -> None:
    """Identical up to a position where the two best logits nearly tie."""
    pairs = zip(got, want, strict=True)
    num_same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    if num_same == len(want):
        return
    built, digests = bench.build(kv_dtype="int8")
    load_adapters(built, digests.values())
    prompt = (*request.prompt_token_ids, *want[:num_same])
    (logits,) = bench.first_step_logits(built, [replace(request, prompt_token_ids=prompt)]).values()
    built.tiers.close()
    best, second = logits.topk(2).values.tolist()
    assert best - second < NEAR_TIE, f"token {num_same} of {request.request_id}"


@pytest.fixture(scope="module")
def alone(dense: Bench) -> dict[str, list[int]]:
    """Tokens of each request by itself, with nothing cached."""
    built, digests = dense.build(kv_dtype="int8", prefix_cache=False, max_running=1)
    tokens: dict[str, list[int]] = {}
    for item in create_requests(dense, digests, 12):
        tokens |= tokens_of(built, [item])
    built.tiers.close()
    return tokens


WAYS: dict[str, dict[str, Any]] = {
    "one batch": {},
    "chunks of 7": {"max_running": 7, "max_step_tokens": 7},
    "preempted and matched again": {"num_blocks": 14},
    "preempted and swapped": {"num_blocks": 14, "num_host_blocks": 100, "prefix_cache": False},
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_int8_keys_and_values_give_the_same_tokens_alone_and_in_a_batch(
    dense: Bench, alone: dict[str, list[int]], way: str
) -> None:
    options = dict(WAYS[way])
    is_tight = "num_blocks" in options
    if is_tight:
        block_bytes = 16 * kv_token_bytes(model_of(dense), torch.int8)
        options["kv_bytes"] = options.pop("num_blocks") * block_bytes
        options["swap_bytes"] = options.pop("num_host_blocks", 0) * block_bytes
        options["max_model_len"] = 128
    built, digests = dense.build(kv_dtype="int8", **options)
    requests = create_requests(dense, digests, 12)
    for key, tokens in tokens_of(built, requests).items():
        (item,) = (r for r in requests if r.request_id == key)
        assert_same_tokens(dense, item, tokens, alone[key])
    assert (built.engine.scheduler.num_preemptions > 0) == is_tight
    if not is_tight:
        again = run_requests(built, requests[1:2])[requests[1].request_id]
        assert again.usage.num_cached_tokens > 0
        assert_same_tokens(dense, requests[1], again.token_ids, alone[requests[1].request_id])
    built.tiers.close()


@pytest.mark.slow
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_what_is_not_finite_fails_its_request_and_is_cleaned(
    dense: Bench, tmp_path: Path, quantization: str | None
) -> None:
    built, _ = dense.build(kv_dtype="int8", quantization=quantization, max_running=4)
    bad = register_exploding_adapter(dense, built, tmp_path / "bad")
    good = create_requests(dense, {}, 1)
    want = tokens_of(built, good)
    sampling = SamplingParams(4, temperature=0, ignore_eos=True)
    failing = EngineRequest("bad", "t", (5, 6, 7), sampling, bad)
    load_adapters(built, [bad])
    done = run_requests(built, [failing, *good])
    assert done["bad"].finish_reason == "error"
    assert "non-finite" in str(done["bad"].error)
    assert done[good[0].request_id].token_ids == want[good[0].request_id]
    cache = built.engine._runner._kv
    assert all(bool(torch.isfinite(tensor).all()) for tensor in cache.tensors())
    built.tiers.close()


# ---- what it takes ----


def model_of(bench: Bench) -> Any:
    return create_model_config(read_hf_config(bench.base_dir))


@pytest.mark.parametrize(
    ("name", "quantization"), [("dense", None), ("dense", "int8"), ("dense", "int4"),
                               ("moe", None), ("moe", "int8")],
)  # fmt: skip
def test_the_plan_counts_what_the_weights_take(
    name: str, quantization: str | None, request: pytest.FixtureRequest
) -> None:
    bench: Bench = request.getfixturevalue(name)
    cpu = torch.device("cpu")
    weights = load_weights(
        bench.base_dir, model_of(bench), torch.float32, cpu, Backend(), quantization=quantization
    )
    planned = weight_bytes(model_of(bench), torch.float32, quantization)
    assert planned <= weights.num_bytes <= 1.03 * planned  # norms and biases


def test_the_figures_say_what_is_kept_in_what(dense: Bench) -> None:
    plain, _ = dense.build(kv_bytes=1 << 20)
    small, _ = dense.build(kv_bytes=1 << 20, quantization="int4", kv_dtype="int8")
    assert (plain.info.quantization, plain.info.kv_dtype) == (None, None)
    assert (small.info.quantization, small.info.kv_dtype) == ("int4", "int8")
    assert small.info.memory_bytes["weights"] < 0.5 * plain.info.memory_bytes["weights"]
    assert small.memory.num_blocks > 3 * plain.memory.num_blocks
    kv = small.engine._runner._kv
    assert sum(t.nbytes for t in kv.tensors()) == small.memory.kv_bytes <= 1 << 20
    for built in (plain, small):
        built.tiers.close()


def test_a_width_that_has_no_group_is_named(
    moe: Bench, create_bench: Callable[..., Bench], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"quantization='int4'.*moe_intermediate_size=48"):
        moe.build(quantization="int4")
    config = Qwen3Config(
        vocab_size=320, hidden_size=40, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32,
    )  # fmt: skip
    model: PreTrainedModel = Qwen3ForCausalLM(config)
    bench = create_bench(tmp_path, model, {})
    with pytest.raises(ValueError, match=r"quantization='int4'.*hidden_size=40"):
        bench.build(quantization="int4")


@pytest.mark.parametrize(("key", "value"), [("quantization", "int3"), ("kv_dtype", "int4")])
def test_an_unknown_format_is_named(key: str, value: str) -> None:
    options: dict[str, Any] = {key: value}
    with pytest.raises(ValueError, match=f"{key} must be .* not '{value}'"):
        EngineConfig(Path("base"), Path("adapters"), **options)
