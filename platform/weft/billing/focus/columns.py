"""The columns of each dataset by version: FOCUS's in alphabetical order, then our own.

FOCUS asks for some columns only of those whose operating model has what they tell. Here are no
commitments, negotiated contracts, capacity reservations, availability zones, virtual currencies,
split costs and no types of accounts, so their columns are left out.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from weft.billing.tables import Column

FocusVersion: TypeAlias = Literal["1.4", "1.2"]
VERSIONS: tuple[FocusVersion, ...] = get_args(FocusVersion)
Dataset: TypeAlias = Literal["cost_and_usage", "invoice_detail", "billing_period"]


def _string(name: str) -> Column:
    return Column(name)


def _id(name: str) -> Column:
    return Column(name, is_id=True)


def _nullable(name: str) -> Column:
    return Column(name, is_nullable=True, is_id=True)


def _time(name: str, *, is_nullable: bool = False) -> Column:
    return Column(name, "datetime", is_nullable)


def _decimal(name: str, *, is_nullable: bool = False) -> Column:
    return Column(name, "decimal", is_nullable)


def _json(name: str) -> Column:
    return Column(name, "json", is_nullable=True, is_id=True)


_COST_AND_USAGE = (
    _decimal("BilledCost"),
    _id("BillingAccountId"),
    _nullable("BillingAccountName"),
    _id("BillingCurrency"),
    _time("BillingPeriodEnd"),
    _time("BillingPeriodStart"),
    _id("ChargeCategory"),
    _nullable("ChargeClass"),
    _nullable("ChargeDescription"),
    _id("ChargeFrequency"),
    _time("ChargePeriodEnd"),
    _time("ChargePeriodStart"),
    _decimal("ConsumedQuantity", is_nullable=True),
    _nullable("ConsumedUnit"),
    _decimal("ContractedCost"),
    _decimal("ContractedUnitPrice", is_nullable=True),
    _decimal("EffectiveCost"),
    _nullable("InvoiceId"),
    _id("InvoiceIssuerName"),
    _decimal("ListCost"),
    _decimal("ListUnitPrice", is_nullable=True),
    _nullable("PricingCategory"),
    _decimal("PricingQuantity", is_nullable=True),
    _nullable("PricingUnit"),
    _nullable("RegionId"),
    _nullable("RegionName"),
    _nullable("ResourceId"),
    _nullable("ResourceName"),
    _nullable("ResourceType"),
    _id("ServiceCategory"),
    _id("ServiceName"),
    _id("ServiceSubcategory"),
    _nullable("SkuId"),
    _nullable("SkuMeter"),
    _json("SkuPriceDetails"),
    _nullable("SkuPriceId"),
    _nullable("SubAccountId"),
    _nullable("SubAccountName"),
    _json("Tags"),
)
# those that only one of the versions has
_ONLY_IN: dict[FocusVersion, tuple[Column, ...]] = {
    "1.4": (_id("HostProviderName"), _nullable("InvoiceDetailId"), _id("ServiceProviderName")),
    "1.2": (_id("ProviderName"), _id("PublisherName")),
}
_OWN = (
    _nullable("x_AdapterDigest"),
    _nullable("x_AdapterVersion"),
    _nullable("x_ApiKeyId"),
    _decimal("x_RequestCount", is_nullable=True),
)

INVOICE_DETAIL = (
    _decimal("BilledCost"),
    _id("BillingAccountId"),
    _id("BillingCurrency"),
    _time("BillingPeriodEnd"),
    _time("BillingPeriodStart"),
    _id("ChargeCategory"),
    _time("InvoiceDetailCreated"),
    _nullable("InvoiceDetailDescription"),
    _json("InvoiceDetailGrain"),
    _string("InvoiceDetailId"),
    _time("InvoiceDetailLastUpdated"),
    _id("InvoiceId"),
    _time("InvoiceIssueDate", is_nullable=True),
    _id("InvoiceIssueStatus"),
    _id("InvoiceIssuerName"),
    _id("PaymentCurrency"),
    _time("PaymentDueDate", is_nullable=True),
    _id("PaymentTerms"),
    _id("ReferenceInvoiceId"),
    _nullable("x_ChargeClass"),
    _decimal("x_ConsumedQuantity", is_nullable=True),
    _decimal("x_RequestCount", is_nullable=True),
    _decimal("x_RoundedCost"),
)

BILLING_PERIOD = (
    _time("BillingPeriodCreated"),
    _time("BillingPeriodEnd"),
    _time("BillingPeriodLastUpdated"),
    _time("BillingPeriodStart"),
    _id("BillingPeriodStatus"),
    _id("InvoiceIssuerName"),
)


def cost_and_usage_columns(version: FocusVersion) -> tuple[Column, ...]:
    """In the order of the file."""
    found = sorted((*_COST_AND_USAGE, *_ONLY_IN[version]), key=lambda column: column.name)
    return (*found, *_OWN)
