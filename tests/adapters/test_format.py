"""Adapters that PEFT itself wrote: the weights that we serve are the weights that PEFT merges.

Legend: E experts, O out, I in.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from weft_adapters.config import parse_config
from weft_adapters.format import load, resolve
from weft_adapters.header import read_header_path
from weft_adapters.site_weights import SiteWeights
from weft_adapters.sites import BaseSpec, Site
from weft_adapters.tensors import TensorFile

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
PREFIX = "base_model.model.model.layers"
SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
WriteAdapter = Callable[..., tuple[bytes, Path]]
Factors = Callable[..., dict[str, NDArray[Any]]]


def load_adapter(config_bytes: bytes, path: Path, base: BaseSpec) -> dict[Site, SiteWeights]:
    header = read_header_path(path)
    plan = resolve(parse_config(config_bytes), header, base)
    assert not plan.faults, plan.faults
    with TensorFile(path, header) as file:
        weights = load(plan, file, base)
    assert {site: w.rank for site, w in weights.items()} == plan.sites(base)
    return weights


def deltas_of(weights: dict[Site, SiteWeights]) -> dict[Site, NDArray[Any]]:
    return {site: w.scale * (w.b.T @ w.a) for site, w in weights.items()}


def export(model: Any, folder: Path, **keys: Any) -> tuple[Any, bytes, Path]:
    """A PEFT model with random factors, and the two files that PEFT saves of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of rank_pattern together with rsLoRA
        peft_model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **keys))
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter)
        peft_model.save_pretrained(str(folder))
    config = (folder / "adapter_config.json").read_bytes()
    return peft_model, config, folder / "adapter_model.safetensors"


def peft_deltas(peft_model: Any) -> dict[Site, NDArray[Any]]:
    """What PEFT would add to the weight of each site."""
    found: dict[Site, NDArray[Any]] = {}
    for name, module in peft_model.base_model.model.named_modules():
        if not hasattr(module, "get_delta_weight"):
            continue
        layer = int(name.split(".")[2])
        delta = module.get_delta_weight("default").detach().numpy()
        parameter = getattr(module, "parameter_name", "weight")
        if parameter == "weight":
            found[Site(layer, name.split(".")[-1])] = delta
            continue
        for expert, delta_OI in enumerate(delta):
            halves = np.split(delta_OI, 2) if parameter == "gate_up_proj" else [delta_OI]
            names = MLP[:2] if parameter == "gate_up_proj" else MLP[2:]
            for projection, half in zip(names, halves, strict=True):
                found[Site(layer, projection, expert)] = half
    return found


def assert_same(ours: dict[Site, NDArray[Any]], theirs: dict[Site, NDArray[Any]]) -> None:
    assert set(ours) == set(theirs)
    for site, delta in theirs.items():
        np.testing.assert_allclose(ours[site], delta, rtol=1e-4, atol=1e-4, err_msg=str(site))


def dense_model() -> Any:
    return Qwen3ForCausalLM(Qwen3Config(**SIZES))


def moe_model() -> Any:
    config = Qwen3MoeConfig(
        **SIZES,
        moe_intermediate_size=24,
        num_experts=4,
        num_experts_per_tok=2,
        decoder_sparse_step=1,
        mlp_only_layers=[0],
    )
    return Qwen3MoeForCausalLM(config)


@pytest.mark.parametrize(
    "keys",
    [
        {"target_modules": ATTENTION},
        {"target_modules": MLP, "lora_alpha": 3},
        {"target_modules": "all-linear", "r": 5, "use_rslora": True},
        {
            "target_modules": r".*layers\.1\..*(q|up)_proj",
            "rank_pattern": {"q_proj": 3},
            "alpha_pattern": {"1.mlp.up_proj": 7},
        },
        {
            "target_modules": ATTENTION + MLP,
            "rank_pattern": {"layers.0.self_attn.q_proj": 2, "q_proj": 3, r"layers\.1\.mlp\..*": 9},
            "alpha_pattern": {".*_proj": 5},
            "use_rslora": True,
        },
    ],
)
def test_dense_adapters(dense: BaseSpec, tmp_path: Path, keys: dict[str, Any]) -> None:
    model, config, path = export(dense_model(), tmp_path, **keys)
    assert_same(deltas_of(load_adapter(config, path, dense)), peft_deltas(model))


