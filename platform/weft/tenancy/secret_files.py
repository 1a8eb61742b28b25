"""The secrets of an installation: one master, from which keys for each purpose are derived, and
the operator's first key.

Both come from the environment (`WEFT_MASTER_SECRET`, `WEFT_OPERATOR_KEY`, or the same names with
`_FILE` for a file that holds it), which is how several machines share them, or else from files in
the data folder, made once with mode 600; one that others can read is refused. Knows no database.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from weft.tenancy.keys import create_key, try_parse_key

# each purpose has a key of its own, so that what leaks of one tells nothing of another
Purpose = Literal["key-pepper", "session", "csrf", "encryption", "idempotency"]

MASTER_SECRET, OPERATOR_KEY = "WEFT_MASTER_SECRET", "WEFT_OPERATOR_KEY"
MIN_MASTER_CHARS = 32
_MIN_DISTINCT_CHARS = 10
_PLACEHOLDERS = ("changeme", "change-me", "change_me", "example", "password", "placeholder")


class SecretFileError(Exception):
    """A secret cannot be trusted; the message says why and what to do, never the secret."""


@dataclass(frozen=True, slots=True)
class SecretFiles:
    """The secrets. `is_new` when the operator key was made now.

    `operator_key_file` is None where the environment holds the operator key. `legacy_pepper` is
    that of a data folder from before there was a master: its keys were hashed with it.
    """

    master: str = field(repr=False)
    operator_key: str = field(repr=False)
    operator_key_file: Path | None
    is_new: bool
    legacy_pepper: bytes | None = field(default=None, repr=False)

    @property
    def pepper(self) -> bytes:
        """What the hashes of keys are made with."""
        return self.legacy_pepper or self.derive("key-pepper")

    def derive(self, purpose: Purpose) -> bytes:
        """32 bytes for one purpose: HKDF-SHA-256 (RFC 5869) of the master, labelled with it."""
        kdf = HKDF(algorithm=SHA256(), length=32, salt=b"weft", info=purpose.encode())
        return kdf.derive(self.master.encode())


def read_or_create_secrets(data_dir: Path, environ: Mapping[str, str] = os.environ) -> SecretFiles:
    """Read the secrets, making those that are nowhere; SecretFileError for an unsafe one."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    master_file = data_dir / "master_secret"
    master, where = read_from_environment(MASTER_SECRET, environ), MASTER_SECRET
    if master is None:
        master, _ = _read_or_create(master_file, lambda: secrets.token_hex(32))
        where = str(master_file)
    _refuse_weak(master, where)
    operator_file: Path | None = None
    operator_key, is_new = read_from_environment(OPERATOR_KEY, environ), False
    where = OPERATOR_KEY
    if operator_key is None:
        operator_file = data_dir / "operator_key"
        operator_key, is_new = _read_or_create(operator_file, lambda: str(create_key("operator")))
        where = str(operator_file)
    parsed = try_parse_key(operator_key)
    # the first release wrote "admin" where it means an operator
    if parsed is None or parsed.kind not in ("operator", "admin"):
        remedy = "remove it to make a new one" if operator_file else "correct or unset it"
        raise SecretFileError(f"{where} holds no operator key; {remedy}")
    return SecretFiles(master, operator_key, operator_file, is_new, _legacy_pepper(data_dir))


def _legacy_pepper(data_dir: Path) -> bytes | None:
    file = data_dir / "key_pepper"
    if not file.exists():
        return None
    text = _read(file)
    try:
        pepper = bytes.fromhex(text)
    except ValueError:
        pepper = b""
    if len(pepper) != 32:
        raise SecretFileError(f"{file} is damaged; restore it from a backup")
    return pepper


def _refuse_weak(master: str, where: str) -> None:
    """Length and variety catch what a person types; a random secret passes."""
    if len(master) < MIN_MASTER_CHARS:
        raise SecretFileError(
            f"{where} has {len(master)} characters; a master secret needs {MIN_MASTER_CHARS} or "
            "more, for example from: openssl rand -hex 32"
        )
    lower = master.lower()
    if len(set(master)) < _MIN_DISTINCT_CHARS or any(word in lower for word in _PLACEHOLDERS):
        raise SecretFileError(
            f"{where} holds no random secret; make one, for example with: openssl rand -hex 32"
        )


def read_from_environment(name: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """The secret of this name, or in the file that `<name>_FILE` names; None for neither."""
    value, file = environ.get(name), environ.get(f"{name}_FILE")
    if value is not None and file is not None:
        raise SecretFileError(f"set {name} or {name}_FILE, not both")
    if file is None:
        return None if value is None else value.strip()
    try:
        # not the mode: an orchestrator's secret is mounted with one that it chose
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SecretFileError(f"{name}_FILE: {file} could not be read: {error}") from error


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
            return _read(file), True
        except FileExistsError:  # another process was first: its secret counts
            return _read(file), False
        finally:
            new.unlink()
    return _read(file), False


def _read(file: Path) -> str:
    if stat.S_IMODE(file.stat().st_mode) & 0o077:
        raise SecretFileError(f"{file} can be read by others; run: chmod 600 {file}")
    try:
        return file.read_text(encoding="ascii").strip()
    except UnicodeDecodeError as error:
        raise SecretFileError(f"{file} is damaged; restore it from a backup") from error
