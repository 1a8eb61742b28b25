"""What a config names, as PEFT itself matches it."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.tuners_utils import check_target_module_exists

from weft_adapters.expressions import ExpressionError
from weft_adapters.sites import BaseSpec, Site
from weft_adapters.targets import Differences, Targets, compare, read_targets

NAMES = [
    "lm_head",
    "model",
    "model.embed_tokens",
    *(
        f"model.layers.{layer}.{name}"
        for layer in (0, 1, 2, 10, 21)
        for name in (
            "self_attn",
            "self_attn.q_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.down_proj",
            "mlp.gate",
            "mlp.experts.1.gate_proj",
            "mlp.experts.10.down_proj",
            "mlp.shared_expert.up_proj",
        )
    ),
]
# as exporters write it for every text layer of a larger model
LONG_EXPRESSION = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?"
    r"(?:k_proj|v_proj|q_proj|o_proj|gate_proj|up_proj|down_proj).*?)|"
    r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\."
    r"(?:(?:k_proj|v_proj|q_proj|o_proj|gate_proj|up_proj|down_proj)))"
)
CONFIGS: list[dict[str, Any]] = [
    {"target_modules": ["q_proj", "mlp.down_proj", "lm_head"]},
    {"target_modules": ["_proj", "proj", "self_attn", "model"]},
    {"target_modules": []},
    {"target_modules": r".*layers\.1\..*(q|up)_proj"},
    {"target_modules": r"^(?!.*layers\.1).*(?:gate|down)_proj$"},
    {"target_modules": r"(?=model)(?!.*experts)[a-z._]+\d.+_proj"},
    {"target_modules": LONG_EXPRESSION},
    {"target_modules": ["q_proj"], "exclude_modules": ["layers.1.self_attn.q_proj"]},
    {"target_modules": r".*_proj", "exclude_modules": r".*\.(0|2)\..*"},
    {"target_modules": ["q_proj"], "layers_to_transform": 1},
    {"target_modules": ["down_proj", "gate"], "layers_to_transform": [0, 10]},
    {"target_modules": ["gate_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    {"target_modules": ["gate_proj"], "layers_to_transform": [1], "layers_pattern": "experts"},
    {
        "target_modules": ["gate_proj"],
        "layers_to_transform": [1],
        "layers_pattern": ["h", "layers"],
    },
    {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["model.layers"]},
    {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": []},
    {"target_modules": ["q_proj"], "layers_to_transform": []},
    {"target_modules": ["model.layers.0.self_attn.q_proj"], "layers_to_transform": [1]},
]


def pefts(raw: dict[str, Any]) -> Any:
    empty = dict.fromkeys(
        ("exclude_modules", "modules_to_save", "target_parameters", "layers_to_transform",
         "layers_pattern")
    )  # fmt: skip
    return SimpleNamespace(**empty | raw)


@pytest.mark.parametrize("raw", CONFIGS, ids=str)
def test_a_module_is_named_where_peft_says_so(raw: dict[str, Any]) -> None:
    targets = read_targets(raw)
    for name in NAMES:
        assert targets.has_module(name) == bool(check_target_module_exists(pefts(raw), name)), name


@given(expression=st.text(alphabet=r"amodel.layers_10{},()[]|*+?^$\bdw!=:", max_size=25))
@settings(max_examples=300, deadline=None)
def test_any_expression_is_refused_or_means_what_it_means_to_peft(expression: str) -> None:
    raw = {"target_modules": expression}
    try:
        targets = read_targets(raw)
    except ValueError:
        return
    for name in NAMES[:8]:
        assert targets.has_module(name) == bool(check_target_module_exists(pefts(raw), name))


def test_an_expression_looks_ahead_four_times_at_most() -> None:
    assert read_targets({"target_modules": "(?=m)" * 4 + ".*"}).has_module("model")
    with pytest.raises(ValueError, match="too often"):
        read_targets({"target_modules": "(?=m)" * 5 + ".*"})


def create_base(num_layers: int = 2, num_experts: int | None = 4, **keys: Any) -> BaseSpec:
    sizes = {
        "model_type": "qwen3_moe", "num_hidden_layers": num_layers, "hidden_size": 32,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "intermediate_size": 48, "moe_intermediate_size": 24, "num_experts": num_experts,
        "mlp_only_layers": [0],
    }  # fmt: skip
    return BaseSpec.from_config(sizes | keys, "sha256:" + "1" * 64)


def named_sites(base: BaseSpec, **raw: Any) -> set[Site]:
    return set(compare(read_targets(raw), (), base).missing)


def test_modules_name_their_sites() -> None:
    base = create_base()
    assert named_sites(base, target_modules="all-linear") == set(base.sites())
    assert named_sites(base, target_modules=["q_proj", "gate"]) == {
        Site(0, "q_proj"), Site(1, "q_proj"), Site(1, "router")
    }  # fmt: skip
    assert named_sites(base, target_modules=["gate_proj"]) == {
        Site(0, "gate_proj"), *(Site(1, "gate_proj", expert) for expert in range(4))
    }  # fmt: skip
    assert named_sites(base, target_modules=r".*experts\.2\.up_proj") == {Site(1, "up_proj", 2)}


def test_parameters_name_the_sites_that_they_are_made_of() -> None:
    base = create_base()
    gate_up = {Site(1, f"{name}_proj", e) for e in range(4) for name in ("gate", "up")}
    parameters = ["mlp.experts.gate_up_proj", "gate.weight"]
    assert named_sites(base, target_parameters=parameters) == gate_up | {Site(1, "router")}
    mixtral = create_base(model_type="mixtral", num_local_experts=4, num_experts=None)
    (router, *_) = sorted(named_sites(mixtral, target_parameters=["gate.weight"]))
    assert router == Site(0, "router")
    for name in ("gate", "block_sparse_moe.gate", "mlp.gate"):
        assert named_sites(mixtral, target_modules=[name]) == {
            Site(0, "router"), Site(1, "router")
        }  # fmt: skip
    assert named_sites(mixtral, target_modules=["experts.3.w3"]) == {
        Site(0, "up_proj", 3), Site(1, "up_proj", 3)
    }  # fmt: skip


def test_sites_of_a_shared_expert_are_named() -> None:
    base = create_base(model_type="qwen2_moe", shared_expert_intermediate_size=40)
    assert Site(1, "shared_up_proj") in named_sites(base, target_modules=["up_proj"])
    assert named_sites(base, target_modules=["shared_expert_gate"]) == {
        Site(1, "shared_expert_gate")
    }


def test_what_is_named_and_what_is_there_are_compared() -> None:
    targets = read_targets({"target_modules": ["q_proj", "o_proj"]})
    found = compare(targets, [Site(0, "q_proj"), Site(0, "v_proj")], create_base())
    assert found.missing == (Site(0, "o_proj"), Site(1, "q_proj"), Site(1, "o_proj"))
    assert found.unnamed == (Site(0, "v_proj"),)


def test_a_config_that_names_nothing_says_nothing() -> None:
    assert compare(Targets(), [Site(0, "q_proj")], create_base()) == Differences()


def test_names_of_a_large_base_are_compared_in_bounded_time() -> None:
    base = create_base(num_layers=48, num_experts=128)
    start_s = time.perf_counter()
    compare(read_targets({"target_modules": LONG_EXPRESSION}), (), base)
    hostile = read_targets({"target_modules": r"(?:.*\b.{1,60}){20}5.*9"})
    with pytest.raises(ExpressionError, match="too many steps"):
        compare(hostile, (), base)
    assert time.perf_counter() - start_s < 5
