"""Secrets that live in the data folder: the pepper of key hashes and the operator's key.

Each file is made once, with mode 600; one that others can read is refused. Knows no database.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from weft.tenancy.keys import create_key, try_parse_key


class SecretFileError(Exception):
    """A secret's file cannot be trusted; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class SecretFiles:
    """What the data folder's secret files hold. `is_new` when the operator key was made now."""

    pepper: bytes = field(repr=False)
    operator_key: str = field(repr=False)
    operator_key_file: Path
    is_new: bool

    def derive(self, purpose: str) -> bytes:
        """32 bytes for one purpose: HKDF-SHA-256 (RFC 5869), labelled with it."""
        kdf = HKDF(algorithm=SHA256(), length=32, salt=b"weft", info=purpose.encode())
        return kdf.derive(self.pepper)


def read_or_create_secrets(data_dir: Path) -> SecretFiles:
    """Read both secrets, making those that are missing."""
    data_dir.mkdir(parents=True, exist_ok=True)
    pepper, _ = _read_or_create(data_dir / "key_pepper", lambda: secrets.token_hex(32))
    operator_file = data_dir / "operator_key"
    operator_key, is_new = _read_or_create(operator_file, lambda: str(create_key("admin")))
    parsed = try_parse_key(operator_key)
    if parsed is None or parsed.kind != "admin":
        raise SecretFileError(f"{operator_file} holds no operator key; remove it to make a new one")
    if len(pepper) != 64:
        raise SecretFileError(f"{data_dir / 'key_pepper'} is damaged; restore it from a backup")
    return SecretFiles(bytes.fromhex(pepper), operator_key, operator_file, is_new)


def _read_or_create(file: Path, create: Callable[[], str]) -> tuple[str, bool]:
    # written whole under another name first: a reader sees the full secret or none
    if not file.exists():
        new = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as stream:
            stream.write(create() + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(new, file)
            return file.read_text(encoding="ascii").strip(), True
        except FileExistsError:  # another process was first: its secret counts
            return file.read_text(encoding="ascii").strip(), False
        finally:
            new.unlink()
    if stat.S_IMODE(file.stat().st_mode) & 0o077:
        raise SecretFileError(f"{file} can be read by others; run: chmod 600 {file}")
    return file.read_text(encoding="ascii").strip(), False
