"""How models are named."""

from __future__ import annotations

import pytest

from weft.registry.names import ModelName, is_adapter_name, try_parse_model_name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bot", ModelName("bot")),
        ("bot@default", ModelName("bot", "default")),
        ("bot@prod-1", ModelName("bot", "prod-1")),
        ("bot@v3", ModelName("bot", None, 3)),
        ("b.o_t-9@v10", ModelName("b.o_t-9", None, 10)),
        ("bot@v0", ModelName("bot", "v0")),
        ("bot@v03", ModelName("bot", "v03")),
    ],
)
def test_a_name_has_an_alias_or_a_version(text: str, expected: ModelName) -> None:
    assert try_parse_model_name(text) == expected


@pytest.mark.parametrize(
    "text", ["", "@v1", "bot@", "Bot", "a/b", "a..b", "bot@@v1", "bot@v1@v2", ".a", "a" * 64, "a\n"]
)
def test_anything_else_names_nothing(text: str) -> None:
    assert try_parse_model_name(text) is None


def test_an_adapters_name_has_at_most_63_characters() -> None:
    assert is_adapter_name("a" * 63)
    assert not is_adapter_name("a" * 64)
