"""`weft billing`: months, invoices and exports, in the server's database."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli.output import DataOption, JsonOption, out, print_json, print_rows, spinner
from weft.settings import DEFAULT_DATA_DIR

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from weft.db.database import Database
    from weft.tenancy.secret_files import SecretFiles

app = typer.Typer(help="Close months, list invoices, export usage as FOCUS.", no_args_is_help=True)
Month = Annotated[str, typer.Argument(help="A month of UTC, such as 2026-11.")]


@app.command("close")
def close(month: Month, data: DataOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """Make every tenant's usage of a month an invoice; from 48 hours after the month on."""
    from weft.audit import SYSTEM
    from weft.billing.closing import close_month
    from weft.billing.schemas import closed_to_wire
    from weft.billing.service import parse_month
    from weft.cli.control import run_with_database

    async def work(database: Database) -> dict[str, Any]:
        return closed_to_wire(await close_month(database, parse_month(month), SYSTEM)).model_dump()

    with spinner(f"Closing {month}..."):
        closed = run_with_database(data, work)
    if as_json:
        print_json(closed)
    else:
        out.print(f"{month} is closed: {closed['num_invoices']} invoices, {closed['payable']} USD.")


@app.command("invoices")
def invoices(
    month: Month, data: DataOption = DEFAULT_DATA_DIR, as_json: JsonOption = False
) -> None:
    """List a month's invoices."""
    from weft.billing.repository import BillingRepository
    from weft.billing.schemas import invoice_to_wire
    from weft.billing.service import parse_month
    from weft.cli.control import run_in_transaction

    async def work(session: AsyncSession, _secrets: SecretFiles) -> list[dict[str, Any]]:
        found = await BillingRepository(session).list_all_invoices(parse_month(month))
        return [invoice_to_wire(row).model_dump(exclude={"lines"}) for row in found]

    rows = run_in_transaction(data, work)
    print_rows(rows, ("id", "tenant_id", "payable", "issued_at", "due_at"), as_json=as_json)


