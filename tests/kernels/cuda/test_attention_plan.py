"""The plan of a step's attention: every query meets every key that it may see, once."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from weft_kernels.cuda.attention_plan import (
    AttentionPlanner,
    AttentionWork,
    Span,
    create_attention_metadata,
    create_attention_planner,
)
from weft_kernels.cuda.attention_tiles import Ints, Tiling

PLANNER = AttentionPlanner(
    num_kv_heads=2,
    groups=4,
    block_size=16,
    decode=Tiling(16, 16, split_len=32, num_programs=24, num_warps=4, num_stages=2),
    prefill=Tiling(64, 32, split_len=64, num_programs=12, num_warps=4, num_stages=2),
)
CPU = torch.device("cpu")


def create_spans(lengths: list[tuple[int, int]]) -> tuple[list[Span], list[list[int]]]:
    spans: list[Span] = []
    tables: list[list[int]] = []
    row = 0
    for i, (num_new, num_total) in enumerate(lengths):
        spans.append((row, num_new, num_total))
        tables.append([1000 * i + k for k in range(-(-num_total // 16))])
        row += num_new
    return spans, tables


def visits(work: AttentionWork, tables: Ints) -> Counter[tuple[int, int, int]]:
    """How often a row may meet a key of a block, from the items alone."""
    found: Counter[tuple[int, int, int]] = Counter()
    for table, row, num_queries, position, first, stop, _, _ in work.items.tolist():
        for query in range(num_queries):
            for key in range(first, min(stop, position + query + 1)):
                found[row + query, key, int(tables[table + key // 16])] += 1
    return found


@pytest.mark.parametrize("seed", range(60))
def test_every_query_meets_every_key_that_it_may_see_once(seed: int) -> None:
    rng = random.Random(seed)
    totals = [rng.randint(1, 600) for _ in range(seed % 7)]
    lengths = [(rng.randint(1, min(total, 70)), total) for total in totals]
    window, num_padding = rng.choice([None, 1, 16, 100]), rng.randint(0, 9)
    spans, tables = create_spans(lengths)
    num_live = sum(num_new for num_new, _ in lengths)
    planner = replace(PLANNER, windows=(window,))
    num_rows = num_live + num_padding
    metadata = create_attention_metadata(planner, spans, tables, CPU, num_rows)
    flat = metadata.tables.numpy()
    found: Counter[tuple[int, int, int]] = Counter()
    written: list[int] = []
    for work in metadata.work[window]:
        found += visits(work, flat)
        written += check_partials(work)
    want = {
        (first + query, key, blocks[key // 16])
        for (first, num_new, total), blocks in zip(spans, tables, strict=True)
        for query in range(num_new)
        for key in range(
            0 if window is None else max(0, total - num_new + query - window + 1),
            total - num_new + query + 1,
        )
    }
    assert want <= found.keys()
    assert set(found.values()) <= {1}
    # every row is written once, padding too
    assert sorted(written) == list(range(num_rows))
    # and what was found beyond the wanted lies before a window, of a neighbour's tile
    for row, key, _ in found.keys() - want:
        assert window is not None
        assert any(r == row and key < k for r, k, _ in want)
    limits = planner.limits(max(num_rows, 1), max(len(spans), 1), 600, has_prefill=True)
    packed, _ = planner.pack(spans, tables, num_rows, limits)
    assert len(packed) <= planner.num_ints(limits)


def check_partials(work: AttentionWork) -> list[int]:
    """Partial results are whole numbers in order, each of one item and one merge; the rows that
    items and merges write."""
    items, merges = work.items.numpy(), work.merges.numpy()
    lengths = items[:, 5] - items[:, 4]
    assert (np.diff(lengths) <= 0).all()
    partials = sorted(items[items[:, 6] >= 0, 6])
    merged = [first + k for first, count, _, _ in merges for k in range(count)]
    assert partials == sorted(merged) == list(range(work.num_partials))
    rows = [r for i in items if i[6] < 0 for r in range(i[1], i[1] + i[2])]
    by_partial = {int(i[6]): i for i in items}
    for first, count, row, num_queries in merges:
        assert count > 1
        parts = [by_partial[first + k] for k in range(count)]
        # side by side, in the order of their keys
        assert all(a[5] == b[4] for a, b in zip(parts, parts[1:], strict=False))
        assert all((p[1], p[2]) == (row, num_queries) for p in parts)
        rows += range(row, row + num_queries)
    return rows


def test_a_long_request_is_split_and_short_ones_beside_it_are_not() -> None:
    spans, tables = create_spans([(1, 600), (1, 20), (1, 20)])
    decode, prefill = create_attention_metadata(PLANNER, spans, tables, CPU).work[None]
    assert len(prefill.items) == 0
    assert decode.merges.tolist() == [[0, decode.num_partials, 0, 1]]
    assert decode.num_partials > 6
    assert len(decode.items) == decode.num_partials + 2


def test_requests_that_fill_the_device_are_not_split() -> None:
    spans, tables = create_spans([(1, 600)] * 12)
    decode, _ = create_attention_metadata(PLANNER, spans, tables, CPU).work[None]
    assert len(decode.items) == 12
    assert len(decode.merges) == 0


def test_chunks_that_a_decode_tile_holds_are_decoded() -> None:
    spans, tables = create_spans([(4, 40), (5, 40)])
    decode, prefill = create_attention_metadata(PLANNER, spans, tables, CPU).work[None]
    assert set(decode.items[:, 1].tolist()) == {0}
    assert set(prefill.items[:, 1].tolist()) == {4}


def test_unused_places_of_a_captured_step_are_blank() -> None:
    limits = PLANNER.limits(8, 8, 600, has_prefill=True)
    spans, tables = create_spans([(1, 600), (1, 33)])
    packed, kept = PLANNER.pack(spans, tables, 2, limits)
    assert kept == limits
    buffer = torch.full((PLANNER.num_ints(limits),), 7, dtype=torch.int32)
    buffer[: len(packed)] = torch.from_numpy(packed)
    for work in PLANNER.view(buffer, limits).work[None]:
        used = int((work.items[:, 2] > 0).sum())
        assert work.items[used:].count_nonzero() == 0
        assert work.merges[int((work.merges[:, 1] > 0).sum()) :].count_nonzero() == 0


def test_what_does_not_fit_is_named() -> None:
    spans, tables = create_spans([(1, 33), (1, 20)])
    limits = PLANNER.limits(2, 1, 40, has_prefill=False)
    with pytest.raises(ValueError, match="5 blocks, more than 3"):
        PLANNER.pack(spans, tables, None, limits)
    with pytest.raises(ValueError, match="prefill of the step needs"):
        PLANNER.pack(*create_spans([(33, 33)]), None, limits)
    with pytest.raises(ValueError, match="2 blocks do not hold a context of 33 tokens"):
        PLANNER.pack([(0, 1, 33)], [[1, 2]])
    with pytest.raises(ValueError, match="a chunk of 3 tokens in a context of 2"):
        PLANNER.pack([(0, 3, 2)], [[1]])
    with pytest.raises(ValueError, match="at least 1"):
        replace(PLANNER, windows=(0,))


def test_a_planner_has_the_configured_tilings() -> None:
    planner = create_attention_planner(8, 4, 128, torch.bfloat16, (None, 4096))
    assert planner.decode.block_m == 16
    assert planner.prefill.block_m == 128
    many = create_attention_planner(1, 71, 64, torch.bfloat16)
    assert many.decode.block_m == 128