@pytest.mark.parametrize(
    "keys",
    [
        {"target_modules": ["q_proj"], "target_parameters": [GATE_UP, DOWN]},
        {"target_modules": ["q_proj"], "target_parameters": [DOWN, GATE_UP]},
        {"target_modules": [], "target_parameters": [DOWN]},
        {"target_modules": [], "target_parameters": [GATE_UP]},
        {
            "target_modules": ["o_proj"],
            "target_parameters": [GATE_UP, DOWN],
            "rank_pattern": {"experts.down_proj": 3},
            "alpha_pattern": {"gate_up_proj": 5},
        },
        # transformers 5 turns these into target_parameters, with twice the rank for gate_up
        {"target_modules": MLP, "r": 3},
    ],
)
def test_fused_experts(moe: BaseSpec, tmp_path: Path, keys: dict[str, Any]) -> None:
    model, config, path = export(moe_model(), tmp_path, **keys)
    weights = load_adapter(config, path, moe)
    assert any(site.expert is not None for site in weights)
    assert_same(deltas_of(weights), peft_deltas(model))


def test_the_layout_of_peft_0_18(moe: BaseSpec, write_adapter: WriteAdapter) -> None:
    """`in` and `out` swap their places: delta = einsum("o r e, e r i -> e i o", B, A)."""
    random = np.random.default_rng(0)
    sizes = {"base_layer.": (32, 48), "": (24, 32)}
    tensors, expected = {}, {}
    for place, (num_in, num_out) in sizes.items():
        a = random.standard_normal((4 * 4, num_out)).astype(np.float32)
        b = random.standard_normal((num_in, 4 * 4)).astype(np.float32)
        tensors[f"{PREFIX}.1.mlp.experts.{place}lora_A.weight"] = a
        tensors[f"{PREFIX}.1.mlp.experts.{place}lora_B.weight"] = b
        delta = 2.0 * np.einsum("ore,eri->eio", b.reshape(num_in, 4, 4), a.reshape(4, 4, num_out))
        for expert in range(4):
            if place:
                expected[Site(1, "gate_proj", expert)] = delta[expert, :24]
                expected[Site(1, "up_proj", expert)] = delta[expert, 24:]
            else:
                expected[Site(1, "down_proj", expert)] = delta[expert]
    for version in ("0.18.0", "0.17.1", None):
        config, path = write_adapter(tensors, peft_version=version)
        assert_same(deltas_of(load_adapter(config, path, moe)), expected)


def test_modules_per_expert(moe: BaseSpec, write_adapter: WriteAdapter, factors: Factors) -> None:
    tensors = factors("1.mlp.experts.2.gate_proj", 32, 24) | factors(
        "1.mlp.experts.0.down_proj", 24, 32, seed=1, rank=6
    )
    config, path = write_adapter(tensors, rank_pattern={"experts.0.down_proj": 6})
    expected = {}
    for site, rank in ((Site(1, "gate_proj", 2), 4), (Site(1, "down_proj", 0), 6)):
        name = f"{PREFIX}.1.mlp.experts.{site.expert}.{site.projection}"
        a, b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
        expected[site] = 8 / rank * (b @ a)
    assert_same(deltas_of(load_adapter(config, path, moe)), expected)


def mixtral() -> BaseSpec:
    config = {**SIZES, "model_type": "mixtral", "num_local_experts": 4}
    return BaseSpec.from_config(config, "sha256:" + "4" * 64)


def test_modules_per_expert_of_mixtral(write_adapter: WriteAdapter, factors: Factors) -> None:
    """As PEFT wrote them on transformers 4: w1 is gate, w3 up, w2 down."""
    expected: dict[Site, NDArray[Any]] = {}
    tensors: dict[str, NDArray[Any]] = {}
    for seed, (name, projection) in enumerate(
        [("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")]
    ):
        num_in, num_out = (48, 32) if name == "w2" else (32, 48)
        module = f"1.block_sparse_moe.experts.2.{name}"
        tensors |= factors(module, num_in, num_out, seed=seed, rank=2 if name == "w3" else 4)
        a, b = (tensors[f"{PREFIX}.{module}.lora_{role}.weight"] for role in "AB")
        expected[Site(1, projection, 2)] = 8 / len(a) * (b @ a)
    config, path = write_adapter(tensors, rank_pattern={"w3": 2})
    assert_same(deltas_of(load_adapter(config, path, mixtral())), expected)


def qwen2_moe() -> BaseSpec:
    config = {
        **SIZES, "model_type": "qwen2_moe", "moe_intermediate_size": 24, "num_experts": 4,
        "shared_expert_intermediate_size": 40, "mlp_only_layers": [0],
    }  # fmt: skip
    return BaseSpec.from_config(config, "sha256:" + "5" * 64)


