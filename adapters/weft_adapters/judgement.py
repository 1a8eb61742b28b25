"""What is odd about an adapter that can be served: values far from the others, changes of nothing.

Works on statistics of the tensors, which validation reads once; refuses nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from weft_adapters.format import AdapterPlan
from weft_adapters.report import listed
from weft_adapters.tensors import TensorStats

# a change is an outlier when it is so many times the adapter's median one, or when its values are
# so large by themselves: a language model's weights are around 0.02
_OUTLIER_RATIO = 1000.0
_OUTLIER_RMS = 100.0
# float32 adds nothing this small to activations of any usual size
_NEGLIGIBLE_RMS = 1e-20

# lengths of a weight's rows are around 1, trained biases of some models in the hundreds
_OUTLIER_VECTOR_RMS = 1e4

_PAIR = {"lora_A", "lora_B"}


@dataclass(frozen=True, slots=True)
class Change:
    """What one pair of factors adds to a weight. `rms` bounds the root mean square of the values of
    scale * B A from above, by |B| |A|."""

    target: str
    rms: float


def changes_of(plan: AdapterPlan, stats: Mapping[str, TensorStats]) -> Iterator[Change]:
    """One for each pair of factors."""
    uses = plan.uses()
    for pair in plan.pairs:
        a, b = stats[pair.a_name], stats[pair.b_name]
        # |A| = rms_a sqrt(r in), |B| = rms_b sqrt(out r); divided by sqrt(in out)
        rms = abs(pair.scale) * pair.rank * a.rms * b.rms
        yield Change(uses[pair.a_name].target, rms)


def warnings_of(plan: AdapterPlan, stats: Mapping[str, TensorStats]) -> list[str]:
    """Sentences; none for an adapter like most."""
    changes = list(changes_of(plan, stats))
    others = {use.role for use in plan.uses().values()} - _PAIR
    return [
        *_no_op_warnings(changes, has_others=bool(others)),
        *_outlier_warnings(changes),
        *_vector_warnings(plan, stats),
    ]


def _no_op_warnings(changes: Sequence[Change], *, has_others: bool) -> Iterator[str]:
    idle = [change.target for change in changes if change.rms <= _NEGLIGIBLE_RMS]
    if not idle:
        return
    if len(idle) == len(changes) and not has_others:
        yield "every product of lora_A, lora_B and the scale is zero: the adapter changes nothing"
    else:
        yield f"{len(idle)} of {len(changes)} pairs of factors change nothing: {listed(idle)}"


def _outlier_warnings(changes: Sequence[Change]) -> Iterator[str]:
    sizes = [change.rms for change in changes if change.rms > _NEGLIGIBLE_RMS]
    if not sizes:
        return
    median = statistics.median(sizes)
    limit = min(_OUTLIER_RMS, _OUTLIER_RATIO * median)
    outliers = [change for change in changes if change.rms > limit]
    if outliers:
        largest = max(change.rms for change in outliers)
        yield (
            f"{len(outliers)} of {len(changes)} changes are outliers, with values of up to about "
            f"{largest:.3g} where the adapter's median is {median:.3g}: "
            f"{listed(change.target for change in outliers)}"
        )


def _vector_warnings(plan: AdapterPlan, stats: Mapping[str, TensorStats]) -> Iterator[str]:
    """Of magnitudes and biases."""
    uses = dict(plan.vectors.uses())
    outliers = [name for name in uses if stats[name].rms > _OUTLIER_VECTOR_RMS]
    if outliers:
        largest = max(stats[name].max_abs for name in outliers)
        yield (
            f"{len(outliers)} of {len(uses)} magnitudes and biases are outliers, with values of up "
            f"to {largest:.3g}: {listed(uses[name].target for name in outliers)}"
        )
