"""What is sealed reads back with its key and for its use only."""

from __future__ import annotations

import re

import pytest

from weft.sealing import UnsealError, seal, unseal

KEY = b"k" * 32


def test_what_is_sealed_reads_back_and_shows_nothing() -> None:
    for text in ("", "a secret", "ключ" * 100):
        sealed = seal(KEY, "use", text)
        assert unseal(KEY, "use", sealed) == text
        assert re.fullmatch(r"[A-Za-z0-9._-]+", sealed), "no cookie would take it as it is"
        assert seal(KEY, "use", text) != sealed
    assert "secret" not in seal(KEY, "use", "a secret")


def test_another_key_use_or_text_is_refused() -> None:
    sealed = seal(KEY, "use", "a secret")
    for key, use, text in (
        (b"l" * 32, "use", sealed), (KEY, "other use", sealed), (KEY, "use", sealed[:-2]),
        (KEY, "use", sealed.replace("v1.", "v2.")), (KEY, "use", "v1."), (KEY, "use", ""),
        (KEY, "use", "v1.é"), (KEY, "use", "v1.A"), (KEY, "use", sealed + "AAAA"),
    ):  # fmt: skip
        with pytest.raises(UnsealError):
            unseal(key, use, text)
