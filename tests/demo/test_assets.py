"""The demo's files: complete, small, free of machine paths, and as good as the card says."""

import json
import re
import struct
from pathlib import Path
from typing import Any

import jinja2
import pytest

from weft.demo import ADAPTERS_DIR, ASSETS_DIR, BASE_DIR, BASE_NAME
from weft.demo.card import accuracy_table, read_accuracy, replace_block
from weft.demo.skills import SKILLS
from weft.demo.tokens import ID_OF, VOCAB_SIZE, byte_alphabet

MAX_BYTES = 16 * 2**20
BASE_FILES = (
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "training.json",
)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Shapes in a safetensors file, from its header alone."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}


@pytest.mark.parametrize("name", BASE_FILES)
def test_the_base_is_complete(name: str) -> None:
    assert (BASE_DIR / name).is_file()


def test_all_assets_are_small() -> None:
    assert sum(path.stat().st_size for path in ASSETS_DIR.rglob("*")) <= MAX_BYTES


def test_the_base_is_a_mixture_of_experts() -> None:
    config = read(BASE_DIR / "config.json")
    assert config["architectures"] == ["Qwen3MoeForCausalLM"]
    assert config["num_experts"] == config["num_local_experts"] >= 8
    assert config["num_experts_per_tok"] == 2
    assert config["norm_topk_prob"] is True
    assert config["sliding_window"] is None


def test_every_router_and_expert_has_its_tensors() -> None:
    config = read(BASE_DIR / "config.json")
    shapes = tensor_shapes(BASE_DIR / "model.safetensors")
    for layer in range(config["num_hidden_layers"]):
        mlp = f"model.layers.{layer}.mlp"
        assert shapes[f"{mlp}.gate.weight"] == [config["num_experts"], config["hidden_size"]]
        for expert in range(config["num_experts"]):
            assert f"{mlp}.experts.{expert}.down_proj.weight" in shapes


def test_no_config_holds_a_path_of_a_machine() -> None:
    for path in (*ASSETS_DIR.rglob("*.json"), *ASSETS_DIR.rglob("*.md")):
        if path.name != "tokenizer.json":
            assert not re.search(r'[" (`](/|~/|[A-Z]:\\)\w', path.read_text()), path


def test_there_is_an_adapter_for_each_skill() -> None:
    assert {path.name for path in ADAPTERS_DIR.iterdir()} == SKILLS.keys()


@pytest.mark.parametrize("name", SKILLS)
def test_an_adapter_is_plain_peft(name: str) -> None:
    config = read(ADAPTERS_DIR / name / "adapter_config.json")
    assert {path.name for path in (ADAPTERS_DIR / name).iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert config["peft_type"] == "LORA"
    assert config["base_model_name_or_path"] == BASE_NAME
    assert config["bias"] == "none"
    assert config["r"] % 4 == 0
    assert 4 <= config["r"] <= 32
    shapes = tensor_shapes(ADAPTERS_DIR / name / "adapter_model.safetensors")
    assert all(".lora_A." in key or ".lora_B." in key for key in shapes)


def test_only_the_sorter_touches_the_experts() -> None:
    touching = {
        name
        for name in SKILLS
        if read(ADAPTERS_DIR / name / "adapter_config.json")["target_parameters"]
    }
    assert touching == {"sorter"}


def test_the_tokenizer_is_one_byte_a_token() -> None:
    model = read(BASE_DIR / "tokenizer.json")["model"]
    assert model["merges"] == []
    assert model["vocab"] == {char: i for i, char in enumerate(byte_alphabet())} | ID_OF
    assert len(model["vocab"]) == VOCAB_SIZE == read(BASE_DIR / "config.json")["vocab_size"]


def test_the_chat_template_renders_with_plain_jinja() -> None:
    template = jinja2.Template(read(BASE_DIR / "tokenizer_config.json")["chat_template"])
    messages = [{"role": "system", "content": "shout"}, {"role": "user", "content": "a\nb"}]
    prompt = template.render(messages=messages, add_generation_prompt=True)
    assert prompt == "<|system|>shout<|end|><|user|>a\nb<|end|><|assistant|>"


@pytest.mark.parametrize("name", SKILLS)
def test_the_card_says_that_the_adapter_makes_the_difference(name: str) -> None:
    score = read_accuracy((BASE_DIR / "README.md").read_text(encoding="utf-8"))[name]
    assert score.adapter >= 0.9
    assert score.base <= 0.3


def test_a_card_block_is_replaced_and_read_back() -> None:
    card = "a\n<!-- accuracy:start -->old<!-- accuracy:end -->\nb"
    scores = read_accuracy((BASE_DIR / "README.md").read_text(encoding="utf-8"))
    replaced = replace_block(card, "accuracy", accuracy_table(scores, 200))
    assert replaced.startswith("a\n")
    assert replaced.endswith("\nb")
    assert read_accuracy(replaced) == scores
    with pytest.raises(ValueError, match="no block 'training'"):
        replace_block(card, "training", "")
