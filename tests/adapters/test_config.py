"""`adapter_config.json`: what PEFT writes passes, everything unserved is refused by name."""

from __future__ import annotations

import json

import pytest

from weft_adapters.config import MAX_CONFIG_BYTES, AdapterConfig, parse_config
from weft_adapters.faults import AdapterFaultError

PLAIN: dict[str, object] = {"peft_type": "LORA", "r": 8, "lora_alpha": 16}
MODULE = "model.layers.3.self_attn.q_proj"


def parse(**keys: object) -> AdapterConfig:
    return parse_config(json.dumps({**PLAIN, **keys}).encode())


def refused(data: bytes) -> str:
    with pytest.raises(AdapterFaultError) as caught:
        parse_config(data)
    return " ".join(fault.message for fault in caught.value.faults)


def test_a_plain_peft_export_passes() -> None:
    from peft import LoraConfig

    config = LoraConfig(r=4, lora_alpha=32, task_type="CAUSAL_LM", target_modules=["q_proj"])
    exported: dict[str, object] = config.to_dict()  # type: ignore[no-untyped-call]
    exported["target_modules"] = ["q_proj"]  # a set, which save_pretrained writes as a list
    parsed = parse_config(json.dumps(exported).encode())
    assert (parsed.rank, parsed.alpha, parsed.use_rslora) == (4, 32.0, False)
    assert parsed.scale_of(MODULE) == 8.0


def test_scales() -> None:
    assert parse(use_rslora=True).scale_of(MODULE) == pytest.approx(16 / 8**0.5)
    config = parse(rank_pattern={"q_proj": 4}, alpha_pattern={r"layers\.3\..*": 2})
    assert config.rank_of(MODULE) == 4
    assert config.rank_of("model.layers.3.mlp.up_proj") == 8
    assert config.scale_of(MODULE) == 0.5
    assert config.scale_of("model.layers.2.self_attn.q_proj") == 4.0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", "yes"),
        ("lora_bias", True),
        ("bias", "some"),
        ("bias", True),
        ("trainable_token_indices", [1, 2]),
        ("layer_replication", [[0, 2]]),
        ("modules_to_save", ["lm_head", "norm"]),
        ("alora_invocation_tokens", [1]),
        ("use_qalora", True),
        ("use_bdlora", {"nblocks": 2}),
        ("megatron_config", {"a": 1}),
        ("arrow_config", {"a": 1}),
        ("kasa_config", {"a": 1}),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "lora_ga"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "of_tomorrow"),
        ("init_lora_weights", ["gaussian"]),
        ("use_rslora", 1),
        ("use_rslora", "true"),
        ("peft_type", "LOHA"),
        ("init_r", 12),
        ("target_modules", {"q_proj": 1}),
        ("target_modules", [1]),
        ("target_modules", "(a|"),
        ("target_modules", "(?<=x)a"),
        ("target_modules", "a" * 3000),
        ("target_modules", ["a" * 301]),
        ("exclude_modules", 1),
        ("exclude_modules", "*"),
        ("target_parameters", "experts"),
        ("layers_to_transform", "1"),
        ("layers_to_transform", [True]),
        ("peft_type", None),
        ("a_key_of_tomorrow", "on"),
        ("a_key_of_tomorrow", 1),
        ("rank_pattern", []),
        ("rank_pattern", "q_proj"),
        ("rank_pattern", {"(a+)+{9}": 4}),
        ("alpha_pattern", {"q_proj": "4"}),
        ("peft_version", 18),
    ],
)
def test_what_is_not_served_is_refused_by_name(key: str, value: object) -> None:
    assert key in refused(json.dumps({**PLAIN, key: value}).encode()) or key == "alpha_pattern"


@pytest.mark.parametrize("key", ["a_key_of_tomorrow", "layer_replication", "modules_to_save"])
@pytest.mark.parametrize("value", [None, False, [], {}])
def test_a_key_that_is_off_is_no_matter(key: str, value: object) -> None:
    parse(**{key: value})


@pytest.mark.parametrize("rank", [0, -1, 257, 65536, 4.0, "4", True, None, [4], 10**400])
def test_bad_ranks(rank: object) -> None:
    assert "rank" in refused(json.dumps({**PLAIN, "r": rank}).encode())
    assert "rank" in refused(json.dumps({**PLAIN, "rank_pattern": {"q_proj": rank}}).encode())


@pytest.mark.parametrize("alpha", ["8", True, None, [], 1e300, 10**400])
def test_bad_alphas(alpha: object) -> None:
    assert "lora_alpha" in refused(json.dumps({**PLAIN, "lora_alpha": alpha}).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{",
        b'{"peft_type":"LORA","r":8,"lora_alpha":NaN}',
        b'{"peft_type":"LORA","r":8,"lora_alpha":Infinity}',
        b'{"peft_type":"LORA","r":8,"lora_alpha":1e400}',
        b'{"peft_type":"LORA","r":8,"r":16,"lora_alpha":8}',
        b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"a":' * 10_000,
        b'{"r":' + b"9" * 10_000 + b"}",
        b" " * (MAX_CONFIG_BYTES + 1),
    ],
)
def test_hostile_json_is_refused(data: bytes) -> None:
    assert refused(data)


