"""Rows for any table, made from what the database says about its columns."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    func,
    insert,
    select,
)

NUM_ROWS = 3
# where a column takes certain values only, or the rows of a table depend on each other
VALUES: dict[tuple[str, str], Any] = {
    ("adapter_versions", "state"): "ready",
    ("ledger_entries", "amount_pico"): 0,
}


def fill(connection: Connection) -> dict[str, int]:
    """Put rows into each table that is empty; returns the number of rows by table."""
    metadata = MetaData()
    metadata.reflect(connection)
    counts = {}
    for table in metadata.sorted_tables:
        if table.name == "alembic_version":
            continue
        if not connection.scalar(select(func.count()).select_from(table)):
            connection.execute(insert(table), [_row(table, n) for n in range(NUM_ROWS)])
        counts[table.name] = connection.scalar(select(func.count()).select_from(table)) or 0
    return counts


def _row(table: Table, number: int) -> dict[str, Any]:
    return {column.name: _value(table, column, number) for column in table.columns}


def _value(table: Table, column: Column[Any], number: int) -> Any:
    if (table.name, column.name) in VALUES:
        return VALUES[table.name, column.name]
    if column.nullable and number == 1 and not column.primary_key:
        return None
    if column.foreign_keys:
        # the row of the same number in the other table
        other = next(iter(column.foreign_keys)).column
        return _value(other.table, other, number)
    if isinstance(column.type, JSON):
        return {"number": number}
    if isinstance(column.type, Boolean):
        return bool(number % 2)
    if isinstance(column.type, Integer):
        return number
    if isinstance(column.type, Float):
        return number / 2
    if isinstance(column.type, LargeBinary):
        return bytes([number])
    if isinstance(column.type, String):
        text = f"{number}-{table.name}-{column.name}"
        return text[: column.type.length]
    raise NotImplementedError(f"a value for {table.name}.{column.name} of type {column.type}")
