"""What is kept of a model card, and what is not."""

from __future__ import annotations

import pytest

from weft.registry.card import parse_card

CARD = b"""---
library_name: peft
base_model: Qwen/Qwen3-0.6B
base_model_relation: adapter
license: apache-2.0
tags:
- lora
- text-generation
model-index: [{name: x}]
---
# My adapter
license: none of this
"""


def test_the_metadata_of_a_card_is_kept() -> None:
    assert parse_card(CARD) == {
        "library_name": "peft",
        "base_model": ["Qwen/Qwen3-0.6B"],
        "base_model_relation": "adapter",
        "license": "apache-2.0",
        "tags": ["lora", "text-generation"],
    }


@pytest.mark.parametrize(
    "readme",
    [
        b"",
        b"# no front matter",
        b"---\nlicense: mit",
        b"---\n: : :\n---",
        b"---\n- a list\n---",
        b"---\nlicense: {nested: mit}\nbase_model: {a: 7}\n---",
        b"---\nlicense: !!python/object/apply:os.system ['true']\n---",
        b"---\n" + b"[" * 15_000 + b"\n---",
        b"---\nlicense: 2026-99-99\n---"[:-4],
        b"\xff\xfe---\n",
    ],
)
def test_a_card_that_says_nothing_is_empty(readme: bytes) -> None:
    assert parse_card(readme) == {}


def test_texts_and_lists_are_bounded() -> None:
    many = "\n".join(f"- t{i}" for i in range(100))
    card = parse_card(f"---\nlicense: {'x' * 1000}\ntags:\n{many}\n---\n".encode())
    assert len(card["license"]) == 255
    assert len(card["tags"]) == 32
    aliases = "a: &a [x, x]\nb: &b [*a, *a]\ntags: [*b, *b]\nlicense: mit"
    assert parse_card(f"---\n{aliases}\n---\n".encode()) == {"license": "mit"}


@pytest.mark.parametrize(
    "kind", ["int", "float", "bool", "timestamp", "null", "binary", "set", "omap"]
)
@pytest.mark.parametrize(
    "value", ['""', "_", "x", "-", "9999-99-99", "[1]", "{a: b}", "0x", "1:2:"]
)
def test_no_kind_of_value_makes_a_card_fail(kind: str, value: str) -> None:
    card = parse_card(f"---\nother: !!{kind} {value}\nlicense: mit\n---\n".encode())
    assert card in ({"license": "mit"}, {})
