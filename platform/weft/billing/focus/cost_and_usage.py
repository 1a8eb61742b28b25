"""FOCUS's Cost and Usage: a row for each charge, and one for what rounding the invoice came to.

Costs are exact: quantity times unit price, to the picodollar. Per invoice BilledCost adds up to
what is payable, because the adjustment is a row as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from weft.billing.charges import Charge, Meter
from weft.billing.focus.columns import FocusVersion, cost_and_usage_columns
from weft.billing.money import CURRENCY, shifted, to_dollars
from weft.billing.statement import Statement
from weft.billing.tables import Cell, Table

METER_NAMES: dict[Meter, str] = {
    "input": "Input Tokens",
    "cached_input": "Cached Input Tokens",
    "output": "Output Tokens",
}
UNPRICED = "unpriced"
SERVICE_CATEGORY = "AI and Machine Learning"
SERVICE_SUBCATEGORY = "Generative AI"


def create_cost_and_usage(statement: Statement, version: FocusVersion) -> Table:
    """The table; its rows read the statement's charges."""
    columns = cost_and_usage_columns(version)
    names = tuple(column.name for column in columns)

    def rows() -> Iterator[tuple[Cell, ...]]:
        shared = _shared_cells(statement)
        for charge, line_number in statement.charges:
            cells = {**shared, **_charge_cells(statement, charge, line_number)}
            yield tuple(cells[name] for name in names)
        for adjustment in _adjustment_cells(statement):
            cells = {**shared, **adjustment}
            yield tuple(cells.get(name) for name in names)

    return Table(columns, rows())


def _shared_cells(statement: Statement) -> dict[str, Cell]:
    issuer = statement.issuer
    return {
        "BillingAccountId": statement.tenant_id,
        "BillingAccountName": statement.tenant_name,
        "BillingCurrency": CURRENCY,
        "BillingPeriodEnd": statement.month.end_at,
        "BillingPeriodStart": statement.month.start_at,
        "HostProviderName": issuer.host_name or issuer.name,
        "InvoiceId": None if statement.invoice is None else statement.invoice.id,
        "InvoiceIssuerName": issuer.name,
        "ProviderName": issuer.name,
        "PublisherName": issuer.name,
        "RegionId": issuer.region_id,
        "RegionName": issuer.region_name or issuer.region_id,
        "ServiceCategory": SERVICE_CATEGORY,
        "ServiceName": issuer.service_name,
        "ServiceProviderName": issuer.name,
        "ServiceSubcategory": SERVICE_SUBCATEGORY,
        "Tags": None,
    }


def _charge_cells(statement: Statement, charge: Charge, line_number: int | None) -> dict[str, Cell]:
    key = charge.key
    cost, list_cost = to_dollars(charge.amount_pico), to_dollars(charge.list_amount_pico)
    meter = METER_NAMES[charge.meter]
    is_adapter = bool(key.adapter_id)
    return {
        "BilledCost": cost,
        "ChargeCategory": "Usage",
        "ChargeClass": "Correction" if charge.is_correction else None,
        "ChargeDescription": f"{key.model} {meter.lower()}",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodEnd": charge.end_at,
        "ChargePeriodStart": key.hour_at,
        "ConsumedQuantity": shifted(charge.num_tokens, 0),
        "ConsumedUnit": "Tokens",
        "ContractedCost": cost,
        "ContractedUnitPrice": shifted(charge.rate, 6),
        "EffectiveCost": cost,
        "InvoiceDetailId": _detail_id(statement, line_number),
        "ListCost": list_cost,
        "ListUnitPrice": shifted(charge.list_rate, 6),
        "PricingCategory": "Standard",
        "PricingQuantity": shifted(charge.num_tokens, 6),
        "PricingUnit": "1000000 Tokens",
        "ResourceId": f"adapter:{key.adapter_id}@v{key.adapter_version}"
        if is_adapter
        else f"base:{key.base_model}",
        "ResourceName": key.model,
        "ResourceType": "LoRA Adapter" if is_adapter else "Base Model",
        "SkuId": sku_id(key.base_model, charge.meter),
        "SkuMeter": meter,
        "SkuPriceDetails": json.dumps({"x_BaseModel": key.base_model}),
        "SkuPriceId": sku_price_id(key.price_id, charge.meter),
        "SubAccountId": key.project_id,
        "SubAccountName": statement.project_names.get(key.project_id, key.project_id),
        "x_AdapterDigest": key.adapter_digest or None,
        "x_AdapterVersion": f"v{key.adapter_version}" if is_adapter else None,
        "x_ApiKeyId": key.api_key_id,
        "x_RequestCount": shifted(charge.num_requests, 0),
    }


def _adjustment_cells(statement: Statement) -> Iterator[dict[str, Cell]]:
    if statement.invoice is None:
        return
    for line in statement.invoice.lines:
        if line.kind == "adjustment":
            cost = to_dollars(line.exact_pico)
            yield {
                "BilledCost": cost,
                "ChargeCategory": "Adjustment",
                "ChargeDescription": "Rounding of each line to whole cents",
                "ChargeFrequency": "Recurring",
                "ChargePeriodEnd": statement.month.end_at,
                "ChargePeriodStart": statement.month.start_at,
                "ContractedCost": cost,
                "EffectiveCost": cost,
                "InvoiceDetailId": _detail_id(statement, line.number),
                "ListCost": cost,
            }


def _detail_id(statement: Statement, line_number: int | None) -> str | None:
    if statement.invoice is None or line_number is None:
        return None
    return statement.invoice.line_id(line_number)


def sku_id(base_model: str, meter: Meter) -> str:
    """What is sold: tokens of one meter on one base, whatever adapter they go through."""
    return f"{base_model}:{meter}"


def sku_price_id(price_id: str, meter: Meter) -> str:
    """A price is one for each meter."""
    return f"{price_id or UNPRICED}:{meter}"
