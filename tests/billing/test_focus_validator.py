"""The FinOps Foundation's own validator on our 1.2 export, where it is installed.

WEFT_FOCUS_VALIDATOR is its command, of a version with rules for 1.2 (2.0 or newer; those that
PyPI had until 1.0.0 know the names of the columns of before 1.0 only):

    WEFT_FOCUS_VALIDATOR="/path/to/focus-validator" pytest -m verify tests/billing
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from weft.billing.charges import Charge
from weft.billing.files import write_table
from weft.billing.focus.cost_and_usage import create_cost_and_usage
from weft.billing.statement import Statement

OURS = (
    "ACCOUNT_NAMING_SUPPORTED", "BILLING_BASED_ON_PROVISIONED_RESOURCES_SUPPORTED",
    "NEGOTIATED_PRICING_SUPPORTED", "PUBLIC_PRICE_LIST_SUPPORTED", "REGION_SUPPORTED",
    "RESOURCE_TYPE_ASSIGNMENT_SUPPORTED", "SUB_ACCOUNT_SUPPORTED", "TAGGING_SUPPORTED",
    "UNIT_PRICING_SUPPORTED", "USAGE_MEASUREMENT_SUPPORTED",
)  # fmt: skip
# rules of 2.0.1 that fail whatever the rows are
DEFECTS = {
    # its two branches are alternatives, and each is reported
    "InvoiceId-C-004-C",
    # the condition names ChargeClass "Correction" where the text says "not Correction"
    "ConsumedQuantity-C-006-C",
    # the condition names no column, so that it holds for rows without a resource as well
    "ResourceType-C-005-C",
}
# columns of those who price in another currency than they bill in, which it does not leave out
_NOT_OURS = ("PricingCurrency", "CostAndUsage-D-04", "CostAndUsage-D-05")


@pytest.mark.verify
@pytest.mark.skipif(
    "WEFT_FOCUS_VALIDATOR" not in os.environ,
    reason="WEFT_FOCUS_VALIDATOR names no focus-validator",
)
def test_the_validator_finds_no_fault(
    charges: list[Charge], create_statement: Callable[..., Statement], tmp_path: Path
) -> None:
    table = create_cost_and_usage(create_statement(charges), "1.2")
    written = write_table(table, tmp_path, "part", "parquet", {})
    done = subprocess.run(
        [
            *shlex.split(os.environ["WEFT_FOCUS_VALIDATOR"]), "--data-file",
            str(tmp_path / written.name), "--validate-version", "1.2", "--block-download",
            "--applicability-criteria", ",".join(OURS),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Total: " in done.stdout, done.stdout + done.stderr
    failed = re.findall(r"(\S+-[CD]-\d+-[A-Z]): FAIL\s+\(violations=\d+, msg=([^\n]*)", done.stdout)
    # a rule that fails because another does says so
    own = {rule for rule, said in failed if "child rules" not in said and "Upstream" not in said}
    assert {rule for rule in own - DEFECTS if not rule.startswith(_NOT_OURS)} == set()
