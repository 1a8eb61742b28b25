"""LoRAX's routes: its requests, answers, streams and errors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from weft.app import create_app
from weft.gateway.lorax_wire import LoraxFormat, LoraxShape, lorax_error
from weft.gateway.wire import Choice
from weft.messages import EngineOutput, EngineQueueFullError, TokenLogprobs, Usage
from weft.server.http import background_server
from weft.settings import ServerSettings
from weft.tokenizer import BaseTokenizer
from weft.vocabulary import Vocabulary

Lora = Callable[..., dict[str, bytes]]

# what LoRAX's Python client sends when its caller sets nothing
CLIENT_DEFAULTS: dict[str, object] = {
    "adapter_id": None,
    "adapter_source": None,
    "api_token": None,
    "do_sample": False,
    "max_new_tokens": None,
    "ignore_eos_token": False,
    "repetition_penalty": None,
    "return_full_text": False,
    "stop": [],
    "seed": None,
    "temperature": None,
    "top_k": None,
    "top_p": None,
    "truncate": None,
    "typical_p": None,
    "best_of": None,
    "watermark": False,
    "details": True,
    "decoder_input_details": False,
    "return_k_alternatives": None,
    "response_format": None,
}


def token(letter: str, **extra: object) -> dict[str, object]:
    return {
        "id": ord(letter),
        "text": letter,
        "logprob": -0.5,
        "special": False,
        "skipped": False,
        **extra,
    }


def events(text: str) -> list[dict[str, Any]]:
    lines = [line for line in text.splitlines() if line.startswith("data:")]
    return [json.loads(line.removeprefix("data:")) for line in lines]


def generate(site: Any, key: str, parameters: Mapping[str, object], path: str = "/generate") -> Any:
    return site.call(key, "POST", path, json={"inputs": "abc", "parameters": parameters})


def test_an_answer_has_loraxs_shape(site: Any, acme: str) -> None:
    body = {"inputs": "abc", "parameters": CLIENT_DEFAULTS, "stream": False}
    answer = site.call(acme, "POST", "/generate", json=body)
    assert answer.status_code == 200
    assert answer.json() == {
        "generated_text": "abc",
        "details": {
            "finish_reason": "stop_sequence",
            "prompt_tokens": 3,
            "generated_tokens": 3,
            "skipped_tokens": 0,
            "seed": None,
            "prefill": [],
            "tokens": [token("a"), token("b"), token("c")],
        },
    }
    headers = answer.headers
    assert (headers["x-model-id"], headers["x-prompt-tokens"]) == ("tiny", "3")
    assert (headers["x-generated-tokens"], headers["x-total-tokens"]) == ("3", "6")
    assert "x-adapter-id" not in headers
    # the path that LoRAX's client calls answers with a list
    assert site.call(acme, "POST", "/", json=body).json() == [answer.json()]
    assert generate(site, acme, {}).json() == {"generated_text": "abc"}
    assert site.call(acme, "POST", "/generate", json={"inputs": "abc"}).status_code == 200


def test_a_stream_has_an_event_for_each_token(site: Any, acme: str) -> None:
    parameters = {**CLIENT_DEFAULTS, "max_new_tokens": 2, "do_sample": True, "seed": 2**64 - 1}
    body = {"inputs": "abc", "parameters": parameters, "stream": True}
    answer = site.call(acme, "POST", "/generate_stream", json=body)
    assert site.call(acme, "POST", "/", json=body).text == answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    details = {"finish_reason": "length", "prompt_tokens": 3, "generated_tokens": 2}
    assert events(answer.text) == [
        {"token": token("a"), "generated_text": None, "details": None},
        {
            "token": token("b"),
            "generated_text": "ab",
            "details": {**details, "seed": 2**64 - 1},
        },
    ]
    assert "[DONE]" not in answer.text
    assert site.engine.requests[-1].sampling.seed == -1


def test_an_adapter_is_named_by_adapter_id(site: Any, acme: str, lora: Lora) -> None:
    site.create_adapter(acme, "bot")
    digest = site.upload(acme, "bot", lora()).json()["digest"]
    for path in ("/generate", "/generate_stream"):
        parameters = {"adapter_id": "bot@v1", "adapter_source": "local"}
        answer = generate(site, acme, parameters, path)
        assert answer.status_code == 200
        assert site.engine.requests[-1].adapter_digest == digest
        assert answer.headers["x-adapter-id"] == "bot@v1"
        assert answer.headers["x-adapter-source"] == "local"
        assert answer.headers["x-weft-adapter-digest"] == digest
    for base in ("", "__base_model__", "tiny", None):
        assert generate(site, acme, {"adapter_id": base}).status_code == 200
        assert site.engine.requests[-1].adapter_digest is None
    assert {row["model"] for row in site.usage(acme)} == {"bot@v1", "tiny"}


def test_parameters_reach_the_engine_with_loraxs_meaning(site: Any, acme: str) -> None:
    for given, temperature in (
        ({}, 0.0),
        ({"temperature": 1.0}, 0.0),
        ({"top_p": 1.0}, 0.0),
        ({"do_sample": True}, 1.0),
        ({"do_sample": True, "temperature": 0.0}, 0.0),
        ({"temperature": 0.5}, 0.5),
        ({"top_k": 5}, 1.0),
        ({"top_p": 0.5}, 1.0),
    ):
        assert generate(site, acme, given).status_code == 200
        assert site.engine.requests[-1].sampling.temperature == temperature, given
    everything = {
        "do_sample": True,
        "top_k": 4,
        "top_p": 0.5,
        "repetition_penalty": 1.5,
        "frequency_penalty": 0.5,
        "presence_penalty": 0.25,
        "seed": 7,
        "max_new_tokens": 5,
        "ignore_eos_token": True,
        "stop": ["x", "y"],
        "truncate": 2,
        "return_k_alternatives": 2,
        "response_format": {"type": "json_object", "schema": {"type": "object"}},
    }
    answer = generate(site, acme, {**everything, "details": True, "return_full_text": True})
    request = site.engine.requests[-1]
    sampling = request.sampling
    assert request.prompt_token_ids == (ord("b"), ord("c"))  # the end is what is kept
    assert (sampling.top_k, sampling.top_p, sampling.seed, sampling.max_tokens) == (4, 0.5, 7, 5)
    assert (sampling.repetition_penalty, sampling.frequency_penalty) == (1.5, 0.5)
    assert (sampling.presence_penalty, sampling.stop) == (0.25, ("x", "y"))
    assert (sampling.ignore_eos, sampling.logprobs) == (True, 2)
    assert sampling.grammar is not None
    assert json.loads(sampling.grammar.text) == {"type": "object"}
    assert answer.json()["generated_text"] == "abcbcbcb"  # after all of the inputs
    first = answer.json()["details"]["tokens"][0]
    alternatives = [
        {"id": 98, "text": "b", "logprob": -0.5},
        {"id": 99, "text": "c", "logprob": -1.5},
    ]
    assert first == token("b", alternative_tokens=alternatives)
    assert answer.json()["details"]["seed"] == 7


def test_all_the_room_is_the_default_length(site: Any, acme: str) -> None:
    generate(site, acme, {})
    assert site.engine.requests[-1].sampling.max_tokens == 128 - 3


REFUSED: list[tuple[dict[str, object], str]] = [
    ({"best_of": 2}, "parameters.best_of"),
    ({"typical_p": 0.5}, "parameters.typical_p"),
    ({"watermark": True}, "parameters.watermark"),
    ({"decoder_input_details": True}, "parameters.decoder_input_details"),
    ({"apply_chat_template": True}, "parameters.apply_chat_template"),
    ({"adapter_source": "hub"}, "registered with this server"),
    ({"api_token": "secret-word"}, "parameters.api_token"),
    ({"temperature": -1}, "parameters.temperature"),
    ({"max_new_tokens": 0}, "parameters.max_new_tokens"),
    ({"max_new_tokens": 1000}, "maximum context length is 128"),
    ({"top_k": 0}, "parameters.top_k"),
    ({"invented": 1}, "parameters.invented"),
    ({"stop": [""]}, "parameters.stop"),
    ({"seed": 2**64}, "parameters.seed"),
]


def test_what_cannot_be_done_is_refused_as_lorax_refuses(site: Any, acme: str) -> None:
    for parameters, said in REFUSED:
        for path in ("/generate", "/generate_stream", "/"):
            answer = generate(site, acme, parameters, path)
            wire = answer.json()
            assert (answer.status_code, wire["error_type"]) == (422, "validation"), parameters
            assert wire["error"].startswith("Input validation error: ")
            assert said in wire["error"]
            assert "secret-word" not in answer.text
    assert site.engine.requests == []


def test_every_error_has_loraxs_shape(site: Any, acme: str) -> None:
    cases: list[tuple[Any, int, str]] = [
        (site.call(None, "POST", "/generate", json={"inputs": "a"}), 401, "invalid_api_key"),
        (site.call(acme, "POST", "/generate", json={"inputs": ""}), 422, "validation"),
        (site.call(acme, "POST", "/generate", content=b"{"), 422, "validation"),
        (
            site.call(acme, "POST", "/generate", json={"inputs": "a", "stream": True}),
            422,
            "validation",
        ),
        (
            site.call(acme, "POST", "/generate", json={"inputs": "a" * 200_000}),
            413,
            "payload_too_large",
        ),
        (generate(site, acme, {"adapter_id": "nobody"}), 404, "generation"),
    ]
    site.engine.fails_after = 0
    cases.append((generate(site, acme, {}), 500, "generation"))
    cases.append((generate(site, acme, {}, "/generate_stream"), 500, "generation"))
    site.engine.error_code = "adapter_unavailable"
    cases.append((generate(site, acme, {}), 503, "overloaded"))
    site.engine.admission_error = EngineQueueFullError(3)
    full = generate(site, acme, {})
    assert full.headers["retry-after"] == "1"
    cases.append((full, 429, "overloaded"))
    for answer, status, kind in cases:
        assert answer.status_code == status
        assert set(answer.json()) == {"error", "error_type"}
        assert answer.json()["error_type"] == kind


def test_an_error_in_a_stream_is_its_last_event(site: Any, acme: str) -> None:
    site.engine.fails_after = 1
    site.engine.delay_s = 0.05
    wires = events(generate(site, acme, {}, "/generate_stream").text)
    assert wires[0]["token"]["text"] == "a"
    assert wires[1] == {
        "error": "Request failed during generation: the logits are not finite",
        "error_type": "generation",
    }
    assert len(wires) == 2


@pytest.fixture
def strict_url(tokenizer: BaseTokenizer, settings: ServerSettings, site: Any) -> Iterator[str]:
    """A second server over the same engine that answers with LoRAX's status codes."""
    folder = settings.data_dir.parent / "strict"
    strict = dataclasses.replace(settings, data_dir=folder, lorax_status_codes=True)
    app = create_app(strict, site.engine, tokenizer)
    with background_server(app, strict) as url:
        yield url


