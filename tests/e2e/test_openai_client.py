"""The real `openai` client against a real server and engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import openai
import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Server

pytestmark = pytest.mark.slow

WORDS = "wolf apple tiger"


@pytest.fixture
def client(server: Server, acme: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=acme, max_retries=0) as client:
        yield client


def test_a_chat_completion_uses_the_adapter(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="shout", messages=[{"role": "user", "content": WORDS}], temperature=0
    )
    completion = raw.parse()
    assert completion.choices[0].message.content == "WOLF APPLE TIGER"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.model == "shout@v1"
    assert raw.headers["x-weft-adapter-version"] == "shout@v1"
    assert raw.headers["x-weft-adapter-digest"].startswith("sha256:")
    assert completion.usage is not None
    assert completion.usage.completion_tokens == len("WOLF APPLE TIGER") + 1
    assert completion.usage.total_tokens == (
        completion.usage.prompt_tokens + completion.usage.completion_tokens
    )


def test_adapter_id_is_an_extra_field(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(
        model="shout",
        messages=[{"role": "user", "content": WORDS}],
        temperature=0,
        extra_body={"adapter_id": "shout"},
    )
    assert completion.choices[0].message.content == "WOLF APPLE TIGER"


def test_streamed_chunks_make_up_the_same_answer(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="shout",
        messages=[{"role": "user", "content": WORDS}],
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "WOLF APPLE TIGER"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(text) + 1
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_completion_stops_at_a_stop_string(client: openai.OpenAI) -> None:
    prompt = f"<|user|>{WORDS}<|end|><|assistant|>"
    whole = client.completions.create(model="shout", prompt=prompt, temperature=0, max_tokens=40)
    cut = client.completions.create(
        model="shout", prompt=prompt, temperature=0, max_tokens=40, stop=["APP"]
    )
    assert whole.choices[0].text == "WOLF APPLE TIGER"
    assert cut.choices[0].text == "WOLF "
    assert cut.choices[0].finish_reason == "stop"


def test_a_seeded_sample_is_repeatable(client: openai.OpenAI) -> None:
    texts = {
        client.completions.create(
            model="weft-demo-base", prompt="def ", temperature=1.5, seed=5, max_tokens=24
        )
        .choices[0]
        .text
        for _ in range(3)
    }
    assert len(texts) == 1


def test_models_are_the_base_and_the_tenants_own(client: openai.OpenAI, globex: str) -> None:
    assert {model.id for model in client.models.list()} == {"weft-demo-base", "shout"}


def test_errors_have_openais_classes(client: openai.OpenAI, server: Server, globex: str) -> None:
    messages: list[openai.types.chat.ChatCompletionMessageParam] = [
        {"role": "user", "content": WORDS}
    ]
    with pytest.raises(openai.NotFoundError) as not_found:
        client.chat.completions.create(model="mirror", messages=messages)
    assert not_found.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="shout", messages=messages, max_tokens=10**6)
    assert bad.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as unsupported:
        client.chat.completions.create(model="shout", messages=messages, store=True)
    assert unsupported.value.param == "store"
    stranger = openai.OpenAI(base_url=f"{server.url}/v1", api_key="weft_live_no", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()
