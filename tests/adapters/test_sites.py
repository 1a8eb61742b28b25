"""The sites of a base, from its config alone."""

from __future__ import annotations

import random

import pytest

from weft_adapters.sites import BaseSpec, Site

CONFIG: dict[str, object] = {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 4,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_experts": 4,
    "decoder_sparse_step": 2,
    "mlp_only_layers": [3],
}


def test_a_layer_is_moe_by_step_and_exceptions() -> None:
    base = BaseSpec.from_config(CONFIG, "d")
    assert [base.is_moe(layer) for layer in range(4)] == [False, True, False, False]
    assert base.num_experts == 4


def test_transformers_5_writes_num_local_experts() -> None:
    renamed = {key: value for key, value in CONFIG.items() if key != "num_experts"}
    assert BaseSpec.from_config({**renamed, "num_local_experts": 4}, "d").num_experts == 4


def test_shapes(moe: BaseSpec) -> None:
    assert moe.shape(Site(0, "q_proj")) == (32, 64)
    assert moe.shape(Site(0, "k_proj")) == (32, 32)
    assert moe.shape(Site(0, "o_proj")) == (64, 32)
    assert moe.shape(Site(0, "gate_proj")) == (32, 48)
    assert moe.shape(Site(1, "up_proj", 3)) == (32, 24)
    assert moe.shape(Site(1, "down_proj", 0)) == (24, 32)
    assert moe.shape(Site(1, "router")) == (32, 4)
    assert moe.shapes() == {moe.shape(site) for site in moe.sites()}


@pytest.mark.parametrize(
    "site",
    [
        Site(2, "q_proj"),
        Site(-1, "q_proj"),
        Site(0, "lm_head"),
        Site(0, "q_proj", 0),
        Site(0, "up_proj", 0),
        Site(1, "up_proj"),
        Site(1, "up_proj", 4),
        Site(0, "router"),
        Site(1, "router", 0),
    ],
)
def test_no_such_site(moe: BaseSpec, site: Site) -> None:
    assert not moe.has(site)
    with pytest.raises(KeyError):
        moe.shape(site)


def test_sites_come_in_the_order_in_which_they_sort(moe: BaseSpec) -> None:
    sites = list(moe.sites())
    shuffled = random.Random(0).sample(sites, len(sites))
    assert sorted(shuffled) == sites
    assert len(set(sites)) == 7 + 5 + 4 * 3


SHARED = {
    **CONFIG, "model_type": "qwen2_moe", "num_key_value_heads": 2,
    "shared_expert_intermediate_size": 40,
}  # fmt: skip


def test_a_shared_expert_has_sites_of_its_own() -> None:
    base = BaseSpec.from_config(SHARED, "d")
    assert base.shape(Site(1, "shared_gate_proj")) == (32, 40)
    assert base.shape(Site(1, "shared_up_proj")) == (32, 40)
    assert base.shape(Site(1, "shared_down_proj")) == (40, 32)
    assert base.shape(Site(1, "shared_expert_gate")) == (32, 1)
    assert not base.has(Site(0, "shared_up_proj")), "layer 0 is dense"
    assert not base.has(Site(1, "shared_up_proj", 0))
    sites = list(base.sites())
    assert sites == sorted(sites)
    assert [site.projection for site in sites if site.layer == 1][:10] == [
        "q_proj", "k_proj", "v_proj", "o_proj",
        "shared_gate_proj", "shared_up_proj", "shared_down_proj", "shared_expert_gate",
        "router", "gate_proj",
    ]  # fmt: skip
    assert base.shapes() == {base.shape(site) for site in sites}


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "mixtral", "olmoe"])
def test_a_base_without_a_shared_expert_has_no_such_sites(model_type: str) -> None:
    base = BaseSpec.from_config({**SHARED, "model_type": model_type}, "d")
    assert not any(site.projection.startswith("shared") for site in base.sites())
    is_sparse = model_type in ("mixtral", "olmoe")
    assert base.num_experts == (4 if is_sparse else 0)
    assert base.moe_layers == (set(range(4)) if is_sparse else set())
    assert base.moe_intermediate_size == (48 if is_sparse else 0)


def test_an_unknown_model_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="gpt_neox"):
        BaseSpec.from_config({**CONFIG, "model_type": "gpt_neox"}, "d")


@pytest.mark.parametrize("value", [0, -1, True, "4", 4.0, None])
def test_a_bad_size_is_refused_by_name(value: object) -> None:
    with pytest.raises(ValueError, match="hidden_size"):
        BaseSpec.from_config({**CONFIG, "hidden_size": value}, "d")
