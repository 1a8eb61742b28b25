"""Finds, in the source, queries that go around `weft.db.scope`.

The session itself refuses a statement without a scope when it is run, and `Prepared` when it is
made; this finds what would go through neither, and what no test runs.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Set

# these say whose rows a statement means; an INSERT says it by its values
SCOPES = {
    "scoped",
    "scoped_or_shared",
    "scoped_by_parameter",
    "scoped_or_shared_by_parameter",
    "unscoped",
    "insert_into",
}
STATEMENTS = {"select", "update", "delete", "insert", "text"}
RUNS = {"execute", "scalar", "scalars", "stream", "stream_scalars"}
# a statement that was run by one of these has not passed the session's check
BYPASSES = {
    "bulk_insert_mappings",
    "bulk_save_objects",
    "bulk_update_mappings",
    "connection",
    "exec_driver_sql",
    "from_statement",
    "get_bind",
    "get_one",
    "get_raw_connection",
    "merge",
    "query",
    "run_sync",
    "sync_session",
}
# drivers and engines: a session of `Database` is the only way in
ENGINES = {"aiosqlite", "psycopg", "sqlite3", "create_engine", "create_async_engine"}
# the layer below: transactions, locks, the clock and the schema of the database itself
INFRASTRUCTURE = ("db/",)
# statements are made in repositories; models say in text for which rows an index is
STATEMENT_FILES = ("repository.py", "models.py")


def faults_of(source: str, name: str, tenant_tables: Set[str]) -> list[str]:
    """What is wrong in the file `name` (relative to the package) with this text.

    `tenant_tables`: the classes of tables whose rows belong to tenants.
    """
    if name.startswith(INFRASTRUCTURE) or ("session" not in source and "sql" not in source):
        return []
    tree = ast.parse(source)
    found = list(_import_faults(tree, name))
    imported = _imported_from_sqlalchemy(tree)
    scopes = SCOPES | _functions_that_scope(tree)
    functions = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    runners = {function.name for function in functions if _runs_what_it_is_given(function)}
    for function in functions:
        found += _function_faults(function, imported, scopes, runners)
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and _compares_tenant(node, tenant_tables):
            found.append(f"line {node.lineno} compares a tenant_id: that is the scope's part")
        if isinstance(node, ast.Constant) and node.value == "weft_scope":
            found.append(f"line {node.lineno} marks a statement by itself")
    return [f"{name}: {fault}" for fault in found]


def _import_faults(tree: ast.Module, name: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        names = {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
            if (node.module or "").startswith("sqlalchemy"):
                made = STATEMENTS & {alias.name for alias in node.names}
                if made and not name.endswith(STATEMENT_FILES):
                    yield f"makes statements ({', '.join(sorted(made))}) outside of a repository"
        if names & ENGINES:
            yield f"line {node.lineno} imports {', '.join(sorted(names & ENGINES))}"


def _imported_from_sqlalchemy(tree: ast.Module) -> set[str]:
    return {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sqlalchemy")
        for alias in node.names
    }


def _functions_that_scope(tree: ast.Module) -> set[str]:
    """Those of the module whose every result is a scoped statement."""
    found = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            results = [each.value for each in ast.walk(node) if isinstance(each, ast.Return)]
            if results and all(_is_scoped(result, set(), SCOPES) for result in results):
                found.add(node.name)
    return found


def _runs_what_it_is_given(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """A helper that runs its parameter: then its callers have to give it a scoped statement."""
    parameters = {argument.arg for argument in function.args.args}
    return any(
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in RUNS
        and _is_of_session(call.func.value)
        and call.args
        and getattr(call.args[0], "id", "") in parameters
        for call in ast.walk(function)
    )


def _function_faults(
    function: ast.FunctionDef | ast.AsyncFunctionDef,
    imported: set[str],
    scopes: set[str],
    runners: set[str],
) -> Iterator[str]:
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    scoped_names = _scoped_names(function, scopes)
    for call in calls:
        if isinstance(call.func, ast.Attribute):
            attribute = call.func.attr
            if attribute in BYPASSES and _is_of_session(call.func.value):
                yield f"{function.name} goes around the session by {attribute}"
            runs = attribute in RUNS and _is_of_session(call.func.value)
            if (runs and function.name not in runners) or attribute in runners:
                statement = call.args[0] if call.args else None
                if not _is_scoped(statement, scoped_names, scopes):
                    yield f"{function.name} runs a statement without a scope (line {call.lineno})"
    made = STATEMENTS & imported & {_called(call) for call in calls}
    # a function may make a statement for one that scopes it only by giving it to a scope itself
    if made and not scopes & {_called(call) for call in calls}:
        yield f"{function.name} makes {', '.join(sorted(made))} without a scope"


def _scoped_names(function: ast.AST, scopes: set[str]) -> set[str]:
    """Variables that were given a scoped statement."""
    return {
        target.id
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and _is_scoped(node.value, set(), scopes)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _is_scoped(statement: ast.expr | None, scoped_names: set[str], scopes: set[str]) -> bool:
    if isinstance(statement, ast.Name):
        return statement.id in scoped_names
    if isinstance(statement, ast.Call):
        if _called(statement) in scopes:
            return True
        # scoped(...).limit(1), and the like
        return isinstance(statement.func, ast.Attribute) and _is_scoped(
            statement.func.value, scoped_names, scopes
        )
    return False


def _is_of_session(value: ast.expr) -> bool:
    """`session`, `self._session`, `read_session`, ..."""
    name = value.attr if isinstance(value, ast.Attribute) else getattr(value, "id", "")
    return "session" in name


def _called(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _compares_tenant(node: ast.Compare, tenant_tables: Set[str]) -> bool:
    """`Table.tenant_id == something` where something is no column: a scope made by hand."""
    sides = [node.left, *node.comparators]
    columns = [side for side in sides if isinstance(side, ast.Attribute) and _is_column(side)]
    return (
        isinstance(node.ops[0], ast.Eq)
        and len(columns) < len(sides)
        and any(
            column.attr == "tenant_id" and ast.unparse(column.value) in tenant_tables
            for column in columns
        )
    )


def _is_column(side: ast.Attribute) -> bool:
    """An attribute of a class, which is a column; in Python code `row.tenant_id` is a value."""
    return isinstance(side.value, ast.Name) and side.value.id[:1].isupper()
