"""Which adapter each request of a batch asks for: the popularities of tests and benches.

As Punica measures them (Chen et al. 2023), seeded and without tensors, so that a test and a bench
of one name run the same batches.
"""

from __future__ import annotations

import random

POPULARITIES = ("distinct", "uniform", "zipf", "identical", "skewed")

# each adapter has this share of the one before
_SKEW = 1 / 1.5


def assign_adapters(popularity: str, num_rows: int, num_adapters: int, seed: int) -> list[int]:
    """The adapter, 0 .. num_adapters - 1, of each row; ValueError for an unknown popularity.

    distinct: no adapter twice before all came once; uniform: each as likely; zipf: the n-th has
    1 / n of the first's share (s = 1); skewed: each has two thirds of the one before; identical:
    all rows use adapter 0.
    """
    if num_adapters < 1:
        raise ValueError(f"num_adapters must be at least 1, not {num_adapters}")
    rng = random.Random(f"{popularity}:{num_rows}:{num_adapters}:{seed}")
    adapters = range(num_adapters)
    if popularity == "distinct":
        rows = [row % num_adapters for row in range(num_rows)]
        rng.shuffle(rows)
        return rows
    if popularity == "identical":
        return [0] * num_rows
    weights = {
        "uniform": [1.0 for _ in adapters],
        "zipf": [1.0 / (n + 1) for n in adapters],
        "skewed": [_SKEW**n for n in adapters],
    }
    if popularity not in weights:
        raise ValueError(f"popularity must be one of {', '.join(POPULARITIES)}, not {popularity!r}")
    return rng.choices(adapters, weights[popularity], k=num_rows)
