"""The page table: what kernels find in it after slots were filled, changed and emptied."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from weft_kernels.cuda.page_columns import AdapterPages, ColumnForm, SitePages
from weft_kernels.cuda.pages import check_page_table
from weft_kernels.cuda.slot_pages import SlotPages, create_page_table

SHAPES = [(16, 24), (24, 8), (40, 16)]
SIZE = 1 << 16


def create(
    slots: list[AdapterPages | None], device: torch.device, num_entries: int | None = None
) -> SlotPages:
    memory = torch.zeros(SIZE, device=device)
    return create_page_table(
        memory, SHAPES, slots, max_rank=64,
        num_entries=num_entries, has_row_scales=True, has_biases=True,
    )  # fmt: skip


def adapter(seed: int, sites: tuple[int, ...] = (0, 1, 2)) -> dict[int, SitePages]:
    """Random ranks, runs anywhere."""
    rng = random.Random(seed)
    pages = {}
    for site in sites:
        rank = rng.randrange(1, 65)
        rows = [8] * -(-rank // 8)
        if len(rows) > 2:
            rows[:2] = [16]
        runs = [(8 * rng.randrange(4000), num_rows) for num_rows in rows]
        pages[site] = SitePages(rank, rng.random(), runs)
    return pages


def page_offsets(pages: SitePages, num_in: int, num_out: int) -> list[tuple[int, int]]:
    """Where A and B of each page start, worked out one by one."""
    found = []
    for start, num_rows in pages.runs:
        for row in range(0, num_rows, 8):
            found.append((start + row * num_in, start + num_rows * num_in + row * num_out))
    return found


def put(pages: SlotPages, slot: int, adapter: AdapterPages | None) -> None:
    pages.set(slot, None if adapter is None else pages.form.prepare(adapter))


def found_pages(pages: SlotPages, site: int, slot: int) -> list[tuple[int, int]]:
    """The offsets of A and B of each page, as a kernel reads them."""
    table = pages.table
    first, rank = int(table.first_pages[site, slot]), int(table.ranks[site, slot])
    entries = range(first, first + rank // 8)
    return [(int(table.a_offsets[e]), int(table.b_offsets[e])) for e in entries]


def test_a_run_holds_its_a_rows_and_then_its_b_rows(device: torch.device) -> None:
    site = SitePages(20, 2.0, [(800, 16), (80, 8)], row_scale=8, bias=40)
    pages = create([None, {0: site}], device)
    pages.check()
    assert found_pages(pages, 0, 1) == [
        (800, 800 + 16 * 16),
        (800 + 8 * 16, 800 + 16 * 16 + 8 * 24),
        (80, 80 + 8 * 16),
    ]
    table = pages.table
    assert table.ranks.tolist() == [[0, 24], [0, 0], [0, 0]]
    assert table.true_ranks.tolist() == [[0, 20], [0, 0], [0, 0]]
    assert table.scales[:, 1].tolist() == [2.0, 0.0, 0.0]
    assert table.row_scales is not None
    assert table.row_scales.tolist() == [[-1, 8], [-1, -1], [-1, -1]]
    assert table.biases is not None
    assert table.biases.tolist() == [[-1, 40], [-1, -1], [-1, -1]]


def test_churn_leaves_each_slot_what_it_was_given(device: torch.device) -> None:
    # entries for half of what five adapters may need: gaps, compaction and refusals come up
    rng = random.Random(0)
    pages = create([None] * 5, device, num_entries=40)
    addresses = [t.data_ptr() for t in (pages.table.ranks, pages.table.a_offsets)]
    seated: dict[int, AdapterPages] = {}
    refusals = 0
    for step in range(150):
        slot = rng.randrange(5)
        new = None if rng.random() < 0.3 else adapter(step, tuple(rng.sample(range(3), 2)))
        try:
            put(pages, slot, new)
        except ValueError:
            refusals += 1
        else:
            seated.pop(slot, None)
            seated |= {} if new is None else {slot: new}
        for s in range(5):
            for site, shape in enumerate(SHAPES):
                want = seated.get(s, {}).get(site)
                offsets = [] if want is None else page_offsets(want, *shape)
                assert found_pages(pages, site, s) == offsets
    assert 0 < refusals < 75
    pages.check()
    assert addresses == [t.data_ptr() for t in (pages.table.ranks, pages.table.a_offsets)]


POISON = 0x5A5A5A5A


def plain_column(adapter: AdapterPages, first: int) -> Mapping[str, list[float]]:
    """A column of the table, site by site, for entries from `first` on."""
    column: dict[str, list[float]] = {
        name: []
        for name in ("ranks", "true_ranks", "first_pages", "scales", "row_scales", "biases")
    }
    firsts, at = {}, first
    for site, pages in adapter.items():
        firsts[site] = at
        at += len(page_offsets(pages, *SHAPES[site]))
    for site in range(len(SHAPES)):
        found = adapter.get(site, SitePages(0, 0.0, []))
        column["ranks"].append(-(-found.rank // 8) * 8)
        column["true_ranks"].append(found.rank)
        column["first_pages"].append(firsts.get(site, 0))
        column["scales"].append(found.scale)
        column["row_scales"].append(-1 if found.row_scale is None else found.row_scale)
        column["biases"].append(-1 if found.bias is None else found.bias)
    return column


@pytest.mark.parametrize("seed", range(20))
def test_a_column_is_what_its_sites_say_and_the_others_are_left_alone(
    seed: int, device: torch.device
) -> None:
    rng = random.Random(seed)
    new = adapter(seed, tuple(rng.sample(range(3), rng.randint(0, 3))))
    for site, found in new.items():
        vectors = [rng.choice([None, 8 * rng.randrange(4000)]) for _ in range(2)]
        new[site] = replace(found, row_scale=vectors[0], bias=vectors[1])
    pages, slot = create([None] * 4, device), rng.randrange(4)
    put(pages, 3 - slot, adapter(seed + 100))
    table = pages.table
    entries = [table.a_offsets, table.b_offsets]
    columns: dict[str, Tensor] = {}
    for name in plain_column({}, 0):
        columns[name] = getattr(table, name)
    for values in (*entries, *columns.values()):
        values.fill_(POISON)
    put(pages, slot, new)
    want = [page_offsets(found, *SHAPES[site]) for site, found in new.items()]
    offsets = [pair for own in want for pair in own]
    first = min((int(v) for v in table.first_pages[list(new), slot]), default=0)
    for name, column in plain_column(new, first).items():
        assert columns[name][:, slot].tolist() == pytest.approx(column)
        others = [other for other in range(4) if other != slot]
        assert (columns[name][:, others] == POISON).all()
    for part, values in enumerate(entries):
        live = values[first : first + len(offsets)].tolist()
        assert live == [pair[part] for pair in offsets]
        assert int((values == POISON).sum()) == len(values) - len(offsets)


def test_offsets_of_a_pool_beyond_32_bits_keep_their_values() -> None:
    # in units of 8 elements up to 2^34 of them, whole beyond
    for num_elements, dtype in ((1 << 34, torch.int32), ((1 << 34) + 8, torch.int64)):
        form = ColumnForm(tuple(SHAPES), num_elements, max_rank=64)
        start = num_elements - 16 * (16 + 24)
        column = form.prepare({0: SitePages(16, 1.0, [(start, 16)])})
        _, _, offsets, _ = column.parts
        assert offsets.dtype is dtype
        unit = 8 if dtype is torch.int32 else 1
        assert (offsets.to(torch.int64) * unit).T.tolist() == [
            list(pair) for pair in page_offsets(SitePages(16, 1.0, [(start, 16)]), 16, 24)
        ]
        with pytest.raises(ValueError, match="reaches beyond"):
            form.prepare({0: SitePages(16, 1.0, [(start + 8, 16)])})


def test_whole_offsets_reach_the_table(device: torch.device) -> None:
    pages = create([None, None], device)
    own, large = adapter(3), replace(pages.form, num_elements=1 << 35)
    column = large.prepare(own)
    assert large.offset_dtype is torch.int64
    with pytest.raises(ValueError, match="for another page table"):
        pages.set(0, column)
    other = replace_form(pages, large)
    other.set(1, column)
    for site, found in own.items():
        assert found_pages(other, site, 1) == page_offsets(found, *SHAPES[site])


def replace_form(pages: SlotPages, form: ColumnForm) -> SlotPages:
    """The same table, written as one of a pool of another size."""
    return SlotPages(
        pages.table, form, pages._rows, pages._entries, pages._vectors, [None] * len(pages._slots)
    )


def test_an_adapter_of_few_sites_is_packed_small() -> None:
    shapes = [(16, 24)] * 1000
    form = ColumnForm(tuple(shapes), SIZE, max_rank=64)
    column = form.prepare({500: SitePages(8, 1.0, [(80, 8)])})
    assert len(column.packed) < 16


def test_an_emptied_slot_leads_nowhere(device: torch.device) -> None:
    site = SitePages(20, 2.0, [(800, 16), (80, 8)], row_scale=8, bias=40)
    pages = create([{0: site, 2: replace(site, runs=[(8, 24)])}], device)
    pages.set(0, None)
    table = pages.table
    assert pages.get(0) is None
    for values, empty in (
        (table.ranks, 0), (table.true_ranks, 0), (table.first_pages, 0), (table.scales, 0),
        (table.row_scales, -1), (table.biases, -1),
    ):  # fmt: skip
        assert values is not None
        assert (values == empty).all()


def test_a_smaller_adapter_does_not_inherit_sites(device: torch.device) -> None:
    pages = create([adapter(1)], device)
    put(pages, 0, adapter(2, (1,)))
    assert (pages.table.ranks[:, 0] > 0).tolist() == [False, True, False]
    pages.check()


@pytest.mark.parametrize(
    ("site", "wrong", "message"),
    [
        (3, SitePages(8, 1.0, [(0, 8)]), "site 3 is not one"),
        (0, SitePages(65, 1.0, [(0, 72)]), "rank 65 at site 0"),
        (0, SitePages(8, 1.0, [(0, 16)]), "2 pages at site 0 for the rank 8"),
        (0, SitePages(17, 1.0, [(0, 16)]), "2 pages at site 0 for the rank 17"),
        (0, SitePages(8, 1.0, [(0, 4), (8, 4)]), "whole pages"),
        (0, SitePages(8, 1.0, [(4, 8)]), "multiple of 8"),
        (0, SitePages(8, 1.0, [(SIZE - 312, 8)]), "reaches beyond"),
        (0, SitePages(8, 1.0, [(-8, 8)]), "reaches beyond"),
        (0, SitePages(8, 1.0, [(0, 8)], bias=SIZE - 16), "reaches beyond"),
    ],
)
def test_what_the_table_cannot_hold_is_refused_when_it_is_prepared(
    site: int, wrong: SitePages, message: str, device: torch.device
) -> None:
    pages = create([None], device)
    with pytest.raises(ValueError, match=message):
        pages.form.prepare({2: SitePages(8, 1.0, [(0, 8)]), site: wrong})


def test_vectors_need_a_place(device: torch.device) -> None:
    pages = create_page_table(torch.zeros(SIZE, device=device), SHAPES, [None], max_rank=8)
    assert pages.table.row_scales is None
    with pytest.raises(ValueError, match="no place for"):
        pages.form.prepare({0: SitePages(8, 1.0, [(0, 8)], row_scale=0)})
    with pytest.raises(ValueError, match="slot 1"):
        pages.set(1, None)


def test_pages_that_do_not_fit_are_refused(device: torch.device) -> None:
    pages = create([{0: SitePages(16, 1.0, [(0, 16)])}, None], device, num_entries=3)
    with pytest.raises(ValueError, match="2 pages beside 2 of other slots"):
        put(pages, 1, {0: SitePages(16, 1.0, [(0, 16)])})
    pages.check()
    put(pages, 1, {0: SitePages(8, 1.0, [(0, 8)])})
    pages.check()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ranks", 32, "padded rank"),
        ("true_ranks", 70, "a rank is not in"),
        ("first_pages", 1 << 20, "leaves the table"),
        ("scales", float("nan"), "not finite"),
        ("row_scales", SIZE, "vector at"),
        ("biases", -2, "vector at"),
    ],
)
def test_a_malformed_table_is_found(
    name: str, value: float, message: str, device: torch.device
) -> None:
    pages = create([{0: SitePages(20, 2.0, [(800, 16), (80, 8)])}], device)
    getattr(pages.table, name)[0, 0] = value
    with pytest.raises(ValueError, match=message):
        check_page_table(pages.table, SHAPES)


def test_offsets_beside_the_pages_are_found(device: torch.device) -> None:
    pages = create([{0: SitePages(8, 2.0, [(800, 8)])}], device)
    for offset, message in ((SIZE, "page at"), (4, "page at"), (808, "other pages")):
        pages.table.b_offsets[0] = offset
        with pytest.raises(ValueError, match=message):
            pages.check()


def test_a_pool_must_be_flat_floats(device: torch.device) -> None:
    for memory in (torch.zeros(4, 4), torch.zeros(16, dtype=torch.int32), torch.zeros(32)[::2]):
        with pytest.raises(ValueError, match="flat, contiguous"):
            create_page_table(memory.to(device), SHAPES, [None], max_rank=8)
