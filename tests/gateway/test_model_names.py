"""SGLang's way to name a model: `<base>:<adapter>`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Lora = Callable[..., dict[str, bytes]]


def test_an_adapter_may_be_named_behind_its_base(site: Any, acme: str, lora: Lora) -> None:
    site.create_adapter(acme, "bot")
    digest = site.upload(acme, "bot", lora()).json()["digest"]
    for name in ("tiny:bot", "tiny:bot@default", "tiny:bot@v1"):
        answer = site.client(acme).completions.create(model=name, prompt="abc")
        assert answer.model == "bot@v1"
        assert site.engine.requests[-1].adapter_digest == digest
        card = site.client(acme).models.retrieve(name)
        assert (card.id, card.model_dump()["root"]) == (name, "bot@v1")


def test_another_base_or_no_adapter_behind_the_colon_is_no_model(
    site: Any, acme: str, lora: Lora
) -> None:
    site.create_adapter(acme, "bot")
    site.upload(acme, "bot", lora())
    for model in ("tiny:", "tiny:tiny", "tiny:box", "other:bot", "tiny:tiny:bot"):
        answer = site.call(acme, "POST", "/v1/completions", json={"model": model, "prompt": "abc"})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (404, "model_not_found"), model
        assert model in error["message"]
