"""Adapters with tokens and chat templates of their own, over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save
from tokenizers import AddedToken, Tokenizer

from weft.messages import RequestVocabulary
from weft.templates import TOO_SLOW, TemplateRenderer

NUM_BASE, TOOL, END = 264, 264, 265
TEMPLATE = "{% for m in messages %}<tool>{{ m.content }}{% endfor %}<stop>"

Files = dict[str, bytes]


@pytest.fixture
def files(lora: Callable[..., Files], settings: Any) -> Callable[..., Files]:
    """(num_rows, **keys of tokenizer_config.json) -> an adapter with two tokens added to it."""

    def create(num_rows: int = 266, **config: object) -> Files:
        found = lora()
        rows = np.random.default_rng(0).normal(size=(num_rows, 16)).astype(np.float32)
        names = ("model.embed_tokens", "lm_head")
        own = {f"base_model.model.{name}.weight": rows for name in names}
        tensors = load(found["adapter_model.safetensors"]) | own
        base: Path = settings.base_dir
        tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
        tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
        tokenizer.add_special_tokens([AddedToken("<stop>", special=True, normalized=False)])
        raw = json.loads((base / "tokenizer_config.json").read_text())
        return found | {
            "adapter_model.safetensors": save(tensors),
            "tokenizer.json": tokenizer.to_str().encode(),
            "tokenizer_config.json": json.dumps(raw | config).encode(),
        }

    return create


@pytest.fixture
def bot(site: Any, acme: str, files: Callable[..., Files]) -> str:
    """A tenant's key; its adapter "bot" has a template and an end of its own."""
    site.create_adapter(acme, "bot")
    uploaded = site.upload(acme, "bot", files(chat_template=TEMPLATE, eos_token="<stop>"))
    assert uploaded.status_code == 201, uploaded.text
    return acme


def test_prompts_are_made_of_the_adapters_tokens_by_its_template(site: Any, bot: str) -> None:
    body = {"model": "bot", "messages": [{"role": "user", "content": "ab"}]}
    site.call(bot, "POST", "/v1/chat/completions", json=body).raise_for_status()
    request = site.engine.requests[-1]
    assert request.prompt_token_ids == (TOOL, 97, 98, END)
    texts = ((TOOL, "<tool>"), (END, ""))
    assert request.vocabulary == RequestVocabulary(266, frozenset((261, END)), texts)
    site.call(bot, "POST", "/v1/completions", json={"model": "bot", "prompt": "a<tool><stop>"})
    assert site.engine.requests[-1].prompt_token_ids == (97, TOOL, END)
    base = site.engine.info.base_name
    site.call(bot, "POST", "/v1/chat/completions", json=body | {"model": base}).raise_for_status()
    assert site.engine.requests[-1].vocabulary is None
    assert TOOL not in site.engine.requests[-1].prompt_token_ids


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"prompt": [97, 266]}, "prompt"),
        ({"prompt": "a", "logit_bias": {"266": 1}}, "logit_bias"),
        ({"prompt": "a", "stop_token_ids": [266]}, "stop_token_ids"),
    ],
)
def test_ids_are_checked_against_the_models_own_vocabulary(
    site: Any, bot: str, part: dict[str, Any], param: str
) -> None:
    def answer(model: str, body: dict[str, Any]) -> Any:
        return site.call(bot, "POST", "/v1/completions", json={"model": model, **body})

    refused = answer("bot", part)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    own = json.loads(json.dumps(part).replace("266", "265"))
    assert answer("bot", own).status_code == 200
    assert answer(site.engine.info.base_name, own).status_code == 400


def test_logprobs_show_the_adapters_tokens(site: Any, bot: str) -> None:
    site.engine.id_offset = TOOL - ord("a")
    body = {"model": "bot", "prompt": "aab", "max_tokens": 2, "logprobs": 0}
    answer = site.call(bot, "POST", "/v1/completions", json=body).json()
    assert answer["choices"][0]["logprobs"]["tokens"] == ["<tool>", "<tool>"]


def test_two_versions_that_differ_in_the_template_alone_are_two(
    site: Any, bot: str, files: Callable[..., Files]
) -> None:
    again = site.upload(bot, "bot", files(chat_template=TEMPLATE, eos_token="<stop>"))
    other = site.upload(bot, "bot", files(chat_template="other"))
    assert (again.status_code, other.status_code) == (200, 201)
    assert again.json()["digest"] != other.json()["digest"]


def test_what_cannot_be_served_of_a_tokenizer_is_refused(
    site: Any, acme: str, files: Callable[..., Files], lora: Callable[..., Files]
) -> None:
    site.create_adapter(acme, "bot")

    def code_of(uploaded: Files) -> str:
        answer = site.upload(acme, "bot", uploaded)
        assert answer.status_code == 422, answer.text
        return str(answer.json()["error"]["details"][0]["code"])

    assert code_of(files(num_rows=265)) == "token_without_row"
    assert code_of(files() | {"tokenizer.json": b"{}"}) == "invalid_tokenizer"
    assert code_of(files() | {"tokenizer.json": b"["}) == "invalid_tokenizer"
    assert code_of(files(chat_template="{{")) == "invalid_tokenizer"
    assert code_of(lora(weft_tokenizer={"chat_template": "mine"})) == "invalid_tokenizer"


def test_an_unchanged_tokenizer_is_the_bases(
    site: Any, acme: str, lora: Callable[..., Files], settings: Any
) -> None:
    site.create_adapter(acme, "bot")
    plain = site.upload(acme, "bot", lora())
    base = {
        name: (settings.base_dir / name).read_bytes()
        for name in ("tokenizer.json", "tokenizer_config.json")
    }
    same = site.upload(acme, "bot", lora() | base)
    assert (plain.status_code, same.status_code) == (201, 200)


def test_a_template_that_takes_too_long_is_ended_and_refused_for_a_while() -> None:
    renderer = TemplateRenderer(timeout_s=0.3)
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    for _ in range(2):
        with pytest.raises(ValueError, match=TOO_SLOW):
            renderer.render(endless, {})
    assert renderer.render("{{ a }}", {"a": "b"}) == "b"
    for hostile in ("{{ 'x' * 10 ** 10 }}", "{{ 1 / 0 }}", "{{ ''.__class__.mro() }}", "{% if %}"):
        with pytest.raises(ValueError, match="template"):
            renderer.render(hostile, {})
    assert renderer.render("{{ a }}", {"a": "c"}) == "c"
    renderer.close()
