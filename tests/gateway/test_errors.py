"""Every refusal is OpenAI's error object, and comes before status 200."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from tests.gateway.site import Site

from weft.messages import EngineDeadError, EngineDrainingError

CHAT = "/v1/chat/completions"
HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def site(shared_site: Site) -> Site:
    return shared_site


def error_of(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["x-request-id"].startswith("req_")
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) >= {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error


def test_invalid_json_is_400(site: Any, acme: str) -> None:
    for content in (b"{", b"[1]", b"", b"\xff", b"[" * 50_000):
        answer = site.call(
            acme, "POST", CHAT, content=content, headers={"content-type": "application/json"}
        )
        assert error_of(answer, 400)["code"] == "invalid_json"


@pytest.mark.parametrize(
    "header",
    [
        None,
        "Bearer",
        "Basic eDp5",
        "Bearer nonsense",
        "Bearer " + "x" * 10_000,
        "Bearer weft_live_' OR 1=1 --",
        "Bearer weft_live_111111111111_" + "0" * 49,
    ],
)
def test_every_bad_key_gets_the_same_answer(site: Any, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header}
    answer = site.http.post(CHAT, json=HELLO, headers=headers)
    error = error_of(answer, 401)
    assert error["code"] == "invalid_api_key"
    assert error["param"] is None
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.content == site.http.post(CHAT, json=HELLO).content


def test_a_mistyped_secret_and_a_revoked_key_look_alike(site: Any, acme: str) -> None:
    key_id = acme.split("_")[2]
    assert site.call(acme, "POST", CHAT, json=HELLO).status_code == 200
    answer = site.operator("DELETE", f"/admin/v1/tenants/acme/keys/{key_id}")
    assert answer.json()["revoked_at"] is not None
    revoked = site.call(acme, "POST", CHAT, json=HELLO)
    assert error_of(revoked, 401)["code"] == "invalid_api_key"
    assert revoked.content == site.call(acme[:-1] + "_", "POST", CHAT, json=HELLO).content


def test_two_authorization_headers_are_refused(site: Any, acme: str) -> None:
    headers = [("authorization", f"Bearer {acme}")] * 2
    error_of(site.http.post(CHAT, json=HELLO, headers=headers), 401)


def test_a_deleted_tenants_keys_stop_working(site: Any, acme: str) -> None:
    site.operator("DELETE", "/admin/v1/tenants/acme").raise_for_status()
    error_of(site.call(acme, "POST", CHAT, json=HELLO), 401)


def test_operator_and_tenant_keys_do_not_mix(site: Any, acme: str) -> None:
    for answer in (
        site.operator("POST", CHAT, json=HELLO),
        site.operator("GET", "/v1/adapters"),
        site.call(acme, "GET", "/admin/v1/tenants"),
    ):
        assert error_of(answer, 403)["type"] == "permission_error"


def test_a_key_without_the_scope_is_refused(site: Any, acme: str) -> None:
    reader = site.key("acme", ["adapters:read"])
    assert site.call(reader, "GET", "/v1/adapters").status_code == 200
    assert error_of(site.call(reader, "POST", CHAT, json=HELLO), 403)["code"] == (
        "insufficient_permissions"
    )
    body = {"name": "a", "base_model": "tiny"}
    error_of(site.call(reader, "POST", "/v1/adapters", json=body), 403)


def test_an_unknown_model_is_404(site: Any, acme: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        site.client(acme).chat.completions.create(model="nope", messages=HELLO["messages"])
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    for model in ("nope@v1", "nope@prod", "../x", "A", "tiny@v1", "a@b@c", "sha256:" + "0" * 64):
        body = {**HELLO, "model": model}
        assert error_of(site.call(acme, "POST", CHAT, json=body), 404)["code"] == "model_not_found"


def test_model_and_adapter_id_must_agree(site: Any, acme: str) -> None:
    answer = site.call(acme, "POST", CHAT, json={**HELLO, "adapter_id": "other"})
    assert error_of(answer, 400)["param"] == "adapter_id"
    same = site.call(acme, "POST", CHAT, json={**HELLO, "adapter_id": "tiny"})
    assert same.status_code == 200
    nameless = {"messages": HELLO["messages"]}
    assert error_of(site.call(acme, "POST", CHAT, json=nameless), 400)["param"] == "model"


@pytest.mark.parametrize(
    ("extra", "param", "code"),
    [
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 129}, "n", "invalid_value"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"frequency_penalty": 2.5}, "frequency_penalty", "invalid_value"),
        ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
        ({"min_p": 1.5}, "min_p", "invalid_value"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"logprobs": 3}, "logprobs", "invalid_value"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"a": 2}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"01": 2}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"-1": 2}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"264": 2}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"9" * 5000: 2}}, "logit_bias", "invalid_value"),
        ({"stop_token_ids": [264]}, "stop_token_ids", "invalid_value"),
        ({"stop_token_ids": [1.5]}, "stop_token_ids[0]", "invalid_value"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens", "invalid_value"),
        ({"cache_salt": ""}, "cache_salt", "invalid_value"),
        ({"priority": 2**31}, "priority", "invalid_value"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", None),
        (
            {"response_format": {"type": "text", "json_schema": {"name": "a", "schema": {}}}},
            "response_format.json_schema",
            "invalid_value",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
            "response_format.json_schema.name",
            "invalid_value",
        ),
        ({"response_format": {"type": "text", "x": 1}}, "response_format.x", "unknown_parameter"),
        ({"guided_json": {}, "guided_regex": "a"}, "guided_regex", "invalid_value"),
        ({"structured_outputs": {}}, "structured_outputs", "invalid_value"),
        (
            {"structured_outputs": {"choice": ["a"]}},
            "structured_outputs.choice",
            "unknown_parameter",
        ),
        ({"guided_choice": ["a"]}, "guided_choice", "unsupported_parameter"),
        ({"store": True}, "store", "unsupported_parameter"),
        ({"presence_penalty": False}, "presence_penalty", "invalid_value"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"temperature": 2.5}, "temperature", "invalid_value"),
        ({"temperature": "1"}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "max_completion_tokens", "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stop": ["a"] * 17}, "stop", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
        ({"\ud800": 1}, None, None),
        ({"model": "\ud800"}, "model", "invalid_value"),
        ({"user": 3}, "user", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "invalid_value"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            None,
            "invalid_value",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "name": "bob"}]},
            "messages[0].name",
            "unsupported_parameter",
        ),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content", None),
    ],
)
def test_what_would_be_ignored_is_refused_by_name(
    site: Any, acme: str, extra: dict[str, object], param: str | None, code: str | None
) -> None:
    content = json.dumps({**HELLO, **extra})
    headers = {"content-type": "application/json"}
    error = error_of(site.call(acme, "POST", CHAT, content=content, headers=headers), 400)
    if param is not None:
        assert error["param"] == param
    if code is not None:
        assert error["code"] == code
    assert site.engine.requests == []


@pytest.mark.parametrize("prompt", ["", [], [[]], [1, "a"], [-1], [264], 5, None, [1.5], [True]])
def test_bad_prompts_are_refused(site: Any, acme: str, prompt: object) -> None:
    answer = site.call(acme, "POST", "/v1/completions", json={"model": "tiny", "prompt": prompt})
    assert error_of(answer, 400)["param"] == "prompt"


def test_a_prompt_over_the_context_is_refused(site: Any, acme: str) -> None:
    long = "x" * 128
    for path, body, param in (
        ("/v1/completions", {"prompt": long}, "prompt"),
        ("/v1/completions", {"prompt": "x" * 100, "max_tokens": 29}, "max_tokens"),
        (CHAT, {"messages": [{"role": "user", "content": long}]}, "messages"),
    ):
        answer = site.call(acme, "POST", path, json={"model": "tiny", **body})
        error = error_of(answer, 400)
        assert error["param"] == param
        assert error["code"] == "context_length_exceeded"
        assert "128" in error["message"]
    fits = {"model": "tiny", "prompt": "x" * 100, "max_tokens": 28}
    assert site.call(acme, "POST", "/v1/completions", json=fits).status_code == 200


def test_a_full_queue_is_503_with_retry_after_and_no_usage(site: Any, acme: str) -> None:
    site.engine.max_waiting = 0
    for stream in (False, True):
        answer = site.call(acme, "POST", CHAT, json={**HELLO, "stream": stream})
        assert error_of(answer, 503)["code"] == "server_is_overloaded"
        assert answer.headers["retry-after"] == "1"
    assert site.usage(acme) == []


def test_a_batch_is_admitted_whole_or_refused(site: Any, acme: str) -> None:
    site.engine.max_waiting = 1
    site.engine.delay_s = 0.01
    body = {"model": "tiny", "prompt": ["abc", "abc"]}
    error_of(site.call(acme, "POST", "/v1/completions", json=body), 503)
    assert len(site.engine.aborted) >= 1


@pytest.mark.parametrize(
    ("fault", "code"),
    [(EngineDrainingError("x"), "draining"), (EngineDeadError("boom"), "engine_stopped")],
)
def test_an_engine_that_cannot_is_503(site: Any, acme: str, fault: Exception, code: str) -> None:
    site.engine.admission_error = fault
    error = error_of(site.call(acme, "POST", CHAT, json=HELLO), 503)
    assert error["code"] == code
    assert "boom" not in error["message"]


def test_a_bug_is_500_without_internals(site: Any, acme: str) -> None:
    site.engine.admission_error = KeyError("secret detail")
    answer = site.call(acme, "POST", CHAT, json=HELLO)
    assert error_of(answer, 500)["code"] == "internal_error"
    assert "secret" not in answer.text


def test_a_failed_request_is_500_with_the_engines_reason(site: Any, acme: str) -> None:
    site.engine.fails_after = 0
    for stream in (False, True):  # nothing was sent yet: a stream too is an honest 500
        answer = site.call(acme, "POST", CHAT, json={**HELLO, "stream": stream})
        error = error_of(answer, 500)
        assert "not finite" in error["message"]
        assert error["code"] == "non_finite"
        assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("fault", "status", "code", "headers"),
    [
        ("queue_timeout", 503, "queue_timeout", {"retry-after": "1"}),
        ("adapter_loading", 503, "adapter_loading", {"retry-after": "2"}),
        ("adapter_unavailable", 503, "adapter_unavailable", {"retry-after": "1"}),
        ("engine_failed", 503, "engine_stopped", {"retry-after": "30"}),
        ("deadline_exceeded", 504, "deadline_exceeded", {"x-should-retry": "false"}),
        ("no_token_allowed", 400, "no_token_allowed", {}),
    ],
)
def test_what_befalls_a_request_in_the_engine_has_its_own_code(
    site: Any, acme: str, fault: str, status: int, code: str, headers: dict[str, str]
) -> None:
    site.engine.fails_after, site.engine.error_code = 0, fault
    for stream in (False, True):
        answer = site.call(acme, "POST", CHAT, json={**HELLO, "stream": stream})
        assert error_of(answer, status)["code"] == code
        assert headers.items() <= dict(answer.headers).items()
    assert site.usage(acme)[0]["num_model_requests"] == 2


def test_a_failure_in_mid_stream_is_an_error_frame(site: Any, acme: str) -> None:
    site.engine.fails_after = 1
    site.engine.delay_s = 0.05
    answer = site.call(acme, "POST", CHAT, json={**HELLO, "stream": True})
    assert answer.status_code == 200
    last = answer.text.strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "non_finite"
    with pytest.raises(openai.APIError, match="not finite"):
        list(
            site.client(acme).chat.completions.create(
                model="tiny", messages=HELLO["messages"], stream=True
            )
        )


def test_unknown_urls_and_methods_are_errors_of_the_same_shape(site: Any, acme: str) -> None:
    assert error_of(site.call(acme, "GET", "/v1/nope"), 404)["code"] == "not_found"
    answer = site.call(acme, "GET", CHAT)
    assert error_of(answer, 405)["code"] == "method_not_allowed"
    assert answer.headers["allow"] == "POST"
    error_of(site.call(acme, "GET", "/v1/models/"), 404)


def test_a_body_over_the_cap_is_413(site: Any, acme: str) -> None:
    big = {**HELLO, "messages": [{"role": "user", "content": "x" * 200_000}]}
    error = error_of(site.call(acme, "POST", CHAT, json=big), 413)
    assert error["code"] == "payload_too_large"
    chunks = iter([json.dumps(big).encode()])
    headers = {"content-type": "application/json"}
    error_of(site.call(acme, "POST", CHAT, content=chunks, headers=headers), 413)
