"""The secrets of an installation: made once, kept private, derived by purpose, never weak."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from weft.tenancy.keys import create_key
from weft.tenancy.secret_files import SecretFileError, SecretFiles, read_or_create_secrets

MASTER = "0123456789abcdef" * 4


def read(folder: Path, **environ: str) -> SecretFiles:
    return read_or_create_secrets(folder, environ)


def test_secrets_are_made_once_and_kept_private(tmp_path: Path) -> None:
    first, again = read(tmp_path), read(tmp_path)
    assert first.is_new
    assert not again.is_new
    assert (first.pepper, first.operator_key) == (again.pepper, again.operator_key)
    for secret in (first.operator_key, first.master):
        assert secret not in repr(first)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["master_secret", "operator_key"]
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["master_secret", "operator_key"])
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, name: str) -> None:
    read(tmp_path)
    (tmp_path / name).chmod(0o644)
    with pytest.raises(SecretFileError, match="chmod 600"):
        read(tmp_path)


def test_a_damaged_operator_key_is_refused(tmp_path: Path) -> None:
    read(tmp_path)
    for damaged in ("weft_admin_x", str(create_key("live"))):
        (tmp_path / "operator_key").write_text(damaged)
        with pytest.raises(SecretFileError, match="no operator key"):
            read(tmp_path)


def test_each_purpose_has_a_key_of_its_own(tmp_path: Path) -> None:
    secrets = read(tmp_path)
    derived = [secrets.derive(p) for p in ("key-pepper", "session", "csrf", "encryption")]
    assert len(set(derived)) == 4
    assert {len(key) for key in derived} == {32}
    assert secrets.pepper == derived[0]
    # not the master itself under another name
    assert all(secrets.master.encode() not in key for key in derived)


def test_the_derivation_is_the_standards() -> None:
    """RFC 5869 in its two steps, so that another release derives the same."""
    import hashlib
    import hmac

    extracted = hmac.new(b"weft", MASTER.encode(), hashlib.sha256).digest()
    expanded = HKDFExpand(algorithm=SHA256(), length=32, info=b"csrf").derive(extracted)
    assert SecretFiles(MASTER, "", None, False).derive("csrf") == expanded


def test_a_data_folder_from_before_the_master_keeps_its_pepper(tmp_path: Path) -> None:
    (tmp_path / "key_pepper").write_text("ab" * 32 + "\n")
    (tmp_path / "key_pepper").chmod(0o600)
    key = str(create_key("admin"))
    (tmp_path / "operator_key").write_text(key)
    (tmp_path / "operator_key").chmod(0o600)
    secrets = read(tmp_path)
    assert secrets.pepper == bytes.fromhex("ab" * 32)
    assert secrets.operator_key == key
    assert secrets.derive("session") != secrets.pepper
    (tmp_path / "key_pepper").write_text("ab" * 31)
    with pytest.raises(SecretFileError, match="damaged"):
        read(tmp_path)


def test_the_environment_comes_before_the_data_folder(tmp_path: Path) -> None:
    key = str(create_key("operator"))
    held = tmp_path / "held"
    held.write_text(f"{MASTER}\n")
    folders = [tmp_path / name for name in ("one", "two")]
    one = read(folders[0], WEFT_MASTER_SECRET=MASTER, WEFT_OPERATOR_KEY=key)
    two = read(folders[1], WEFT_MASTER_SECRET_FILE=str(held), WEFT_OPERATOR_KEY=key)
    assert one == two
    assert one.operator_key_file is None
    assert [list(folder.iterdir()) for folder in folders] == [[], []]
    with pytest.raises(SecretFileError, match="not both"):
        read(folders[0], WEFT_MASTER_SECRET=MASTER, WEFT_MASTER_SECRET_FILE=str(held))
    with pytest.raises(SecretFileError, match="could not be read"):
        read(folders[0], WEFT_MASTER_SECRET_FILE=str(tmp_path / "missing"))
    with pytest.raises(SecretFileError, match="no operator key"):
        read(folders[0], WEFT_MASTER_SECRET=MASTER, WEFT_OPERATOR_KEY="x")


@pytest.mark.parametrize(
    "weak", ["", "short", "a" * 64, "abc" * 20, "changeme-0123456789abcdefghijklmnop"]
)
def test_a_weak_master_is_refused_without_being_told(tmp_path: Path, weak: str) -> None:
    with pytest.raises(SecretFileError, match="openssl rand") as caught:
        read(tmp_path, WEFT_MASTER_SECRET=weak)
    assert not weak or weak not in str(caught.value)
