"""Keys: their text form, and what is kept of them."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from weft.tenancy.keys import create_key, hash_secret, try_parse_key
from weft.tenancy.secret_files import SecretFileError, read_or_create_secrets


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


@pytest.mark.parametrize(
    "text", ["", "weft", "weft_live_", "weft_live_a_b", "sk-abc", "é" * 71, "weft_live_" + "0" * 62]
)
def test_junk_is_no_key(text: str) -> None:
    assert try_parse_key(text) is None


def test_the_hash_depends_on_the_pepper() -> None:
    assert hash_secret("s", b"a") != hash_secret("s", b"b")
    assert len(hash_secret("s", b"a")) == 64


def test_secrets_are_made_once_and_kept_private(tmp_path: Path) -> None:
    first = read_or_create_secrets(tmp_path)
    again = read_or_create_secrets(tmp_path)
    assert first.is_new
    assert not again.is_new
    assert (first.pepper, first.operator_key) == (again.pepper, again.operator_key)
    assert first.operator_key not in repr(first)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["key_pepper", "operator_key"]
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    read_or_create_secrets(tmp_path)
    (tmp_path / "key_pepper").chmod(0o644)
    with pytest.raises(SecretFileError, match="chmod 600"):
        read_or_create_secrets(tmp_path)


def test_a_damaged_secret_is_refused(tmp_path: Path) -> None:
    read_or_create_secrets(tmp_path)
    (tmp_path / "operator_key").write_text("weft_admin_x")
    with pytest.raises(SecretFileError, match="no operator key"):
        read_or_create_secrets(tmp_path)
