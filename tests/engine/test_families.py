"""Every family of `weft_adapters.families` against transformers + PEFT: first-step
logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from tests.engine.families import CASES, adapter_of, create_requests

from weft.engine.offline import load_adapters
from weft_adapters.families import FAMILIES

if TYPE_CHECKING:
    from tests.bench import Bench


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_logits_are_the_oracles(name: str, get_family_bench: Callable[[str], Bench]) -> None:
    bench = get_family_bench(name)
    built, digests = bench.build()
    load_adapters(built, digests.values())
    requests = list(create_requests(digests))
    got = bench.first_step_logits(built, requests)
    for request in requests:
        want = bench.oracle.logits(adapter_of(request), request.prompt_token_ids)[-1]
        error = (got[request.request_id] - want).abs().max() / max(1.0, float(want.abs().max()))
        assert error < 1e-4, f"{request.request_id}: {error:.2e}"
    built.tiers.close()


def test_every_family_has_two_sizes() -> None:
    assert sorted(2 * list(FAMILIES)) == sorted(case.model_type for case in CASES.values())
