"""A month is closed once; what is told later is corrected in the next one."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import select
from tests.billing.books import AUGUST, INPUT_RATE, OCTOBER, SEPTEMBER, Books

from weft.audit import SYSTEM
from weft.audit.models import AuditEntry
from weft.billing.charges import UsageMismatchError
from weft.billing.closing import ClosedPeriod, close_month, read_charges
from weft.billing.models import BilledCharge, InvoiceLineRow, InvoiceRow
from weft.billing.money import PICO_PER_CENT, round_to_cents
from weft.billing.periods import HOUR_S, Month
from weft.billing.repository import BillingRepository
from weft.billing.rows import charge_of
from weft.db.ids import now
from weft.db.scope import TenantOwner, unscoped
from weft.errors import ConflictError
from weft.tenancy import service


async def close(books: Books, month: Month) -> ClosedPeriod:
    return await close_month(books.database, month, SYSTEM)


async def invoice_of(books: Books, tenant_id: str, month: Month) -> InvoiceRow:
    async with books.database.reading() as session:
        row = await BillingRepository(session).find_invoice_of(month, TenantOwner(tenant_id))
    assert row is not None
    return row


async def lines_of(books: Books, invoice: InvoiceRow) -> list[InvoiceLineRow]:
    async with books.database.reading() as session:
        return list(await BillingRepository(session).list_lines(invoice))


async def charges_on(books: Books, invoice: InvoiceRow) -> list[BilledCharge]:
    statement = select(BilledCharge).where(BilledCharge.invoice_id == invoice.id)
    async with books.database.reading() as session:
        rows = await session.scalars(unscoped(statement.order_by(BilledCharge.number), "a test"))
        return list(rows)


async def test_every_tenant_gets_an_invoice_that_says_all_it_used(books: Books) -> None:
    acme, globex = [await books.add_tenant(name) for name in ("acme", "globex")]
    idle = await books.add_tenant("idle")
    await books.use(acme, AUGUST.start_at, (1_000, 24, 58))
    await books.use(acme, AUGUST.start_at + HOUR_S - 1, (500, 0, 10))
    await books.use(acme, AUGUST.end_at - 1, (7, 0, 3), adapter=None)
    await books.use(globex, AUGUST.start_at + 5, (123_456, 0, 9_999))
    await books.use(globex, SEPTEMBER.start_at, (10**9, 0, 0))  # the next month's
    closed = await close(books, AUGUST)
    assert (closed.num_invoices, closed.is_new) == (2, True)
    invoice = await invoice_of(books, acme, AUGUST)
    assert invoice.due_at == invoice.issued_at + 30 * 86_400
    lines = await lines_of(books, invoice)
    exact = (976 + 500 + 7) * INPUT_RATE + 24 * 250_001 + (58 + 10 + 3) * 10_000_007
    assert sum(line.exact_pico for line in lines if line.kind == "usage") == exact
    assert sum(line.exact_pico for line in lines) == invoice.payable_pico
    assert sum(line.billed_pico for line in lines) == invoice.payable_pico
    assert invoice.payable_pico % PICO_PER_CENT == 0
    charges = [charge_of(row) for row in await charges_on(books, invoice)]
    # two requests of one hour are one charge for each meter
    assert [c.num_requests for c in charges] == [2, 2, 2, 1, 1]
    assert {c.key.hour_at for c in charges} == {AUGUST.start_at, AUGUST.end_at - HOUR_S}
    async with books.database.reading() as session:
        repository = BillingRepository(session)
        assert await repository.find_invoice_of(AUGUST, TenantOwner(idle)) is None


async def test_rounding_is_posted_to_the_ledger(books: Books) -> None:
    acme = await books.add_tenant("acme")
    await books.use(acme, AUGUST.start_at, (1_001, 0, 0))
    await close(books, AUGUST)
    exact = 1_001 * INPUT_RATE
    adjustment = round_to_cents(exact) - exact
    assert adjustment != 0
    assert await books.balance(f"tenant:{acme}:receivable") == adjustment
    assert await books.balance("revenue:rounding") == -adjustment


async def test_closing_again_changes_nothing(books: Books) -> None:
    acme = await books.add_tenant("acme")
    await books.use(acme, AUGUST.start_at, (1_001, 0, 0))
    first = await close(books, AUGUST)
    await books.use(acme, AUGUST.start_at, (1_001, 0, 0))
    again = await close(books, AUGUST)
    assert again == ClosedPeriod(AUGUST, first.closed_at, 1, first.payable_pico, is_new=False)
    async with books.database.reading() as session:
        entries = (await session.scalars(unscoped(select(AuditEntry), "a test"))).all()
    closed = [entry for entry in entries if entry.type == "billing_period.closed"]
    assert [entry.target_id for entry in closed] == ["2026-08"]


async def test_late_usage_is_corrected_in_the_next_month(books: Books) -> None:
    acme = await books.add_tenant("acme")
    hour = AUGUST.start_at + 5 * HOUR_S
    await books.use(acme, hour, (100, 0, 7))
    await close(books, AUGUST)
    august = await invoice_of(books, acme, AUGUST)
    before = [charge_of(row) for row in await charges_on(books, august)]
    await books.use(acme, hour + 1, (50, 0, 0))
    await books.use(acme, hour + HOUR_S, (3, 0, 0))
    await books.use(acme, SEPTEMBER.start_at, (11, 0, 0))
    await close(books, SEPTEMBER)
    assert [charge_of(row) for row in await charges_on(books, august)] == before
    september = await invoice_of(books, acme, SEPTEMBER)
    charges = [charge_of(row) for row in await charges_on(books, september)]
    said = [(c.key.hour_at, c.is_correction, c.num_requests, c.num_tokens) for c in charges]
    assert said == [
        (SEPTEMBER.start_at, False, 1, 11),
        (hour, True, -1, -100),
        (hour, True, 2, 150),
        # the hour's only request has no output: its output charge stays, its requests are two now
        (hour, True, -1, -7),
        (hour, True, 2, 7),
        (hour + HOUR_S, True, 1, 3),
    ]
    lines = await lines_of(books, september)
    corrected = [line for line in lines if line.kind == "correction"]
    assert {line.charge_month for line in corrected} == {"2026-08"}
    assert sum(line.exact_pico for line in corrected) == 53 * INPUT_RATE
    await close(books, OCTOBER)
    async with books.database.reading() as session:
        assert await read_charges(session, acme, OCTOBER.next) == ([], [])
        assert await BillingRepository(session).find_invoice_of(OCTOBER, TenantOwner(acme)) is None


async def test_a_tenant_without_an_invoice_is_still_charged_for_late_usage(books: Books) -> None:
    acme = await books.add_tenant("acme")
    await close(books, AUGUST)
    await books.use(acme, AUGUST.end_at - 1, (5, 5, 0))
    await close(books, SEPTEMBER)
    (charge,) = await charges_on(books, await invoice_of(books, acme, SEPTEMBER))
    assert (charge.is_correction, charge.num_tokens) == (True, 5)


async def test_a_broken_off_close_goes_on_where_it_was(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenants = [await books.add_tenant(name) for name in ("acme", "globex")]
    for tenant in tenants:
        await books.use(tenant, AUGUST.start_at, (100, 0, 7))
    failing, real = max(tenants), BillingRepository.list_hours

    async def fail(self: BillingRepository, owner: TenantOwner, *times: int) -> object:
        if owner.tenant_id == failing:
            raise RuntimeError("the process ends here")
        return await real(self, owner, *times)

    with monkeypatch.context() as patch:
        patch.setattr(BillingRepository, "list_hours", fail)
        with pytest.raises(RuntimeError, match="ends here"):
            await close(books, AUGUST)
    first = await invoice_of(books, min(tenants), AUGUST)
    assert (await close(books, AUGUST)).num_invoices == 2
    assert (await invoice_of(books, min(tenants), AUGUST)).issued_at == first.issued_at


async def test_two_who_close_at_once_make_one_invoice(books: Books) -> None:
    acme = await books.add_tenant("acme")
    await books.use(acme, AUGUST.start_at, (1_001, 0, 0))
    closed = await asyncio.gather(*(close(books, AUGUST) for _ in range(4)))
    assert sum(each.is_new for each in closed) == 1
    assert {each.num_invoices for each in closed} == {1}
    assert abs(await books.balance("revenue:rounding")) < PICO_PER_CENT


async def test_a_month_that_may_still_be_told_of_stays_open(sqlite_books: Books) -> None:
    month = Month.at(now() - 47 * HOUR_S)
    with pytest.raises(ConflictError, match="can be closed from"):
        await close(sqlite_books, month)


async def test_months_are_closed_in_order(sqlite_books: Books) -> None:
    acme = await sqlite_books.add_tenant("acme")
    await sqlite_books.use(acme, AUGUST.start_at, (1, 0, 0))
    with pytest.raises(ConflictError, match="2026-08 is still open"):
        await close(sqlite_books, SEPTEMBER)
    await close(sqlite_books, AUGUST)
    with pytest.raises(ConflictError, match="2026-09 is still open"):
        await close(sqlite_books, OCTOBER)


async def test_a_deleted_tenant_pays_for_what_it_used(sqlite_books: Books) -> None:
    acme = await sqlite_books.add_tenant("acme")
    await sqlite_books.use(acme, AUGUST.start_at, (1, 0, 0))
    async with sqlite_books.database.writing() as session:
        await service.delete_tenant(session, acme)
    assert (await close(sqlite_books, AUGUST)).num_invoices == 1


async def test_usage_without_a_price_is_listed_and_free(sqlite_books: Books) -> None:
    acme = await sqlite_books.add_tenant("acme")
    await sqlite_books.use(acme, AUGUST.start_at, (5, 0, 1), price=None)
    await close(sqlite_books, AUGUST)
    invoice = await invoice_of(sqlite_books, acme, AUGUST)
    assert invoice.payable_pico == 0
    charges = await charges_on(sqlite_books, invoice)
    assert [(charge.num_tokens, charge.rate) for charge in charges] == [(5, 0), (1, 0)]


async def test_the_list_price_stands_beside_the_tenants_own(sqlite_books: Books) -> None:
    acme = await sqlite_books.add_tenant("acme")
    await sqlite_books.add_price("price_acme", acme, 1_000, 100, 10_000)
    rates = (1_000, 100, 10_000)
    await sqlite_books.use(acme, AUGUST.start_at, (9, 0, 0), price="price_acme", rates=rates)
    await close(sqlite_books, AUGUST)
    (charge,) = await charges_on(sqlite_books, await invoice_of(sqlite_books, acme, AUGUST))
    assert (charge.rate, charge.list_rate) == (1_000, INPUT_RATE)


async def test_events_that_were_tampered_with_stop_the_close(sqlite_books: Books) -> None:
    acme = await sqlite_books.add_tenant("acme")
    await sqlite_books.use(acme, AUGUST.start_at, (5, 0, 1), rates=(1, 1, 1))
    with pytest.raises(UsageMismatchError, match="price_1"):
        await close(sqlite_books, AUGUST)
