"""Sampling parameters, several choices, log-probabilities and response formats, on the wire."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.gateway.site import Site

from weft.messages import Grammar

HELLO: list[Any] = [{"role": "user", "content": "hey"}]
SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}}


@pytest.fixture
def site(shared_site: Site) -> Site:
    return shared_site


def test_every_parameter_reaches_the_engine(site: Any, acme: str) -> None:
    site.client(acme).chat.completions.create(
        model="tiny",
        messages=HELLO,
        presence_penalty=-1,
        frequency_penalty=0.5,
        logit_bias={"104": 5, "0": -100},
        n=2,
        max_tokens=9,
        logprobs=True,
        top_logprobs=2,
        extra_body={
            "min_p": 0.1, "repetition_penalty": 1.2, "stop_token_ids": [7], "min_tokens": 3,
            "priority": -4, "cache_salt": "mine",
        },
    )  # fmt: skip
    request = site.engine.requests[-1]
    s = request.sampling
    assert (s.min_p, s.repetition_penalty, s.stop_token_ids, s.min_tokens) == (0.1, 1.2, (7,), 3)
    assert (s.presence_penalty, s.frequency_penalty, s.n, s.logprobs) == (-1.0, 0.5, 2, 2)
    assert s.logit_bias == ((104, 5.0), (0, -100.0))
    assert (request.priority, request.cache_salt) == (-4, "mine")


def test_null_and_neutral_values_are_the_defaults(site: Any, acme: str) -> None:
    names = ("min_p", "repetition_penalty", "presence_penalty", "logit_bias", "n", "min_tokens",
             "stop_token_ids", "logprobs", "response_format", "priority", "cache_salt")  # fmt: skip
    body = {"model": "tiny", "messages": HELLO, "max_tokens": 4, **dict.fromkeys(names)}
    assert site.call(acme, "POST", "/v1/chat/completions", json=body).status_code == 200
    plain = {"model": "tiny", "messages": HELLO, "max_tokens": 4}
    assert site.call(acme, "POST", "/v1/chat/completions", json=plain).status_code == 200
    assert site.engine.requests[0].sampling == site.engine.requests[1].sampling


# ---- several choices ----


def test_choices_of_several_prompts_have_their_indices(site: Any, acme: str) -> None:
    answer = site.client(acme).completions.create(model="tiny", prompt=["ab", "cde"], n=2)
    assert [(c.index, c.text) for c in answer.choices] == [
        (0, "ab"), (1, "ab"), (2, "cde"), (3, "cde"),
    ]  # fmt: skip
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 10)
    assert answer.usage.prompt_tokens_details.cached_tokens == 2
    row = site.usage(acme)[0]
    assert (row["num_model_requests"], row["input_tokens"], row["output_tokens"]) == (2, 5, 10)


def test_choices_stream_side_by_side(site: Any, acme: str) -> None:
    texts, reasons, roles = {0: "", 1: "", 2: ""}, {}, []
    stream = site.client(acme).chat.completions.create(
        model="tiny", messages=HELLO, n=3, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles += [choice.index] if choice.delta.role else []
            if choice.finish_reason:
                assert choice.index not in reasons
                reasons[choice.index] = choice.finish_reason
    assert texts == {0: "hey", 1: "hey", 2: "hey"}
    assert reasons == {0: "stop", 1: "stop", 2: "stop"}
    assert roles == [0, 1, 2]
    assert (chunk.usage.prompt_tokens, chunk.usage.completion_tokens) == (6, 9)


def test_a_choice_that_fails_fails_the_request_once(site: Any, acme: str) -> None:
    site.engine.fails_after, site.engine.delay_s = 1, 0.02
    body = {"model": "tiny", "messages": HELLO, "n": 3}
    assert site.call(acme, "POST", "/v1/chat/completions", json=body).status_code == 500
    answer = site.call(acme, "POST", "/v1/chat/completions", json={**body, "stream": True})
    assert answer.text.count('"error"') == 1
    assert "[DONE]" not in answer.text


def test_too_many_choices_are_refused(site: Any, acme: str) -> None:
    body = {"model": "tiny", "prompt": ["a"] * 50, "n": 3}
    answer = site.call(acme, "POST", "/v1/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "n"


# ---- log-probabilities ----


def test_chats_log_probabilities_have_openais_shape(site: Any, acme: str) -> None:
    answer = site.client(acme).chat.completions.create(
        model="tiny", messages=HELLO, logprobs=True, top_logprobs=2, n=2
    )
    for choice in answer.choices:
        assert choice.logprobs.refusal is None
        assert [entry.token for entry in choice.logprobs.content] == ["h", "e", "y"]
        entry = choice.logprobs.content[0]
        assert (entry.logprob, entry.bytes) == (-0.5, [104])
        assert [(t.token, t.logprob, t.bytes) for t in entry.top_logprobs] == [
            ("h", -0.5, [104]), ("i", -1.5, [105]),
        ]  # fmt: skip
    without = site.client(acme).chat.completions.create(model="tiny", messages=HELLO, logprobs=True)
    assert [entry.top_logprobs for entry in without.choices[0].logprobs.content] == [[], [], []]


def test_a_streams_chunks_carry_their_own(site: Any, acme: str) -> None:
    stream = site.client(acme).chat.completions.create(
        model="tiny", messages=HELLO, logprobs=True, stream=True
    )
    chunks = [chunk.choices[0] for chunk in stream]
    assert chunks[0].logprobs is None
    entries = [entry for c in chunks if c.logprobs for entry in c.logprobs.content]
    assert "".join(entry.token for entry in entries) == "hey"


@pytest.mark.parametrize("stream", [False, True])
def test_the_legacy_route_has_lists(site: Any, acme: str, stream: bool) -> None:
    answer = site.client(acme).completions.create(
        model="tiny", prompt="h\u00e9y", logprobs=1, stream=stream
    )
    found: dict[str, list[Any]] = {}
    for chunk in answer if stream else [answer]:
        shown = chunk.choices[0].logprobs
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            found.setdefault(name, []).extend(getattr(shown, name))
    assert found["tokens"] == ["h", "bytes:\\xc3", "bytes:\\xa9", "y"]
    assert found["token_logprobs"] == [-0.5] * 4
    assert found["top_logprobs"][0] == {"h": -0.5}
    assert found["text_offset"] == [0, 1, 2, 2]


def test_zero_alternatives_still_name_the_token(site: Any, acme: str) -> None:
    answer = site.client(acme).completions.create(model="tiny", prompt="ab", logprobs=0)
    assert answer.choices[0].logprobs.top_logprobs == [{"a": -0.5}, {"b": -0.5}]


# ---- response formats ----


@pytest.mark.parametrize(
    ("extra", "grammar"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Grammar("json_object")),
        (
            {"response_format": {"type": "json_schema", "json_schema": {
                "name": "x", "schema": SCHEMA, "strict": True}}},
            Grammar("json_schema", json.dumps(SCHEMA)),
        ),
        ({"structured_outputs": {"json": SCHEMA}}, Grammar("json_schema", json.dumps(SCHEMA))),
        ({"structured_outputs": {"regex": "a+"}}, Grammar("regex", "a+")),
        ({"guided_json": json.dumps(SCHEMA)}, Grammar("json_schema", json.dumps(SCHEMA))),
        ({"guided_regex": "a+"}, Grammar("regex", "a+")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("route", ["chat/completions", "completions"])
def test_what_an_answer_must_match_is_prepared_and_sent(
    site: Any, acme: str, extra: dict[str, Any], grammar: Grammar | None, route: str
) -> None:
    body = {"model": "tiny", **extra}
    body |= {"messages": HELLO} if route.startswith("chat") else {"prompt": "hey"}
    assert site.call(acme, "POST", f"/v1/{route}", json=body).status_code == 200
    assert site.engine.requests[-1].sampling.grammar == grammar
    assert site.engine.grammars == ([] if grammar is None else [grammar])


def test_a_grammar_that_cannot_be_used_is_400_and_names_its_parameter(site: Any, acme: str) -> None:
    site.engine.grammar_error = ValueError("The JSON schema has 'not' where it is not supported.")
    for extra, param in (
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"guided_regex": "("}, "guided_regex"),
    ):
        body = {"model": "tiny", "messages": HELLO, **extra}
        answer = site.call(acme, "POST", "/v1/chat/completions", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param
        assert "'not'" in answer.json()["error"]["message"]
    assert site.engine.requests == []
    assert site.usage(acme) == []


def test_nobody_compiles_for_a_model_that_is_not_theirs(site: Any, acme: str) -> None:
    body = {"model": "nope", "messages": HELLO, "guided_regex": "a"}
    assert site.call(acme, "POST", "/v1/chat/completions", json=body).status_code == 404
    assert site.engine.grammars == []
