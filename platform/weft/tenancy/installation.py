"""Makes a data folder and its database ready for each other: secrets, schema, and a match."""

from __future__ import annotations

from pathlib import Path

from weft.db import secret_marks
from weft.db.schema import prepare
from weft.tenancy.keys import hash_secret
from weft.tenancy.secret_files import SecretFileError, SecretFiles, read_or_create_secrets

_PURPOSE = "key-pepper"


def prepare_installation(data_dir: Path, url: str) -> SecretFiles:
    """Make what is new ready; idempotent.

    SchemaMismatchError for a database of another release, SecretFileError for one that was used
    with another secret: every key in it would be refused as wrong, and nobody would know why.
    """
    secrets = read_or_create_secrets(data_dir)
    prepare(url)
    if not secret_marks.is_known(url, _PURPOSE, _mark(secrets)):
        raise SecretFileError(
            "The keys in the database were made with another secret than this one. Restore "
            f"{data_dir / 'master_secret'}, or give every machine the same WEFT_MASTER_SECRET. If "
            "the other secret is lost, run: weft key adopt-secret (all keys have to be made anew)"
        )
    return secrets


def adopt_secret(data_dir: Path, url: str) -> None:
    """Take this data folder's secret for the database's: keys made with another one are dead."""
    secrets = read_or_create_secrets(data_dir)
    prepare(url)
    secret_marks.replace(url, _PURPOSE, _mark(secrets))


def _mark(secrets: SecretFiles) -> str:
    return hash_secret("the installation", secrets.pepper)
