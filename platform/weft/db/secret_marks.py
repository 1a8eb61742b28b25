"""Whether a database was used with the same secret before: works on it before a server does.

Knows marks, which tell nothing of the secrets that they are of.
"""

from __future__ import annotations

from typing import cast

from sqlalchemy import Connection, Table, delete, insert, select
from sqlalchemy.exc import IntegrityError

from weft.db.models import SecretMark
from weft.db.schema import connecting

_TABLE = cast(Table, SecretMark.__table__)


def is_known(url: str, purpose: str, mark: str) -> bool:
    """Whether `mark` is the database's; it becomes that if there is none yet."""
    with connecting(url) as connection:
        found = _find(connection, purpose)
    if found is None:
        try:
            with connecting(url) as connection:
                connection.execute(insert(_TABLE).values(purpose=purpose, mark=mark))
            return True
        except IntegrityError:  # another process was first
            with connecting(url) as connection:
                found = _find(connection, purpose)
    return found == mark


def replace(url: str, purpose: str, mark: str) -> None:
    """Make `mark` the database's."""
    with connecting(url) as connection:
        connection.execute(delete(_TABLE).where(_TABLE.c.purpose == purpose))
        connection.execute(insert(_TABLE).values(purpose=purpose, mark=mark))


def _find(connection: Connection, purpose: str) -> str | None:
    found: str | None = connection.scalar(select(_TABLE.c.mark).where(_TABLE.c.purpose == purpose))
    return found
