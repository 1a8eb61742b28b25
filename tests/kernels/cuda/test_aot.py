"""Every kernel with every configuration that ships compiles for sm_90 and keeps what it promises.

Compiled in a process of its own: in this one kernels may be decorated for the interpreter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from weft_kernels.cuda import aot
from weft_kernels.cuda.configs import PATH, read_table

VARIANTS = aot.find_variants()
GATE = "test_it_compiles_for_sm_90"
# the first test waits for all variants to be compiled, on a busy machine with an empty cache
pytestmark = pytest.mark.timeout(1200)


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


@pytest.mark.parametrize(
    ("change", "promise", "fault"),
    [
        ({"error": "no"}, {}, "it does not compile: no"),
        ({"stack_bytes": 8}, {}, "it spills: 8 bytes of stack, 0 of local memory"),
        ({"local_bytes": 4}, {}, "it spills: 0 bytes of stack, 4 of local memory"),
        ({"shared_bytes": 232_449}, {}, "it needs 232449 bytes of shared memory"),
        ({"has_vector_loads": False}, {}, "it has no 16-byte load from global memory"),
        ({}, {"needs_mma": True}, "it has no tensor-core instruction"),
        ({}, {"launch_pdl": True}, "it never waits for the kernel that it is launched beside"),
    ],
)
def test_a_promise_that_is_not_kept_is_a_fault(
    change: dict[str, Any], promise: dict[str, Any], fault: str
) -> None:
    variant = aot.AotVariant("op/form", None, {}, {}, (), num_warps=4, num_stages=1)
    report = aot.AotReport("op/form", shared_bytes=232_448, has_vector_loads=True)
    assert report.faults(variant) == []
    assert replace(report, **change).faults(replace(variant, **promise)) == [fault]


@pytest.mark.parametrize(
    ("line", "is_vector"),
    [
        ("@%p1 ld.global.v4.b32 { %r2, %r3, %r4, %r5 }, [ %rd1 + 0 ];", True),
        ("ld.global.L1::evict_last.v2.b64 { %rd2, %rd3 }, [ %rd1 + 0 ];", True),
        ("cp.async.cg.shared.global [ %r1 + 0 ], [ %rd2 + 0 ], 0x10, %r4;", True),
        ("cp.async.ca.shared.global [ %r1 + 0 ], [ %rd2 + 0 ], 0x8, %r4;", False),
        ("ld.global.v2.b32 { %r2, %r3 }, [ %rd1 + 0 ];", False),
        ("ld.global.b32 { %r2 }, [ %rd1 + 0 ];", False),
        ("ld.shared.v4.b32 { %r2, %r3, %r4, %r5 }, [ %r1 + 0 ];", False),
    ],
)
def test_a_vector_load_has_16_bytes(line: str, is_vector: bool) -> None:
    assert (aot._VECTOR_LOAD.search(line) is not None) is is_vector


def test_each_operator_that_has_configurations_is_compiled() -> None:
    assert read_table(PATH).keys() <= {name.partition("/")[0] for name in VARIANTS}