@app.command("export")
def export(
    tenant: Annotated[str, typer.Argument(help="The tenant's name or id.")],
    month: Month,
    dataset: Annotated[
        str, typer.Option(help="cost_and_usage, invoice_detail or billing_period.")
    ] = "cost_and_usage",
    focus_version: Annotated[str, typer.Option(help="1.4 or 1.2.")] = "1.4",
    file_format: Annotated[str, typer.Option("--format", help="parquet or csv.")] = "parquet",
    to: Annotated[
        str | None,
        typer.Option(help="s3://bucket/prefix or a folder. Default: exports/ in --data."),
    ] = None,
    s3_endpoint: Annotated[
        str | None, typer.Option(help="URL of an S3 server that is not Amazon's.")
    ] = None,
    data: DataOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Export a tenant's month; the last export stands where nothing has changed."""
    from pydantic import ValidationError

    from weft.audit import SYSTEM
    from weft.billing import service
    from weft.billing.exporting import Exporter, WantedExport
    from weft.billing.schemas import ExportCreate, export_to_wire
    from weft.cli.control import run_with_database
    from weft.cli.output import fail
    from weft.storage.objects import create_target

    try:
        body = ExportCreate.model_validate(
            {
                "tenant": tenant,
                "billing_period": month,
                "dataset": dataset,
                "focus_version": focus_version,
                "format": file_format,
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise fail(f"{first['loc'][0]}: {first['msg']}") from error

    async def work(database: Database) -> dict[str, Any]:
        wanted = WantedExport(
            service.parse_month(body.billing_period), body.dataset, body.focus_version, body.format
        )
        exporter = Exporter(database, create_target(to or str(data / "exports"), s3_endpoint))
        return export_to_wire(
            *await service.create_export(database, exporter, tenant, wanted, SYSTEM)
        ).model_dump()

    made = run_with_database(data, work)
    if as_json:
        print_json(made)
        return
    said = "Exported" if made["is_new"] else "Nothing has changed since"
    out.print(f"{said} {made['location']} ({made['num_rows']} rows, {made['billed']} USD).",
              markup=False)  # fmt: skip


@app.command("customer")
def customer(
    tenant: Annotated[str, typer.Argument(help="The tenant's name or id.")],
    customer_id: Annotated[str, typer.Argument(help="What Stripe calls it: cus_...")],
    data: DataOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Say which customer of Stripe's a tenant is: its usage is sent from then on."""
    from weft.audit import SYSTEM
    from weft.billing.stripe_sender import set_customer
    from weft.cli.control import run_in_transaction
    from weft.tenancy.service import get_tenant

    async def work(session: AsyncSession, _secrets: SecretFiles) -> dict[str, Any]:
        tenant_id = (await get_tenant(session, tenant)).id
        await set_customer(session, tenant_id, customer_id, SYSTEM)
        return {"tenant_id": tenant_id, "customer_id": customer_id}

    print_rows([run_in_transaction(data, work)], ("tenant_id", "customer_id"), as_json=as_json)


@app.command("send")
def send(
    url: Annotated[
        str | None, typer.Option(help="Another server than Stripe's, for tests.")
    ] = None,
    data: DataOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Send the hours that are over to Stripe, each token once; run it every hour.

    WEFT_STRIPE_API_KEY is the secret key. Exit code 1 where something is left.
    """
    from weft.billing.stripe import API_URL, StripeClient
    from weft.billing.stripe_sender import SendResult, StripeSender
    from weft.cli.control import run_with_database
    from weft.cli.output import fail

    key = os.environ.get("WEFT_STRIPE_API_KEY")
    if not key:
        raise fail("set WEFT_STRIPE_API_KEY to Stripe's secret key")

    async def work(database: Database) -> SendResult:
        client = StripeClient(key, url or API_URL)
        try:
            return await StripeSender(database, client).run()
        finally:
            await client.close()

    done = run_with_database(data, work)
    row: dict[str, object] = {
        "sent": done.num_sent,
        "waiting": done.num_waiting,
        "stuck": done.num_stuck,
        "problem": done.problem,
    }
    print_rows([row], tuple(row), as_json=as_json)
    if done.num_waiting or done.num_stuck:
        raise typer.Exit(1)


@app.command("verify")
def verify(
    exports: Annotated[
        str | None,
        typer.Option(help="Where exports are: s3://bucket/prefix or a folder. Default: exports/."),
    ] = None,
    s3_endpoint: Annotated[
        str | None, typer.Option(help="URL of an S3 server that is not Amazon's.")
    ] = None,
    data: DataOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Hold events, rollups, ledger, budgets, invoices, exports and what Stripe was told against
    each other.

    Exit code 1 where two of them differ.
    """
    from weft.billing.sent_verification import check_meter_events
    from weft.billing.verification import check_invoices, check_periods, create_export_check
    from weft.cli.control import run_with_database
    from weft.storage.objects import create_target
    from weft.usage.verification import CheckResult
    from weft.usage.verification import verify as verify_all

    async def work(database: Database) -> list[CheckResult]:
        target = create_target(exports or str(data / "exports"), s3_endpoint)
        mine = (check_invoices, check_periods, check_meter_events, create_export_check(target))
        return await verify_all(database, mine)

    results = run_with_database(data, work)
    rows: list[dict[str, object]] = [
        {
            "check": result.name,
            "result": "ok" if result.is_clean else "DIFFERS",
            "looked_at": result.note,
            "differences": list(result.differences),
        }
        for result in results
    ]
    print_rows(rows, ("check", "result", "looked_at", "differences"), as_json=as_json)
    if not all(result.is_clean for result in results):
        raise typer.Exit(1)


@app.command("issuer")
def issuer(
    name: Annotated[str | None, typer.Option(help="Who sends the invoices.")] = None,
    payment_days: Annotated[int, typer.Option(min=0, max=365)] = 30,
    service_name: Annotated[str, typer.Option(help="What is sold.")] = "LoRA Inference",
    host_name: Annotated[str | None, typer.Option(help="Whose machines it runs on.")] = None,
    region: Annotated[str | None, typer.Option(help="Where they are.")] = None,
    data: DataOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Show who sends the invoices; with --name, put it anew."""
    from pydantic import ValidationError

    from weft.audit import SYSTEM
    from weft.billing.closing import read_issuer
    from weft.billing.schemas import IssuerBody, issuer_to_wire
    from weft.billing.service import set_issuer
    from weft.cli.control import run_in_transaction
    from weft.cli.output import fail

    try:
        body = None if name is None else IssuerBody(
            name=name, payment_days=payment_days, service_name=service_name,
            host_name=host_name, region_id=region,
        )  # fmt: skip
    except ValidationError as error:
        first = error.errors()[0]
        raise fail(f"{first['loc'][0]}: {first['msg']}") from error

    async def work(session: AsyncSession, _secrets: SecretFiles) -> dict[str, Any]:
        if body is not None:
            await set_issuer(session, body.to_issuer(), SYSTEM)
        return issuer_to_wire(await read_issuer(session)).model_dump(exclude={"object"})

    found = run_in_transaction(data, work)
    print_rows([found], tuple(found), as_json=as_json)