def test_modules_of_a_shared_expert(write_adapter: WriteAdapter, factors: Factors) -> None:
    shared = "1.mlp.shared_expert"
    tensors = (
        factors(f"{shared}.gate_proj", 32, 40)
        | factors(f"{shared}.up_proj", 32, 40)
        | factors(f"{shared}.down_proj", 40, 32)
        | factors(f"{shared}_gate", 32, 1)
    )
    config, path = write_adapter(tensors, alpha_pattern={"shared_expert.up_proj": 4})
    weights = load_adapter(config, path, qwen2_moe())
    assert {(site.projection, w.scale) for site, w in weights.items()} == {
        ("shared_gate_proj", 2.0),
        ("shared_up_proj", 1.0),
        ("shared_down_proj", 2.0),
        ("shared_expert_gate", 2.0),
    }
    down = weights[Site(1, "shared_down_proj")]
    np.testing.assert_array_equal(down.a, tensors[f"{PREFIX}.{shared}.down_proj.lora_A.weight"])


@pytest.mark.parametrize(
    ("base", "module", "num_in", "num_out"),
    [
        (mixtral(), "0.mlp.experts.0.gate_proj", 32, 48),
        (mixtral(), "0.block_sparse_moe.experts.0.gate_proj", 32, 48),
        (mixtral(), "0.block_sparse_moe.experts.4.w1", 32, 48),
        (mixtral(), "0.block_sparse_moe.w1", 32, 48),
        (mixtral(), "0.mlp.up_proj", 32, 48),
        (qwen2_moe(), "1.block_sparse_moe.experts.0.w1", 32, 24),
        (qwen2_moe(), "1.mlp.experts.0.w1", 32, 24),
        (qwen2_moe(), "0.mlp.shared_expert.up_proj", 32, 40),
        (qwen2_moe(), "1.mlp.shared_expert.q_proj", 32, 64),
        (qwen2_moe(), "1.mlp.shared_expert.expert_gate", 32, 1),
        (qwen2_moe(), "1.mlp.shared_up_proj", 32, 40),
        (qwen2_moe(), "1.self_attn.shared_expert.up_proj", 32, 40),
        (qwen2_moe(), "1.self_attn.experts.0.up_proj", 32, 24),
    ],
)
def test_a_module_that_the_family_does_not_have(
    base: BaseSpec,
    write_adapter: WriteAdapter,
    factors: Factors,
    codes_of: Callable[..., set[str]],
    module: str,
    num_in: int,
    num_out: int,
) -> None:
    assert codes_of(*write_adapter(factors(module, num_in, num_out)), base) == {"unmapped_tensor"}


@pytest.mark.parametrize(
    ("base", "module"), [(mixtral(), "0.block_sparse_moe.gate"), (qwen2_moe(), "1.mlp.gate")]
)
def test_an_adapter_of_the_router_is_refused_by_name(
    base: BaseSpec, write_adapter: WriteAdapter, factors: Factors, module: str
) -> None:
    config, path = write_adapter(factors(module, 32, 4))
    faults = resolve(parse_config(config), read_header_path(path), base).faults
    assert [f.code for f in faults] == ["unmapped_tensor"] * 2
    assert all("adapts the router, which is not served" in f.message for f in faults)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_formats_are_widened_exactly(
    dense: BaseSpec, tmp_path: Path, write_adapter: WriteAdapter, dtype: str
) -> None:
    from safetensors.torch import save_file

    name = f"{PREFIX}.0.self_attn.q_proj.lora"
    tensors = {
        f"{name}_A.weight": torch.randn(4, 32).to(getattr(torch, dtype)),
        f"{name}_B.weight": torch.randn(64, 4).to(getattr(torch, dtype)),
    }
    path = tmp_path / "half.safetensors"
    save_file(tensors, path)
    config, _ = write_adapter({})
    weights = load_adapter(config, path, dense)[Site(0, "q_proj")]
    np.testing.assert_array_equal(weights.a, tensors[f"{name}_A.weight"].float().numpy())
    np.testing.assert_array_equal(weights.b, tensors[f"{name}_B.weight"].float().numpy().T)
    assert weights.a.dtype == weights.b.dtype == np.float32


