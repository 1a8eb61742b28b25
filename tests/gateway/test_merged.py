"""`merged_adapters` of a request: several of the caller's adapters as one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

Lora = Callable[..., dict[str, bytes]]

CHAT = "/v1/chat/completions"
MERGED = {"ids": ["one", "two@v1"], "weights": [0.75, 0.25]}


def chat(**extra: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": "hi"}], **extra}


@pytest.fixture
def two(site: Any, acme: str, lora: Lora) -> str:
    """A tenant's key; it has the adapters `one` and `two`."""
    for seed, name in enumerate(("one", "two")):
        site.create_adapter(acme, name)
        site.upload(acme, name, lora(seed)).raise_for_status()
    return acme


def test_a_request_runs_what_its_adapters_are_merged_to(site: Any, two: str) -> None:
    """The one test here that has PEFT merge, in a process of its own."""
    answer = site.call(two, "POST", CHAT, json=chat(merged_adapters=MERGED))
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "~merged@v1"
    digest = answer.headers["x-weft-adapter-digest"]
    assert site.engine.requests[-1].adapter_digest == digest
    assert answer.headers["x-weft-merged-from"] == "one@v1, two@v1"
    version = site.call(two, "GET", "/v1/adapters/~merged/versions/1").json()
    assert (version["digest"], version["source"]["weights"]) == (digest, [0.75, 0.25])

    # every route has it, at once: it is made already
    with_base = chat(model="tiny", merged_adapters=MERGED, stream=True)
    assert '"model":"~merged@v1"' in site.call(two, "POST", CHAT, json=with_base).text
    text = {"prompt": "hi", "merged_adapters": MERGED}
    assert site.call(two, "POST", "/v1/completions", json=text).json()["model"] == "~merged@v1"
    lorax = {"inputs": "hi", "parameters": {"merged_adapters": {**MERGED, "density": 0.0}}}
    answer = site.call(two, "POST", "/generate", json=lorax)
    assert answer.headers["x-adapter-id"] == "one@v1,two@v1"
    assert {request.adapter_digest for request in site.engine.requests} == {digest}
    (usage,) = site.usage(two)
    assert (usage["model"], usage["num_model_requests"]) == ("~merged@v1", 4)

    # it is the tenant's own, and no model to be named
    assert "~merged" not in site.call(two, "GET", "/v1/models").text
    assert site.call(two, "POST", CHAT, json=chat(model="~merged@v1")).status_code == 404
    other = site.tenant("other")
    mine = site.call(other, "POST", CHAT, json=chat(merged_adapters=MERGED))
    assert (mine.status_code, mine.json()["error"]["code"]) == (404, "model_not_found")


def test_one_adapter_and_several_exclude_each_other(site: Any, two: str) -> None:
    for extra in ({"adapter_id": "one"}, {"model": "one"}, {"model": "one", "adapter_id": "one"}):
        answer = site.call(two, "POST", CHAT, json=chat(merged_adapters=MERGED, **extra))
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "adapter_conflict"), extra
        assert error["param"] == "merged_adapters"
    parameters = {"adapter_id": "one", "merged_adapters": MERGED}
    body = {"inputs": "hi", "parameters": parameters}
    answer = site.call(two, "POST", "/generate", json=body)
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")


def test_a_merge_that_is_none_is_refused_by_the_field(site: Any, two: str) -> None:
    cases: list[tuple[dict[str, object], str]] = [
        ({"ids": []}, "merged_adapters"),
        ({"weights": [1.0]}, "merged_adapters"),
        ({"weights": [1.0, 1e9]}, "merged_adapters.weights[1]"),
        ({"merge_strategy": "average"}, "merged_adapters.merge_strategy"),
        ({"merge_strategy": "ties"}, "merged_adapters"),
        ({"merge_strategy": "ties", "density": 1.5}, "merged_adapters.density"),
        ({"majority_sign_method": "loudest"}, "merged_adapters.majority_sign_method"),
        ({"ids": ["one", "tiny"]}, "merged_adapters.ids[1]"),
        ({"ids": ["one"] * 17, "weights": [1.0] * 17}, "merged_adapters.ids"),
        ({"invented": 1}, "merged_adapters.invented"),
    ]
    for change, param in cases:
        body = chat(merged_adapters={**MERGED, **change})
        answer = site.call(two, "POST", CHAT, json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), change
    assert site.engine.requests == []


def test_another_tenants_adapter_looks_like_none(site: Any, two: str) -> None:
    other = site.tenant("other")
    bodies = [chat(merged_adapters={**MERGED, "ids": [name]}) for name in ("one", "box")]
    answers = [site.call(other, "POST", CHAT, json=body) for body in bodies]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].content.replace(b"one", b"box") == answers[1].content
    assert json.loads(answers[0].content)["error"]["param"] == "merged_adapters.ids[0]"
