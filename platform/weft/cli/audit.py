"""`weft audit`: the audit trail in the data folder's database."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weft.cli.output import DataOption, JsonOption, err, fail, out, print_json, print_rows
from weft.settings import DEFAULT_DATA_DIR

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from weft.audit.chain import Head
    from weft.audit.service import Verified
    from weft.tenancy.secret_files import SecretFiles

app = typer.Typer(help="Show and verify who changed what.", no_args_is_help=True)
_MAX_HEADS_BYTES = 64 * 2**20


@app.command("list")
def list_(
    tenant: Annotated[
        str | None, typer.Argument(help="The tenant's name or id; none: the platform's entries.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, newest first.")] = 100,
    event_type: Annotated[
        list[str] | None, typer.Option("--type", help="Of this type; repeat for several.")
    ] = None,
    data: DataOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """List the newest entries."""
    from weft.audit.reading import AuditQuery, read_page
    from weft.cli.control import run_in_transaction
    from weft.tenancy import service
    from weft.tenancy.audit_schemas import entry_to_wire

    async def work(session: AsyncSession, _secrets: SecretFiles) -> list[dict[str, object]]:
        tenant_id = None if tenant is None else (await service.get_tenant(session, tenant)).id
        query = AuditQuery(limit=limit, types=tuple(event_type or ()))
        page = await read_page(session, tenant_id, query)
        return [entry_to_wire(entry).model_dump() for entry in page.rows]

    rows = run_in_transaction(data, work)
    if not as_json:
        for row in rows:
            row["what"] = json.dumps(row[str(row["type"])])
            row["who"] = json.dumps(row["actor"])
    print_rows(rows, ("number", "effective_at", "type", "who", "what"), as_json=as_json)


@app.command("verify")
def verify(
    heads: Annotated[
        Path | None,
        typer.Option(help="Heads that --save-heads wrote before: each has to be in its chain."),
    ] = None,
    save_heads: Annotated[
        Path | None, typer.Option(help="Write today's heads here, to keep on another machine.")
    ] = None,
    data: DataOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Verify every chain of hashes; ends with 1 where something was altered or is missing."""
    from weft.audit import service
    from weft.cli.control import run_in_transaction

    known = {} if heads is None else _read_heads(heads)

    async def work(session: AsyncSession, _secrets: SecretFiles) -> Verified:
        return await service.verify(session, known)

    done = run_in_transaction(data, work)
    rows = [{"chain": head.chain, "number": head.number, "hash": head.hash} for head in done.heads]
    if as_json:
        print_json({"num_entries": done.num_entries, "heads": rows, "faults": list(done.faults)})
    else:
        for fault in done.faults:
            err.print(fault, markup=False)
        if not done.faults:
            out.print(f"{done.num_entries} entries in {len(rows)} chains are as they were written.")
    if done.faults:
        raise typer.Exit(1)
    if save_heads is not None:
        save_heads.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _read_heads(file: Path) -> dict[str, Head]:
    from weft.audit.chain import Head

    try:
        if file.stat().st_size > _MAX_HEADS_BYTES:
            raise fail(f"{file} is too large to hold heads")
        rows = json.loads(file.read_text(encoding="utf-8"))
        return {
            row["chain"]: Head(str(row["chain"]), int(row["number"]), str(row["hash"]))
            for row in rows
        }
    except OSError as error:
        raise fail(str(error)) from error
    except (ValueError, TypeError, KeyError) as error:
        raise fail(f"{file} holds no heads that --save-heads wrote") from error
