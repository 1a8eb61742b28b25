"""Versions that have become ready are compared with the base, on the platform's own account."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from weft.settings import ServerSettings

Lora = Callable[..., dict[str, bytes]]


@pytest.fixture
def settings(settings: ServerSettings) -> ServerSettings:
    return replace(settings, smoke_check=True)


@pytest.fixture
def compared(site: Any, acme: str) -> Callable[[], dict[str, Any]]:
    """Gives the report of version 1 of `bot`, once it says something of a comparison."""

    def read() -> dict[str, Any]:
        deadline_s = time.monotonic() + 10
        while True:
            version = site.call(acme, "GET", "/v1/adapters/bot/versions/1").json()
            report: dict[str, Any] = version["report"]
            if report["smoke"] is not None or report["warnings"]:
                return report
            assert time.monotonic() < deadline_s, "it was not compared"
            time.sleep(0.01)

    return read


def test_an_adapter_whose_answer_is_the_bases_is_reported(
    site: Any, acme: str, lora: Lora, compared: Callable[[], dict[str, Any]]
) -> None:
    site.create_adapter(acme, "bot")
    site.upload(acme, "bot", lora(1)).raise_for_status()
    report = compared()  # the engine of these tests echoes, whatever the adapter
    assert report["smoke"]["max_logprob_change"] == 0
    assert report["smoke"]["base_token_id"] == report["smoke"]["adapter_token_id"]
    assert any("may change nothing" in warning for warning in report["warnings"])
    base, adapter = site.engine.requests
    assert (base.adapter_digest, adapter.adapter_digest) == (None, report["digest"])
    assert base.tenant_id == adapter.tenant_id == "", "it is the platform's own"
    assert site.usage(acme) == []


def test_an_adapter_that_fails_on_the_prompt_is_reported(
    site: Any, acme: str, lora: Lora, compared: Callable[[], dict[str, Any]]
) -> None:
    site.engine.fails_after = 0
    site.create_adapter(acme, "bot")
    site.upload(acme, "bot", lora(1)).raise_for_status()
    report = compared()
    assert report["smoke"] is None
    assert any("could not be run on the base" in warning for warning in report["warnings"])
