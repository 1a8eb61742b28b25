"""Every kernel with every configuration that ships compiles for sm_90 and keeps what it promises.

Compiled in a process of its own: in this one kernels may be decorated for the interpreter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from weft_kernels.cuda import aot
from weft_kernels.cuda.configs import PATH, read_table

VARIANTS = aot.find_variants()
GATE = "test_it_compiles_for_sm_90"


@pytest.fixture(scope="module")
def reports(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The reports of the variants that were selected, by name."""
    names: list[str] = [
        str(item.callspec.params["name"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == GATE
    ]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "weft_kernels.cuda.aot", *names],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = [json.loads(line) for line in run.stdout.splitlines()]
    return {line["name"]: line for line in found}


@pytest.mark.parametrize("name", VARIANTS)
def test_it_compiles_for_sm_90(name: str, reports: dict[str, Any]) -> None:
    assert reports[name]["faults"] == []


def test_each_operator_that_has_configurations_is_compiled() -> None:
    assert read_table(PATH).keys() <= {name.partition("/")[0] for name in VARIANTS}
