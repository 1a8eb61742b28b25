"""Rows hold to FOCUS, as its text for 1.4 and 1.2 asks; what is asked is written down here anew.

Conditional columns are asked for of those whose operating model has what they tell, which here is:
measured usage, unit prices, list and agreed prices, sub accounts, resources with types, regions and
payable invoices.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from tests.billing.month import NOVEMBER, RATES, create_hour

from weft.billing.charges import Charge, charges_of, corrections_of
from weft.billing.focus.columns import VERSIONS, FocusVersion
from weft.billing.focus.cost_and_usage import create_cost_and_usage
from weft.billing.focus.invoices import (
    PeriodStatus,
    create_billing_periods,
    create_invoice_detail,
)
from weft.billing.money import to_dollars
from weft.billing.periods import HOUR_S, Month
from weft.billing.statement import Statement
from weft.billing.tables import Table

CreateStatement = Callable[..., Statement]
MANDATORY = {
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd",
    "BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargePeriodEnd",
    "ChargePeriodStart", "ContractedCost", "EffectiveCost", "InvoiceIssuerName", "ListCost",
    "PricingQuantity", "PricingUnit", "ServiceCategory", "ServiceName",
}  # fmt: skip
CONDITIONAL = {
    "ConsumedQuantity", "ConsumedUnit", "ContractedUnitPrice", "InvoiceId", "ListUnitPrice",
    "PricingCategory", "RegionId", "RegionName", "ResourceId", "ResourceName", "ResourceType",
    "SkuId", "SkuMeter", "SkuPriceDetails", "SkuPriceId", "SubAccountId", "SubAccountName",
}  # fmt: skip
BY_VERSION: dict[FocusVersion, set[str]] = {
    "1.4": {"HostProviderName", "ServiceProviderName", "InvoiceDetailId"},
    "1.2": {"ProviderName", "PublisherName"},
}
NEVER_NULL = MANDATORY - {
    "BillingAccountName", "ChargeClass", "ChargeDescription", "PricingQuantity", "PricingUnit",
}  # fmt: skip
# of charges for usage or a purchase
PRICED = {
    "ConsumedQuantity", "ConsumedUnit", "PricingQuantity", "PricingUnit", "PricingCategory",
    "ListUnitPrice", "ContractedUnitPrice", "SkuId", "SkuMeter", "SkuPriceId",
}  # fmt: skip


def rows_of(table: Table) -> list[dict[str, Any]]:
    names = [column.name for column in table.columns]
    return [dict(zip(names, row, strict=True)) for row in table.rows]


def check_values(table: Table) -> list[dict[str, Any]]:
    """The columns' order, names, types and nulls; returns the rows."""
    names = [column.name for column in table.columns]
    own = [name for name in names if name.startswith("x_")]
    assert names == sorted(set(names) - set(own)) + own
    assert all(re.fullmatch(r"(x_)?([A-Z][a-z]+)+", name) for name in names)
    rows = rows_of(table)
    types = {"string": "str", "json": "str", "decimal": "Decimal", "datetime": "int"}
    for row in rows:
        for column in table.columns:
            value: Any = row[column.name]
            if value is None:
                assert column.is_nullable, column.name
                continue
            assert type(value).__name__ == types[column.type], column.name
            if column.type == "json":
                assert all(not isinstance(v, dict | list) for v in json.loads(value).values())
            if column.type == "string":
                assert value == value.strip() != ""
    return rows


def check_cost_and_usage(table: Table, version: FocusVersion) -> list[dict[str, Any]]:
    rows = check_values(table)
    names = {column.name for column in table.columns}
    assert names >= MANDATORY | CONDITIONAL | BY_VERSION[version]
    for other in set(VERSIONS) - {version}:
        assert not names & BY_VERSION[other]
    for row in rows:
        has_invoice = row["InvoiceId"] is not None
        never_null = NEVER_NULL | BY_VERSION[version] - (
            set() if has_invoice else {"InvoiceDetailId"}
        )
        assert all(row[name] is not None for name in never_null)
        check_charge(row)
    prices = {(row["SkuPriceId"], row["SkuId"]) for row in rows}
    assert len({price for price, _ in prices}) == len(prices), "a price of several SKUs"
    return rows


