"""Keys: their text form, and the hash that is kept of them."""

from __future__ import annotations

import pytest

from weft.tenancy.keys import create_key, hash_secret, try_parse_key


def test_a_key_reads_back() -> None:
    key = create_key("live")
    text = str(key)
    assert text.startswith(f"weft_live_{key.key_id}_")
    assert len(text) == len("weft_live_") + 12 + 1 + 43 + 6
    assert try_parse_key(text) == key
    assert key.secret not in repr(key)
    assert str(create_key("live")) != text


def test_every_mistyped_character_is_noticed() -> None:
    text = str(create_key("live"))
    for i, char in enumerate(text):
        wrong = text[:i] + ("x" if char != "x" else "y") + text[i + 1 :]
        assert try_parse_key(wrong) is None


def test_a_rotated_key_keeps_its_kind_and_id() -> None:
    for kind in ("live", "admin", "operator"):
        key = create_key(kind)
        rotated = create_key(kind, key.key_id)
        assert (rotated.kind, rotated.key_id) == (kind, key.key_id)
        assert rotated.secret != key.secret
        assert try_parse_key(str(rotated)) == rotated


@pytest.mark.parametrize(
    "text", ["", "weft", "weft_live_", "weft_live_a_b", "sk-abc", "é" * 71, "weft_live_" + "0" * 62]
)
def test_junk_is_no_key(text: str) -> None:
    assert try_parse_key(text) is None


def test_the_hash_depends_on_the_pepper() -> None:
    assert hash_secret("s", b"a") != hash_secret("s", b"b")
    assert len(hash_secret("s", b"a")) == 64
