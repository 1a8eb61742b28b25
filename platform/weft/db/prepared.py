"""Statements that are made once and run often: their text and their parameters' order are kept.

Compiling and caching a statement, and an object for each row, cost more than SQLite takes to run
it. Statements of the request path are therefore made where the module is imported, with parameters
for all that differs, and run by `weft.db.transactions`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from sqlalchemy import Delete, Dialect, Insert, Select, Update

from weft.db.scope import refuse_without_mark

Values: TypeAlias = Mapping[str, object]
Row: TypeAlias = tuple[Any, ...]
Statement: TypeAlias = Select[*tuple[Any, ...]] | Insert | Update | Delete
_Processor: TypeAlias = Callable[[Any], Any]


class Prepared:
    """A statement with named parameters. An INSERT's are its table's columns, without defaults.

    What is no INSERT says whose rows it means, as everywhere: AssertionError otherwise.
    """

    def __init__(self, statement: Statement) -> None:
        if not isinstance(statement, Insert):
            refuse_without_mark(statement)
        self._statement = statement
        self._on: dict[str, Compiled] = {}

    def on(self, dialect: Dialect) -> Compiled:
        """As the database of `dialect` takes it."""
        compiled = self._on.get(dialect.name)
        if compiled is None:
            compiled = self._on[dialect.name] = Compiled(self._statement, dialect)
        return compiled


class Compiled:
    """A statement's text for one driver, and its values and rows as the driver takes and gives
    them."""

    def __init__(self, statement: Statement, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self.sql = str(compiled)
        self._constants = {
            name: bind.value for name, bind in compiled.binds.items() if not bind.required
        }
        binds = {
            name: bind.type.dialect_impl(dialect).bind_processor(dialect)
            for name, bind in compiled.binds.items()
        }
        self._is_positional = bool(compiled.positional)
        self._names = tuple(compiled.positiontup or ()) if compiled.positional else tuple(binds)
        self._bind_processors = {name: each for name, each in binds.items() if each is not None}
        self._row_processors = _row_processors(statement, dialect)

    def values(self, values: Values) -> Any:
        """Of one run: in the driver's order, or by name. KeyError for one that is missing."""
        if self._constants:
            values = {**self._constants, **values}
        if self._bind_processors:
            values = dict(values)
            for name, process in self._bind_processors.items():
                values[name] = process(values[name])
        if self._is_positional:
            return tuple([values[name] for name in self._names])
        return {name: values[name] for name in self._names}

    def rows(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Of the driver's rows."""
        if not self._row_processors:
            return rows
        done = []
        for row in rows:
            cells = list(row)
            for index, process in self._row_processors:
                cells[index] = process(cells[index])
            done.append(tuple(cells))
        return done


def _row_processors(statement: Statement, dialect: Dialect) -> list[tuple[int, _Processor]]:
    processors = (
        column.type.dialect_impl(dialect).result_processor(dialect, None)
        for column in statement.exported_columns
    )
    return [(index, each) for index, each in enumerate(processors) if each is not None]