def test_every_fault_is_listed() -> None:
    message = refused(json.dumps({"peft_type": "IA3", "r": 0, "use_dora": 1}).encode())
    assert all(word in message for word in ("peft_type", "rank", "use_dora", "lora_alpha"))


def test_a_path_is_only_a_name() -> None:
    assert parse(base_model_name_or_path="/etc/passwd").base_model_name == "/etc/passwd"


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "corda", "lora_ga", "loftq"])
def test_factors_of_a_changed_base_are_refused_with_the_way_out(init: str) -> None:
    message = refused(json.dumps({**PLAIN, "init_lora_weights": init}).encode())
    assert "whose weights were changed" in message
    assert "path_initial_model_for_weight_conversion" in message


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "orthogonal", "eva", "mica"])
def test_an_initialisation_that_leaves_the_base_alone_is_no_matter(init: object) -> None:
    assert parse(init_lora_weights=init) == parse()


def test_fan_in_fan_out_is_said_to_change_nothing() -> None:
    (warning,) = parse(fan_in_fan_out=True).warnings
    assert "fan_in_fan_out" in warning
    assert not parse(fan_in_fan_out=False).warnings
    both = {"fan_in_fan_out": True, "target_parameters": ["mlp.experts.down_proj"]}
    assert "fan_in_fan_out" in refused(json.dumps({**PLAIN, **both}).encode())


def test_what_should_be_adapted_is_no_part_of_what_the_adapter_is() -> None:
    targets = {"target_modules": ["q_proj"], "exclude_modules": "x", "layers_to_transform": [1]}
    assert parse(**targets).canonical() == parse().canonical()


ADALORA: dict[str, object] = {
    "peft_type": "ADALORA", "init_r": 4, "r": 8, "target_r": 2, "lora_alpha": 8, "total_step": 9,
    "tinit": 1, "tfinal": 1, "deltaT": 1, "beta1": 0.8, "beta2": 0.8, "orth_reg_weight": 0.5,
}  # fmt: skip


def parse_adalora(**keys: object) -> AdapterConfig:
    return parse_config(json.dumps({**ADALORA, **keys}).encode())


def test_the_ranks_and_scales_of_adalora() -> None:
    kept = {f"{MODULE}.lora_E": [True, False, False, True], "model.other.lora_E": [False] * 4}
    config = parse_adalora(rank_pattern=kept, alpha_pattern={"q_proj": 99}, use_rslora=True)
    assert (config.rank_of(MODULE), config.rank_of("model.other")) == (2, 0)
    assert config.rank_of("model.layers.0.self_attn.v_proj") == 4
    assert config.scale_of(MODULE) == 8 / 4.00001, "the rank at the start, and no pattern of alpha"
    assert parse_adalora(lora_alpha=0, rank_pattern=kept).scale_of(MODULE) == 2 / 4.00001
    assert config.canonical() != parse().canonical()


@pytest.mark.parametrize(
    "keys",
    [
        {"init_r": None},
        {"init_r": 0},
        {"init_r": 300},
        {"rank_pattern": {MODULE: [True] * 4}},
        {"rank_pattern": {f"{MODULE}.lora_E": [True] * 3}},
        {"rank_pattern": {f"{MODULE}.lora_E": [1] * 4}},
        {"rank_pattern": {f"{MODULE}.lora_E": 4}},
        {"rank_pattern": []},
        {"use_dora": True},
    ],
)
def test_a_bad_config_of_adalora_is_refused(keys: dict[str, object]) -> None:
    assert next(iter(keys)) in refused(json.dumps({**ADALORA, **keys}).encode())


def test_dora_does_not_go_with_parameters_of_several_experts() -> None:
    keys = {"use_dora": True, "target_parameters": ["mlp.experts.down_proj"]}
    assert "does not go with target_parameters" in refused(json.dumps({**PLAIN, **keys}).encode())


def test_what_is_beside_factors_is_in_the_canonical_form_only_where_it_is_on() -> None:
    plain = parse().canonical()
    assert parse(use_dora=False, bias="none").canonical() == plain
    assert parse(bias=None).canonical() == plain
    assert parse(use_dora=True).canonical() == {**plain, "use_dora": True}
    assert parse(bias="all").canonical() == {**plain, "bias": "all"}


@pytest.mark.parametrize("key", ["megatron\x1b[2Jcore", "r\x7f", "a\u2028b"])
def test_a_key_that_no_terminal_should_see_is_named_escaped(key: str) -> None:
    message = refused(json.dumps({**PLAIN, key: 1}).encode())
    assert message.isprintable()
    assert json.dumps(key)[1:-1] in message
