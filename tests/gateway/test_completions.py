"""Completions: prompts as text, tokens and lists."""

from __future__ import annotations

from typing import Any

import pytest
from tests.gateway.site import Site


@pytest.fixture
def site(shared_site: Site) -> Site:
    return shared_site


def test_a_completion_defaults_to_16_tokens(site: Any, acme: str) -> None:
    answer = site.client(acme).completions.create(model="tiny", prompt="x" * 20)
    assert answer.choices[0].text == "x" * 16
    assert answer.choices[0].finish_reason == "length"
    assert answer.object == "text_completion"


def test_a_list_of_prompts_gives_a_choice_each(site: Any, acme: str) -> None:
    answer = site.client(acme).completions.create(model="tiny", prompt=["ab", "cde"])
    assert [(c.index, c.text) for c in answer.choices] == [(0, "ab"), (1, "cde")]
    assert answer.usage.prompt_tokens == 5
    assert answer.usage.completion_tokens == 5
    assert site.usage(acme)[0]["num_model_requests"] == 2


def test_prompts_may_be_tokens(site: Any, acme: str) -> None:
    client = site.client(acme)
    assert client.completions.create(model="tiny", prompt=[104, 105]).choices[0].text == "hi"
    both = client.completions.create(model="tiny", prompt=[[104, 105], [106]])
    assert [c.text for c in both.choices] == ["hi", "j"]


def test_prompts_stream_side_by_side(site: Any, acme: str) -> None:
    texts = {0: "", 1: ""}
    reasons: dict[int, str | None] = {}
    for chunk in site.client(acme).completions.create(
        model="tiny", prompt=["ab", "cde"], stream=True, stream_options={"include_usage": True}
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
    assert texts == {0: "ab", 1: "cde"}
    assert reasons == {0: "stop", 1: "stop"}
    assert chunk.usage is not None
    assert chunk.usage.total_tokens == 10
