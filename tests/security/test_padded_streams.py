"""Sizes of streamed events: whoever watches a connection must not read lengths of tokens there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.gateway.site import Site

from weft.gateway.obfuscation import BLOCK_BYTES, PaddedFrames
from weft.gateway.wire import frame

# tokens of one byte, two as JSON, two as UTF-8 and six as JSON
SAID = 'a"é\x01b'
ROUTES: dict[str, dict[str, object]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": SAID}]},
    "/v1/completions": {"prompt": SAID},
}


def events(site: Site, key: str, path: str, **options: object) -> list[str]:
    """What a stream has with text or the end of it; `options`: of the stream."""
    body: dict[str, object] = {"model": "tiny", "max_tokens": 6, "stream": True, **ROUTES[path]}
    body |= {"stream_options": {"include_usage": True, **options}}
    answer = site.call(key, "POST", path, json=body)
    answer.raise_for_status()
    found = [line for line in answer.text.splitlines() if line.startswith("data: {")]
    assert json.loads(found[-1].removeprefix("data: "))["choices"] == [], "the usage comes last"
    return found[:-1]


def sizes(lines: list[str]) -> set[int]:
    return {len(line.encode()) for line in lines}


@pytest.fixture(scope="module")
def victim(site: Site) -> str:
    return site.tenant("victim")


@pytest.fixture
def _padded(site: Site, victim: str) -> Iterator[None]:
    """The tenant has chosen to have its streams padded."""
    path = "/admin/v1/tenants/victim"
    changed = site.operator("POST", path, json={"include_obfuscation": True}).json()
    assert changed["include_obfuscation"] is True
    yield
    site.operator("POST", path, json={"include_obfuscation": False}).raise_for_status()


@pytest.mark.parametrize("path", ROUTES)
def test_43_events_of_a_padded_stream_are_of_one_size(site: Site, victim: str, path: str) -> None:
    told = events(site, victim, path)
    assert len(sizes(told)) > 3, "without padding the sizes tell tokens apart"
    assert "obfuscation" not in "".join(told)

    padded = events(site, victim, path, include_obfuscation=True)
    assert len(padded) == len(told)
    assert len(sizes(padded)) == 1
    wires = [json.loads(line.removeprefix("data: ")) for line in padded]
    assert len({wire["obfuscation"] for wire in wires}) == len(wires), "not the same padding twice"


@pytest.mark.usefixtures("_padded")
@pytest.mark.parametrize("path", ROUTES)
def test_43_a_tenant_can_have_all_its_streams_padded(site: Site, victim: str, path: str) -> None:
    assert len(sizes(events(site, victim, path))) == 1
    assert len(sizes(events(site, victim, path, include_obfuscation=None))) == 1
    # a request's own word comes first
    assert "obfuscation" not in "".join(events(site, victim, path, include_obfuscation=False))


@pytest.mark.usefixtures("_padded")
def test_43_padding_is_no_part_of_the_answer(site: Site, victim: str) -> None:
    stream = site.client(victim).chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hi!"}], stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "hi!"
    body = {"inputs": "ab", "parameters": {"max_new_tokens": 2}}
    answer = site.call(victim, "POST", "/generate_stream", json=body)
    lines = [line for line in answer.text.splitlines() if line.startswith("data:")]
    wires: list[dict[str, Any]] = [json.loads(line.removeprefix("data:")) for line in lines]
    assert wires[-1]["generated_text"] == "ab"
    assert {len(line) % BLOCK_BYTES for line in lines} == {len(lines[0]) % BLOCK_BYTES}


def test_43_texts_up_to_a_long_tokens_length_look_alike() -> None:
    """And longer ones tell no more than the number of blocks."""
    padded = PaddedFrames()

    def event(text: str) -> dict[str, object]:
        choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
        return {"id": "chatcmpl-x", "object": "o", "created": 1, "model": "m", "choices": [choice]}

    for num_chars in (0, 1, 16, 60, 120):
        assert len(padded.frame(event("x" * num_chars))) == len(padded.frame(event("")))
    bare = len(frame({"id": "chatcmpl-x", "object": "o", "created": 1, "model": "m"}))
    for num_chars in range(0, 3 * BLOCK_BYTES, 7):
        assert (len(padded.frame(event("ä" * num_chars))) - bare) % BLOCK_BYTES == 0
