"""Sampling through the real `openai` client, server, engine and demo base."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam
    from tests.e2e.conftest import Server

pytestmark = pytest.mark.slow

BASE = "weft-demo-base"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "wolf apple tiger"}]


class Animal(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["wolf", "tiger"]
    age: Annotated[int, Field(ge=0, le=30)]
    scores: Annotated[list[Literal[1, 2, 3]], Field(max_length=4)]


@pytest.fixture
def client(server: Server, acme: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=acme, max_retries=0) as client:
        yield client


def test_parse_gives_the_model_back(client: openai.OpenAI) -> None:
    for seed in range(5):
        completion = client.chat.completions.parse(
            model="shout", messages=MESSAGES, response_format=Animal, temperature=1.5, seed=seed,
            max_tokens=200,
        )  # fmt: skip
        assert isinstance(completion.choices[0].message.parsed, Animal)
        assert completion.choices[0].finish_reason == "stop"


def test_a_regex_and_a_json_object(client: openai.OpenAI) -> None:
    pattern = r"(wolf|tiger) is [0-9]{1,2}\."
    answer = client.chat.completions.create(
        model=BASE, messages=MESSAGES, temperature=1.5, seed=3,
        extra_body={"structured_outputs": {"regex": pattern}},
    )  # fmt: skip
    assert re.fullmatch(pattern, answer.choices[0].message.content or "")
    answer = client.chat.completions.create(
        model=BASE, messages=MESSAGES, temperature=0, response_format={"type": "json_object"},
        max_tokens=300,
    )  # fmt: skip
    content = answer.choices[0].message.content or ""
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(content), dict)
    else:
        assert content.startswith("{")


def test_a_schema_that_cannot_be_held_to_is_refused(client: openai.OpenAI) -> None:
    schema: dict[str, object] = {"type": "array", "uniqueItems": True}
    with pytest.raises(openai.BadRequestError, match="uniqueItems") as caught:
        client.chat.completions.create(
            model=BASE, messages=MESSAGES,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        )  # fmt: skip
    assert caught.value.param == "response_format"


def test_choices_differ_and_the_prompt_counts_once(client: openai.OpenAI) -> None:
    arguments: dict[str, Any] = {
        "model": BASE, "prompt": "def ", "temperature": 1.8, "max_tokens": 16,
    }  # fmt: skip
    one = client.completions.create(**arguments, seed=1)
    next_one = client.completions.create(**arguments, seed=2)
    two = client.completions.create(**arguments, seed=1, n=2)
    assert [choice.index for choice in two.choices] == [0, 1]
    assert [c.text for c in two.choices] == [one.choices[0].text, next_one.choices[0].text]
    assert two.choices[0].text != two.choices[1].text
    assert one.usage is not None
    assert two.usage is not None
    assert two.usage.prompt_tokens == one.usage.prompt_tokens
    assert two.usage.completion_tokens <= 32


def test_choices_stream_with_their_usage(client: openai.OpenAI) -> None:
    arguments: dict[str, Any] = {
        "model": BASE, "messages": MESSAGES, "temperature": 1.2, "seed": 4, "max_tokens": 12,
        "n": 3,
    }  # fmt: skip
    whole = client.chat.completions.create(**arguments)
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(
        **arguments, stream=True, stream_options={"include_usage": True}
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert chunk.usage.completion_tokens == whole.usage.completion_tokens


def test_a_prompt_seen_before_is_cached(client: openai.OpenAI) -> None:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "seen before " * 8}]
    counts = []
    for salt in ("a", "a", "b"):
        answer = client.chat.completions.create(
            model=BASE, messages=messages, max_tokens=1, extra_body={"cache_salt": salt}
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        counts.append(answer.usage.prompt_tokens_details.cached_tokens)
    assert counts[0] == counts[2] == 0
    assert counts[1] is not None
    assert answer.usage is not None
    assert 0 < counts[1] < answer.usage.prompt_tokens


def test_log_probabilities_are_those_of_the_tokens(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="shout", messages=MESSAGES, temperature=0, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(entry.token for entry in logprobs.content) == "WOLF APPLE TIGER<|end|>"
    for entry in logprobs.content:
        assert entry.bytes == list(entry.token.encode())
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token, "greedy takes the best"
        assert entry.logprob == entry.top_logprobs[0].logprob <= 0
        assert sum(math.exp(top.logprob) for top in entry.top_logprobs) <= 1 + 1e-5


def test_legacy_log_probabilities_and_their_offsets(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=BASE, prompt="def ", temperature=0, max_tokens=10, logprobs=2
    )
    choice = answer.choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert "".join(choice.logprobs.tokens).startswith(choice.text)
    assert choice.logprobs.text_offset == list(range(len(choice.logprobs.tokens)))
    assert choice.logprobs.token_logprobs is not None
    assert len(choice.logprobs.token_logprobs) == len(choice.logprobs.tokens)
    assert choice.logprobs.top_logprobs is not None
    assert all(len(top) == 2 for top in choice.logprobs.top_logprobs)


def test_bias_least_length_and_stop_tokens(client: openai.OpenAI) -> None:
    biased = client.chat.completions.create(
        model="shout", messages=MESSAGES, temperature=0, max_tokens=5, logit_bias={"90": 100},
        extra_body={"min_tokens": 5},
    )  # fmt: skip
    assert biased.choices[0].message.content == "ZZZZZ"
    stopped = client.chat.completions.create(
        model="shout", messages=MESSAGES, temperature=0, extra_body={"stop_token_ids": [ord("P")]}
    )
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.usage is not None
    assert stopped.usage.completion_tokens == len("WOLF AP")
    longer = client.chat.completions.create(
        model="shout",
        messages=MESSAGES,
        temperature=0,
        max_tokens=24,
        extra_body={"min_tokens": 24},
    )
    assert longer.usage is not None
    assert longer.usage.completion_tokens == 24


def test_penalties_change_a_greedy_answer(client: openai.OpenAI) -> None:
    def text(**extra: Any) -> str:
        answer = client.completions.create(
            model=BASE, prompt="a a a a a", temperature=0, max_tokens=16, **extra
        )
        return str(answer.choices[0].text)

    plain = text()
    assert text(frequency_penalty=2.0) != plain
    assert text(frequency_penalty=0.0, presence_penalty=0.0) == plain
