"""A checkpoint is read whole and to the letter, in all its spellings on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from weft.engine.model.config import ModelConfig, create_model_config, read_hf_config
from weft.engine.model.weights import ModelWeights, load_weights
from weft_adapters.families import FAMILIES
from weft_kernels.backend import Backend
from weft_kernels.moe import ExpertWeights, QuantizedExperts

if TYPE_CHECKING:
    from tests.bench import Bench

Tensors = dict[str, Tensor]


def tensors_of(bench: Bench) -> Tensors:
    return load_file(bench.base_dir / "model.safetensors")


def config_of(bench: Bench) -> ModelConfig:
    return create_model_config(read_hf_config(bench.base_dir))


def load(folder: Path, config: ModelConfig, dtype: torch.dtype = torch.float32) -> ModelWeights:
    return load_weights(folder, config, dtype, torch.device("cpu"), Backend())


def save(folder: Path, tensors: Tensors, name: str = "model.safetensors") -> Path:
    folder.mkdir(exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name)
    return folder


def flat(weights: ModelWeights) -> Iterator[Tensor]:
    yield from (weights.embed_VH, weights.norm, weights.head.dense())
    for layer in weights.layers:
        yield from (
            layer.input_norm,
            layer.qkv.dense(),
            layer.o.dense(),
        )
        some = (layer.q_norm, layer.k_norm, layer.qkv_bias, layer.o_bias)
        yield from (tensor for tensor in some if tensor is not None)
        yield layer.post_norm
        assert not isinstance(layer.mlp, QuantizedExperts)
        if isinstance(layer.mlp, ExpertWeights):
            yield from (layer.mlp.router_HE, layer.mlp.gate_up_EHF, layer.mlp.down_EFH)
        else:
            yield from (layer.mlp.gate_up.dense(), layer.mlp.down.dense())
        if layer.shared is not None:
            shared = layer.shared
            linears = (shared.mlp.gate_up, shared.mlp.down, shared.gate)
            yield from (linear.dense() for linear in linears)


def assert_same(got: ModelWeights, want: ModelWeights) -> None:
    pairs = list(zip(flat(got), flat(want), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)


def fused(tensors: Tensors, num_experts: int) -> Tensors:
    """Expert parameters as transformers 5 holds them: gate_up `[E, 2 F, H]`, down `[E, H, F]`."""
    out = {key: tensor for key, tensor in tensors.items() if ".experts." not in key}
    prefixes = {key.split(".experts.")[0] + ".experts" for key in tensors if ".experts." in key}
    assert prefixes
    for prefix in prefixes:
        gate, up, down = (
            torch.stack([tensors[f"{prefix}.{e}.{name}_proj.weight"] for e in range(num_experts)])
            for name in ("gate", "up", "down")
        )
        out[f"{prefix}.gate_up_proj"] = torch.cat((gate, up), dim=1)
        out[f"{prefix}.down_proj"] = down
    return out


def test_matrices_lie_in_out_and_side_by_side(dense: Bench) -> None:
    tensors, weights = tensors_of(dense), load(dense.base_dir, config_of(dense))
    layer = weights.layers[1]
    prefix = "model.layers.1"
    qkv = [tensors[f"{prefix}.self_attn.{n}_proj.weight"].T for n in "qkv"]
    assert torch.equal(layer.qkv.dense(), torch.cat(qkv, dim=1))
    assert not isinstance(layer.mlp, ExpertWeights | QuantizedExperts)
    gate_up = [tensors[f"{prefix}.mlp.{n}_proj.weight"].T for n in ("gate", "up")]
    assert torch.equal(layer.mlp.gate_up.dense(), torch.cat(gate_up, dim=1))
    assert torch.equal(weights.head.dense(), weights.embed_VH.T), "the head is tied"


def test_progress_is_told_layer_by_layer(dense: Bench) -> None:
    seen: list[int] = []
    load_weights(
        dense.base_dir, config_of(dense), torch.float32, torch.device("cpu"), Backend(), seen.append
    )
    assert seen == [0, 1, 2]


def test_weights_are_read_in_the_dtype_asked_for(dense: Bench) -> None:
    weights = load(dense.base_dir, config_of(dense), torch.bfloat16)
    assert {tensor.dtype for tensor in flat(weights)} == {torch.bfloat16}


@pytest.mark.parametrize(
    "key",
    [
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.2.self_attn.k_norm.weight",
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
    ],
)
def test_a_missing_tensor_is_named(dense: Bench, tmp_path: Path, key: str) -> None:
    tensors = tensors_of(dense)
    del tensors[key]
    with pytest.raises(ValueError, match=f"no tensor '{key}'"):
        load(save(tmp_path, tensors), config_of(dense))


def test_a_missing_expert_is_named(moe: Bench, tmp_path: Path) -> None:
    tensors, key = tensors_of(moe), "model.layers.2.mlp.experts.11.down_proj.weight"
    del tensors[key]
    with pytest.raises(ValueError, match=f"no tensor '{key}'"):
        load(save(tmp_path, tensors), config_of(moe))


@pytest.mark.parametrize(
    "key",
    [
        "model.layers.3.self_attn.q_proj.weight",  # a layer too many
        "model.layers.0.self_attn.q_proj.bias",  # the config says that there is none
        "model.layers.0.self_attn.q_proj.weight_scale",
    ],
)
def test_a_left_over_tensor_is_named(dense: Bench, tmp_path: Path, key: str) -> None:
    tensors = tensors_of(dense) | {key: torch.zeros(4)}
    with pytest.raises(ValueError, match=f"does not use: .*'{key}'"):
        load(save(tmp_path, tensors), config_of(dense))


def test_a_tied_head_may_be_written_again_and_an_own_head_must_be_there(
    dense: Bench, moe: Bench, tmp_path: Path
) -> None:
    tensors = tensors_of(dense)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    want = load(dense.base_dir, config_of(dense))
    assert_same(load(save(tmp_path / "tied", tensors), config_of(dense)), want)
    tensors = tensors_of(moe)
    del tensors["lm_head.weight"]
    with pytest.raises(ValueError, match=r"no tensor 'lm_head\.weight'"):
        load(save(tmp_path / "own", tensors), config_of(moe))


@pytest.mark.parametrize(
    "key", ["model.layers.0.self_attn.v_proj.weight", "model.layers.1.mlp.down_proj.weight"]
)
def test_a_misshapen_tensor_is_named(dense: Bench, tmp_path: Path, key: str) -> None:
    tensors = tensors_of(dense)
    tensors[key] = tensors[key].T
    with pytest.raises(ValueError, match=f"{key} has shape"):
        load(save(tmp_path, tensors), config_of(dense))


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_a_sharded_checkpoint_is_the_same(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bench: Bench = request.getfixturevalue(name)
    tensors = tensors_of(bench)
    weight_map: dict[str, str] = {}
    keys = sorted(tensors)
    for i in range(3):
        shard = f"model-{i + 1:05}-of-00003.safetensors"
        save(tmp_path, {key: tensors[key] for key in keys[i::3]}, shard)
        weight_map |= dict.fromkeys(keys[i::3], shard)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = config_of(bench)
    assert_same(load(tmp_path, config), load(bench.base_dir, config))


def test_fused_and_single_experts_are_the_same(moe: Bench, tmp_path: Path) -> None:
    tensors, config = tensors_of(moe), config_of(moe)
    together = save(tmp_path, fused(tensors, config.num_experts))
    assert_same(load(together, config), load(moe.base_dir, config))


@pytest.mark.parametrize("model_type", [t for t, f in FAMILIES.items() if f.sparse != "none"])
def test_experts_of_each_family_are_read_in_both_spellings(model_type: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        model_type, vocab_size=64, hidden_size=32, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, num_experts=4, num_local_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=24, shared_expert_intermediate_size=40,
        max_position_embeddings=64,
    )  # fmt: skip
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(config)
    model.save_pretrained(tmp_path / "modules")
    names = set(load_file(tmp_path / "modules" / "model.safetensors"))
    assert not any(name.endswith("gate_up_proj") for name in names)
    fused = save(tmp_path / "parameters", model.state_dict())
    raw = read_hf_config(tmp_path / "modules")
    read = create_model_config({k: v for k, v in raw.items() if FAMILIES[model_type].knows(k)})
    assert_same(load(fused, read), load(tmp_path / "modules", read))


def test_rotary_buffers_of_old_checkpoints_are_passed_over(dense: Bench, tmp_path: Path) -> None:
    tensors = tensors_of(dense)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(16)
    config = config_of(dense)
    assert_same(load(save(tmp_path, tensors), config), load(dense.base_dir, config))


def test_fused_and_single_experts_at_once_are_refused(moe: Bench, tmp_path: Path) -> None:
    tensors, config = tensors_of(moe), config_of(moe)
    both = save(tmp_path, tensors | fused(tensors, config.num_experts))
    with pytest.raises(ValueError, match="does not use"):
        load(both, config)


def test_a_folder_without_weights_is_refused(dense: Bench, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no model\.safetensors"):
        load(tmp_path, config_of(dense))