def test_an_unknown_adapter_is_424_where_the_operator_wants_it(strict_url: str, site: Any) -> None:
    operator_key = (site.settings.data_dir.parent / "strict" / "operator_key").read_text().strip()
    headers = {"authorization": f"Bearer {operator_key}"}
    tenants = f"{strict_url}/admin/v1/tenants"
    site.http.post(tenants, json={"name": "acme"}, headers=headers).raise_for_status()
    key = site.http.post(f"{tenants}/acme/keys", json={}, headers=headers).json()["value"]
    body = {"inputs": "abc", "parameters": {"adapter_id": "nobody"}}
    headers = {"authorization": f"Bearer {key}"}
    answer = site.http.post(f"{strict_url}/generate", json=body, headers=headers)
    assert (answer.status_code, answer.json()["error_type"]) == (424, "generation")


def output(data: bytes, text: str, reason: Any = None) -> EngineOutput:
    entries = tuple(TokenLogprobs(byte, -0.5) for byte in data)
    return EngineOutput("r", text, tuple(data), Usage(1, len(data)), reason, logprobs=entries)


def streamed(outputs: list[EngineOutput], stop: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Events of a model whose tokens are bytes; byte 0 is a control token that ends an answer."""
    table = (b"<end>", *(bytes([i]) for i in range(1, 256)))
    vocabulary = Vocabulary(table, frozenset({0}), is_exact=True)
    shape = LoraxShape("", False, False, None, stop, frozenset({0}))
    form = LoraxFormat(vocabulary, shape, lambda e: lorax_error(e, has_lorax_statuses=False))
    found: list[Any] = []
    for item in outputs:
        found += form.chunks(0, Choice(), item)
    return found


def test_a_character_of_several_tokens_is_the_text_of_its_last() -> None:
    data = "é".encode()
    found = streamed([output(data[:1], ""), output(data[1:], "é"), output(data[:1], "�", "length")])
    assert [event["token"]["text"] for event in found] == ["", "é", "�"]
    assert found[-1]["generated_text"] == "é�"


def test_the_stop_sequence_belongs_to_the_text() -> None:
    stop = ("nope", "END", "D")
    found = streamed([output(b"abE", "ab"), output(b"N", ""), output(b"D!", "", "stop")], stop)
    assert found[-1]["generated_text"] == "abEND"
    assert "".join(event["token"]["text"] for event in found) == "abEND!"


def test_the_token_that_ends_an_answer_is_special_and_no_text() -> None:
    found = streamed([output(b"hi", "hi"), output(b"\0", "", "stop")], ("i!",))
    assert found[-1]["generated_text"] == "hi"
    assert (found[-1]["token"]["text"], found[-1]["token"]["special"]) == ("<end>", True)
    assert not any(event["token"]["special"] for event in found[:-1])
