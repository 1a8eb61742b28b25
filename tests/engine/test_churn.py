"""A seeded slice of `benchmarks.churn`: the right weights while adapters come and go."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.churn import Churn
from benchmarks.isolated import Verdicts


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_no_request_gets_another_versions_tokens(kind: str, tmp_path: Path) -> None:
    assert_right_weights(Churn(tmp_path, kind, num_requests=75, seed=1))


def assert_right_weights(churn: Churn) -> None:
    """Run it; also, that the comparison has something to compare and can fail."""
    churn.run()
    verdicts = churn.compare()
    assert not verdicts.mismatches, verdicts.mismatches
    assert verdicts.are_near_ties_rare
    assert verdicts.num_positions > 300
    # what is claimed to have happened did happen
    figures = churn.figures()
    for event in ("aborted", "replaced", "deleted", "preemptions", "reloads"):
        number = figures[event]
        assert isinstance(number, int)
        assert number > 0, f"no {event}"
    assert_the_comparison_can_fail(churn)
    churn.isolated.close()


def assert_the_comparison_can_fail(churn: Churn) -> None:
    """A whole answer of one version is none of another's."""
    whole = {g.digest: g for g in churn.generated.values() if len(g.token_ids) >= 8}
    one, other = list(whole.values())[:2]
    verdicts = Verdicts()
    churn.isolated.judge(verdicts, "swapped", other.digest, one.prompt, one.token_ids)
    assert verdicts.mismatches
