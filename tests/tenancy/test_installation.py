"""A database and the secret that its keys were made with belong together."""

from __future__ import annotations

from pathlib import Path

import pytest

from weft.tenancy.installation import adopt_secret, prepare_installation
from weft.tenancy.secret_files import SecretFileError


def test_a_database_refuses_another_secret_and_names_the_ways_out(
    database_url: str, tmp_path: Path
) -> None:
    first = prepare_installation(tmp_path / "one", database_url)
    again = prepare_installation(tmp_path / "one", database_url)
    assert (again.master, again.operator_key) == (first.master, first.operator_key)
    with pytest.raises(SecretFileError, match="WEFT_MASTER_SECRET.*adopt-secret") as caught:
        prepare_installation(tmp_path / "two", database_url)
    secret = (tmp_path / "two" / "master_secret").read_text().strip()
    assert secret not in str(caught.value)
    # as a second machine has it
    (tmp_path / "two" / "master_secret").write_text(first.master)
    assert prepare_installation(tmp_path / "two", database_url).pepper == first.pepper


def test_a_new_secret_takes_the_place_of_one_that_is_lost(
    database_url: str, tmp_path: Path
) -> None:
    prepare_installation(tmp_path / "lost", database_url)
    adopt_secret(tmp_path / "new", database_url)
    prepare_installation(tmp_path / "new", database_url)
    with pytest.raises(SecretFileError):
        prepare_installation(tmp_path / "lost", database_url)