def check_charge(row: dict[str, Any]) -> None:
    assert row["ChargeCategory"] in {"Usage", "Purchase", "Tax", "Credit", "Adjustment"}
    assert row["ChargeClass"] in {None, "Correction"}
    assert row["ChargeFrequency"] in {"One-Time", "Recurring", "Usage-Based"}
    assert row["BillingPeriodStart"] == NOVEMBER.start_at < row["BillingPeriodEnd"]
    assert row["ChargePeriodStart"] < row["ChargePeriodEnd"]
    is_in_period = row["ChargePeriodStart"] >= row["BillingPeriodStart"]
    assert is_in_period != (row["ChargeClass"] == "Correction")
    if row["ChargeCategory"] != "Usage":
        assert all(row[name] is None for name in PRICED)
        assert row["BilledCost"] == row["ContractedCost"] == row["ListCost"]
        return
    assert all(row[name] is not None for name in PRICED)
    assert row["PricingQuantity"] * row["ListUnitPrice"] == row["ListCost"]
    assert row["PricingQuantity"] * row["ContractedUnitPrice"] == row["ContractedCost"]
    assert row["EffectiveCost"] == row["BilledCost"] == row["ContractedCost"]
    assert row["ListUnitPrice"] >= 0
    assert re.fullmatch(r"[1-9][0-9]* [A-Z][a-z]+s", row["PricingUnit"])
    assert row["ConsumedQuantity"] == row["PricingQuantity"] * 10**6
    assert (row["RegionId"] is None) == (row["RegionName"] is None)
    assert (row["SubAccountId"] is None) == (row["SubAccountName"] is None)
    details = json.loads(row["SkuPriceDetails"])
    assert all(name.startswith("x_") for name in details)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("is_final", [True, False])
def test_cost_and_usage_conforms(
    charges: list[Charge], create_statement: CreateStatement, version: FocusVersion, is_final: bool
) -> None:
    statement = create_statement(charges, is_final=is_final)
    rows = check_cost_and_usage(create_cost_and_usage(statement, version), version)
    assert len(rows) == len(charges) + is_final
    assert {row["InvoiceId"] for row in rows} == {"inv_2026-11_tnt_a" if is_final else None}


@pytest.mark.parametrize("version", VERSIONS)
def test_what_an_invoice_bills_adds_up_to_what_is_payable(
    charges: list[Charge], create_statement: CreateStatement, version: FocusVersion
) -> None:
    statement = create_statement(charges)
    rows = rows_of(create_cost_and_usage(statement, version))
    assert statement.invoice is not None
    payable = to_dollars(statement.invoice.payable_pico)
    assert sum(row["BilledCost"] for row in rows) == payable
    assert [row["ChargeCategory"] for row in rows][-1] == "Adjustment"


def test_late_usage_is_a_correction_of_its_own_hour_on_another_invoice(
    charges: list[Charge], create_statement: CreateStatement
) -> None:
    october = create_hour(-5, (100, 0, 0))
    grown = create_hour(-5, (150, 0, 0), requests=4)
    late = corrections_of(charges_of([october], RATES), charges_of([grown], RATES))
    statement = create_statement([*charges, *late])
    rows = check_cost_and_usage(create_cost_and_usage(statement, "1.4"), "1.4")
    corrections = [row for row in rows if row["ChargeClass"] == "Correction"]
    assert [row["ConsumedQuantity"] for row in corrections] == [-100, 150]
    assert {Month.at(row["ChargePeriodStart"]) for row in corrections} == {Month(2026, 10)}
    detail = check_values(create_invoice_detail(statement))
    (line,) = [row for row in detail if row["x_ChargeClass"] == "Correction"]
    assert line["ReferenceInvoiceId"] == "inv_2026-10_tnt_a" != line["InvoiceId"]


def test_invoice_detail_joins_cost_and_usage_line_by_line(
    charges: list[Charge], create_statement: CreateStatement
) -> None:
    statement = create_statement(charges)
    detail = check_values(create_invoice_detail(statement))
    usage = rows_of(create_cost_and_usage(statement, "1.4"))
    assert statement.invoice is not None
    for line in detail:
        own = [row for row in usage if row["InvoiceDetailId"] == line["InvoiceDetailId"]]
        assert sum(row["BilledCost"] for row in own) == line["BilledCost"]
        assert {row["ChargeCategory"] for row in own} == {line["ChargeCategory"]}
        assert line["ReferenceInvoiceId"] == line["InvoiceId"]
        assert line["InvoiceIssueStatus"] in {"Open", "Issued", "Voided"}
    for column in ("BilledCost", "x_RoundedCost"):
        total = sum(row[column] for row in detail)
        assert total == to_dollars(statement.invoice.payable_pico)


def test_an_open_month_has_no_invoice_detail(
    charges: list[Charge], create_statement: CreateStatement
) -> None:
    assert rows_of(create_invoice_detail(create_statement(charges, is_final=False))) == []


def test_billing_periods_are_open_or_closed() -> None:
    closed_at = NOVEMBER.end_at + 48 * HOUR_S
    periods = [
        PeriodStatus(NOVEMBER, NOVEMBER.start_at, closed_at, True),
        PeriodStatus(NOVEMBER.next, NOVEMBER.end_at, NOVEMBER.end_at, False),
    ]
    rows = check_values(create_billing_periods("Weft AI", periods))
    assert [row["BillingPeriodStatus"] for row in rows] == ["Closed", "Open"]
    assert rows[0]["BillingPeriodEnd"] == rows[1]["BillingPeriodStart"]