def square_moe() -> BaseSpec:
    """hidden == 2 x expert width: the two layouts of gate_up cannot be told apart by shape."""
    config = {
        **SIZES,
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 16,
        "num_experts": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    return BaseSpec.from_config(config, "sha256:" + "2" * 64)


def test_a_layout_that_nothing_tells_apart_is_refused(
    write_adapter: WriteAdapter, codes_of: Callable[..., set[str]]
) -> None:
    tensors = {
        f"{PREFIX}.0.mlp.experts.lora_A.weight": np.ones((8, 32), np.float32),
        f"{PREFIX}.0.mlp.experts.lora_B.weight": np.ones((32, 8), np.float32),
    }
    assert codes_of(*write_adapter(tensors, peft_version=None), square_moe()) == {
        "ambiguous_layout"
    }
    assert not codes_of(*write_adapter(tensors, peft_version="0.18.0"), square_moe())
    assert not codes_of(*write_adapter(tensors, peft_version="0.19.0"), square_moe())


@pytest.mark.parametrize(
    ("module", "num_in", "num_out", "code"),
    [
        ("2.self_attn.q_proj", 32, 64, "unmapped_tensor"),
        ("00.self_attn.q_proj", 32, 64, "unmapped_tensor"),
        ("٠.self_attn.q_proj", 32, 64, "unmapped_tensor"),
        ("0.self_attn.up_proj", 32, 48, "unmapped_tensor"),
        ("0.mlp.q_proj", 32, 64, "unmapped_tensor"),
        ("0.mlp.gate", 32, 4, "unmapped_tensor"),
        ("0.mlp.experts.0.up_proj", 32, 24, "unmapped_tensor"),
        ("1.mlp.up_proj", 32, 48, "unmapped_tensor"),
        ("1.mlp.experts.4.up_proj", 32, 24, "unmapped_tensor"),
        ("0.self_attn.q_proj", 64, 64, "wrong_shape"),
        ("0.self_attn.q_proj", 32, 65, "wrong_shape"),
    ],
)
def test_a_tensor_of_no_site(
    moe: BaseSpec,
    write_adapter: WriteAdapter,
    factors: Factors,
    codes_of: Callable[..., set[str]],
    module: str,
    num_in: int,
    num_out: int,
    code: str,
) -> None:
    assert code in codes_of(*write_adapter(factors(module, num_in, num_out)), moe)


def test_a_wrong_rank(
    dense: BaseSpec,
    write_adapter: WriteAdapter,
    factors: Factors,
    codes_of: Callable[..., set[str]],
) -> None:
    tensors = factors("0.self_attn.q_proj", 32, 64, rank=5)
    assert codes_of(*write_adapter(tensors), dense) == {"wrong_rank"}


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        f"{PREFIX}.0.self_attn.q_proj.lora_A.default.weight",
        f"{PREFIX}.0.self_attn.q_proj.lora_magnitude_vector",
        f"{PREFIX}.0.self_attn.q_proj.lora_A.bias",
        f"{PREFIX}.0.self_attn.q_proj.weight",
        "base_model.model.lm_head.weight",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        f"{PREFIX}.0.self_attn.q_proj.lora_A.weight\n",
    ],
)
def test_every_tensor_must_be_used(
    dense: BaseSpec,
    write_adapter: WriteAdapter,
    factors: Factors,
    codes_of: Callable[..., set[str]],
    name: str,
) -> None:
    tensors = factors("0.self_attn.k_proj", 32, 32) | {name: np.ones((4, 32), np.float32)}
    (code,) = codes_of(*write_adapter(tensors), dense)
    assert code in ("unmapped_tensor", "missing_factor")


def test_a_factor_without_its_pair(
    dense: BaseSpec,
    write_adapter: WriteAdapter,
    factors: Factors,
    codes_of: Callable[..., set[str]],
) -> None:
    tensors = factors("0.self_attn.q_proj", 32, 64)
    del tensors[f"{PREFIX}.0.self_attn.q_proj.lora_B.weight"]
    assert codes_of(*write_adapter(tensors), dense) == {"missing_factor"}


def test_an_expert_adapted_twice(
    moe: BaseSpec,
    write_adapter: WriteAdapter,
    factors: Factors,
    codes_of: Callable[..., set[str]],
) -> None:
    tensors = factors("1.mlp.experts.0.down_proj", 24, 32) | {
        f"{PREFIX}.1.mlp.experts.lora_A.weight": np.ones((16, 24), np.float32),
        f"{PREFIX}.1.mlp.experts.lora_B.weight": np.ones((32, 16), np.float32),
    }
    assert codes_of(*write_adapter(tensors), moe) == {"duplicate_site"}


def test_no_tensors_at_all(
    dense: BaseSpec, write_adapter: WriteAdapter, codes_of: Callable[..., set[str]]
) -> None:
    assert codes_of(*write_adapter({}), dense) == {"no_tensors"}


def test_plans_are_the_same_for_any_order_of_keys(
    dense: BaseSpec, write_adapter: WriteAdapter, factors: Factors
) -> None:
    config, path = write_adapter(factors("0.self_attn.q_proj", 32, 64))
    reordered = json.dumps(dict(reversed(json.loads(config).items()))).encode()
    header = read_header_path(path)
    assert resolve(parse_config(config), header, dense) == resolve(
        parse_config(reordered), header, dense
    )
