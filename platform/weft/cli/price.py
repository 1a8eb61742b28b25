"""`weft price`: what tokens cost, in the server's database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli.output import DataOption, JsonOption, fail, out, print_json, print_rows
from weft.settings import DEFAULT_DATA_DIR

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from weft.tenancy.secret_files import SecretFiles

app = typer.Typer(help="Publish and list prices.", no_args_is_help=True)


@app.command("set")
def set_(
    base: Annotated[str, typer.Argument(help="The base model's name.")],
    input_: Annotated[str, typer.Option("--input", help="Dollars per million tokens.")],
    output: Annotated[str, typer.Option(help="Dollars per million tokens.")],
    cached_input: Annotated[str | None, typer.Option(help="Default: as --input.")] = None,
    tenant: Annotated[str | None, typer.Option(help="For this tenant alone.")] = None,
    adapter: Annotated[str | None, typer.Option(help="For this one of its adapters.")] = None,
    effective_from: Annotated[
        int | None, typer.Option(help="Unix seconds. Default: now.", min=0)
    ] = None,
    name: Annotated[str, typer.Option(help="A label for the price book.")] = "weft price set",
    data: DataOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Publish a price, for requests from then on."""
    from pydantic import ValidationError

    from weft.audit import SYSTEM
    from weft.billing.price_books import publish_book
    from weft.billing.price_schemas import PriceBody, PriceBookCreate
    from weft.cli.control import run_in_transaction

    try:
        price = PriceBody(
            base_model=base, input=input_, cached_input=cached_input, output=output,
            tenant=tenant, adapter=adapter,
        )  # fmt: skip
        body = PriceBookCreate(name=name, effective_from=effective_from, prices=[price])
    except ValidationError as error:
        first = error.errors()[0]
        raise fail(f"{first['loc'][0]}: {first['msg']}") from error

    async def work(session: AsyncSession, _secrets: SecretFiles) -> dict[str, Any]:
        return (await publish_book(session, body, SYSTEM)).model_dump()

    book = run_in_transaction(data, work)
    if as_json:
        print_json(book)
    else:
        out.print(f"Published {book['prices'][0]['id']}.", markup=False)


@app.command("list")
def list_(data: DataOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """List all prices, the oldest first."""
    from weft.billing.price_books import list_books
    from weft.cli.control import run_in_transaction

    async def work(session: AsyncSession, _secrets: SecretFiles) -> list[dict[str, Any]]:
        return [
            {
                **price.model_dump(exclude={"object", "unit"}),
                "book": book.name,
                "effective_at": book.effective_from,
            }
            for book in await list_books(session)
            for price in book.prices
        ]

    columns = ("id", "base_model", "tenant_id", "adapter_id", "input", "cached_input", "output",
               "effective_at")  # fmt: skip
    print_rows(run_in_transaction(data, work), columns, as_json=as_json)
