"""The adapted linear's three forms against their twin: popularities, ranks, layouts, isolation."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from tests.kernels.cuda.lora_cases import BASE_ONLY, assert_near, create_case
from tests.kernels.cuda.lora_forms import CONFIG, NAN, run

from weft_kernels.cuda.configs import TuningSpace
from weft_kernels.cuda.lora import FORMS, adapted_linear, add_lora_, choose_form
from weft_kernels.cuda.lora_sites import create_site_group
from weft_kernels.cuda.lora_tuning import TUNING
from weft_kernels.cuda.segments import create_segments, fill_segments_
from weft_kernels.cuda.tail_pages import create_tail_pages
from weft_kernels.linear import create_linear_weight
from weft_kernels.popularity import POPULARITIES, assign_adapters
from weft_kernels.reference import Lora

small_case = partial(create_case, num_in=100, widths=(72, 33), ranks=(4, 8, 16, 33))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("popularity", "num_rows"), [("uniform", 1), ("zipf", 7), *((p, 24) for p in POPULARITIES)]
)
def test_mixed_ranks_are_the_twins(
    popularity: str, num_rows: int, form: str, device: torch.device
) -> None:
    rows = assign_adapters(popularity, num_rows, 6, seed=0)
    case = small_case(rows, num_adapters=6)
    assert_near(run(case, form, device), case.twin())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("popularity", ["skewed", "identical"])
def test_133_rows_with_vectors_are_the_twins(
    popularity: str, form: str, dtype: torch.dtype, device: torch.device
) -> None:
    rows = assign_adapters(popularity, 133, 3, seed=2)
    rows[::7] = [BASE_ONLY] * len(rows[::7])
    case = small_case(rows, num_adapters=3, with_vectors=True, dtype=dtype)
    assert case.has_row_scales
    assert case.has_biases
    assert_near(run(case, form, device), case.twin())


@pytest.mark.parametrize("form", FORMS)
def test_long_prompts_beside_decoding_rows_are_the_twins(form: str, device: torch.device) -> None:
    # tiles of 64 rows, runs of 130, 70 and of single rows in between
    rows = [2] * 130 + [0, BASE_ONLY, 3] + [1] * 70 + [3, 0, 0, 4]
    case = small_case(rows, num_adapters=5, with_vectors=True)
    config = {**CONFIG, "BLOCK_M": 64, "SPLIT": 1}
    assert_near(run(case, form, device, block_rows=64, config=config), case.twin())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gemv_rows", [0, 16])
def test_both_cores_are_the_twins(form: str, gemv_rows: int, device: torch.device) -> None:
    rows = [1, 0, 0, 2, 2, 2, 3, 3, 3, 3]
    case = small_case(rows, num_adapters=4, num_in=70, with_vectors=True)
    # three planes in room for four
    config = {**CONFIG, "GEMV_ROWS": gemv_rows, "SPLIT": 3, "BLOCK_K": 32, "GEMV_K": 32}
    assert_near(run(case, form, device, config=config), case.twin())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rank", [4, 15, 24, 256])
def test_every_rank_is_the_twins(rank: int, form: str, device: torch.device) -> None:
    rows = [1, 0, 2, 1, 1, 1]
    case = create_case(rows, ranks=[rank], num_adapters=3, num_in=40, widths=(24,))
    assert_near(run(case, form, device), case.twin())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("num_in", "widths"), [(1, (1,)), (7, (133,)), (133, (1, 7)), (64, (64,))])
def test_ugly_sizes_are_the_twins(
    num_in: int, widths: tuple[int, ...], form: str, device: torch.device
) -> None:
    rows = [BASE_ONLY, 1, 2, 0, 1, 1, 1]
    case = create_case(rows, num_adapters=3, num_in=num_in, widths=widths, with_vectors=True)
    assert_near(run(case, form, device), case.twin())


@pytest.mark.parametrize("form", FORMS)
def test_one_adapter_need_not_be_the_first(form: str, device: torch.device) -> None:
    case = small_case([3] * 6, num_adapters=5)
    assert_near(run(case, form, device), case.twin())


@pytest.mark.parametrize("form", FORMS)
def test_pages_may_lie_in_any_order(form: str, device: torch.device) -> None:
    case = create_case([0, 1, 1, 1, 1, 2], num_adapters=3, num_in=40, widths=(24,), ranks=[64])
    tables = [replace(case, seed=seed).pages(device).table for seed in range(3)]
    orders = {tuple(t.a_offsets[:8].argsort().tolist()) for t in tables}
    assert len(orders) == 3, "each pool has another order of pages"
    got = [run(case, form, device, table=table) for table in tables]
    assert_near(got[0], case.twin())
    assert torch.equal(got[0], got[1])
    assert torch.equal(got[0], got[2])


@pytest.mark.parametrize("form", ["pair", "fused"])
def test_rows_without_an_adapter_are_neither_read_nor_written(
    form: str, device: torch.device
) -> None:
    rows = [BASE_ONLY, 0, BASE_ONLY, 1, 1, 1, 1, BASE_ONLY]
    case = small_case(rows, num_adapters=2, with_vectors=True)
    want = case.twin()
    without = [t for t, row in enumerate(rows) if row == BASE_ONLY]
    case.x[without] = NAN
    got = run(case, form, device)
    assert got[without].isnan().all()
    case.x[without] = 0
    want[without] = case.base(device)[without].cpu().double()
    assert_near(run(case, form, device), want)


@pytest.mark.parametrize("form", ["pair", "fused"])
@pytest.mark.parametrize("num_rows", [2, 5])
def test_a_site_that_the_adapter_does_not_touch_is_not_written(
    num_rows: int, form: str, device: torch.device
) -> None:
    case = small_case([1] * num_rows, num_adapters=2)
    assert [lora is None for lora in case.adapters[1]] == [False, True]
    table, group = case.pages(device).table, case.group(device)
    segments = create_segments(case.slots(device), table.num_slots, 16)
    y = case.base(device)
    y[:, 72:] = NAN
    add_lora_(y, case.x.to(device), group, table, segments, form=form)
    assert_near(y[:, :72], case.twin()[:, :72])
    assert y[:, 72:].isnan().all()


@pytest.mark.parametrize("form", ["pair", "fused"])
def test_weights_that_are_not_finite_stay_their_own(form: str, device: torch.device) -> None:
    rows = [0, 1, 2, 1, 1, 1, 0]
    case = small_case(rows, num_adapters=3)
    spoiled = case.adapters[1][0]
    assert spoiled is not None
    spoiled.b_OR.fill_(float("inf"))
    own = [t for t, row in enumerate(rows) if row == 1]
    others = [t for t, row in enumerate(rows) if row != 1]
    got = run(case, form, device)
    assert_near(got[others], case.twin()[others])
    assert not got[own].isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_a_row_that_is_not_finite_stays_alone(form: str, device: torch.device) -> None:
    case = small_case([1, 1, 1, 1, 1, 0, 2], num_adapters=3)
    want = case.twin()
    case.x[2] = NAN
    got = run(case, form, device)
    assert got[2].isnan().all()
    others = [0, 1, 3, 4, 5, 6]
    assert_near(got[others], want[others])


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_without_adapters_is_the_base(form: str, device: torch.device) -> None:
    case = small_case([BASE_ONLY] * 5, num_adapters=2)
    got = run(case, form, device)
    assert_near(got, case.twin())
    if form != "tail":
        assert torch.equal(got, case.base(device))


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_batch_gives_no_rows(form: str, device: torch.device) -> None:
    case = small_case([], num_adapters=2)
    assert run(case, form, device).shape == (0, 105)


@pytest.mark.parametrize("form", FORMS)
def test_a_slot_that_changed_hands_is_the_new_adapters(form: str, device: torch.device) -> None:
    case = small_case([0, 1, 1, 1, 1, 0], num_adapters=2, with_vectors=True)
    pages = case.pages(device)
    assert_near(run(case, form, device, table=pages.table), case.twin())
    first, second = pages.get(0), pages.get(1)
    pages.set(0, second)
    pages.set(1, first)
    swapped = replace(case, adapters=case.adapters[::-1])
    assert_near(run(case, form, device, table=pages.table), swapped.twin())
    pages.set(1, None)
    nobody: list[Lora | None] = [None] * len(case.widths)
    left = replace(case, adapters=[case.adapters[1], nobody])
    assert_near(run(case, form, device, table=pages.table), left.twin())


@pytest.mark.parametrize("form", FORMS)
def test_segments_used_again_keep_nothing_of_the_step_before(
    form: str, device: torch.device
) -> None:
    case = small_case([0, 1, 2, 3, 0, 1, 2, 3], num_adapters=4)
    table = case.pages(device).table
    segments = create_segments(case.slots(device), table.num_slots, 16)
    for rows in ([3] * 8, [BASE_ONLY] * 7 + [1], case.rows):
        step = replace(case, rows=rows)
        fill_segments_(segments, step.slots(device))
        assert_near(run(step, form, device, table=table, segments=segments), step.twin())


@pytest.mark.parametrize("form", FORMS)
def test_the_same_batch_gives_the_same_bits(form: str, device: torch.device) -> None:
    case = small_case(assign_adapters("zipf", 14, 3, seed=8), num_adapters=3)
    assert torch.equal(run(case, form, device), run(case, form, device))


def test_x_and_y_may_be_slices_of_something_wider(device: torch.device) -> None:
    case = small_case([0, 1, 1, 1, 1, BASE_ONLY], num_adapters=2)
    table, group = case.pages(device).table, case.group(device)
    segments = create_segments(case.slots(device), table.num_slots, 16)
    wide_x = torch.full((6, 300), NAN, device=device)
    wide_x[:, 50:150] = case.x.to(device)
    for form in ("pair", "fused"):
        wide_y = torch.zeros(6, 400, device=device)
        wide_y[:, 96:201] = case.base(device)
        add_lora_(wide_y[:, 96:201], wide_x[:, 50:150], group, table, segments, form=form)
        assert_near(wide_y[:, 96:201], case.twin())
        assert not wide_y[:, :96].any()
        assert not wide_y[:, 201:].any()


@pytest.mark.parametrize("form", [None, *FORMS])
def test_adapted_linear_is_the_twins_with_the_shipped_configurations(
    form: str | None, device: torch.device
) -> None:
    case = small_case([0, 1, 1, 1, 1, BASE_ONLY, 2], num_adapters=3, with_vectors=True)
    table, group = case.pages(device).table, case.group(device)
    segments = create_segments(case.slots(device), table.num_slots)
    assert case.bias is not None
    got = adapted_linear(
        case.x.to(device), create_linear_weight(case.w.to(device)), case.bias.to(device),
        group, table, segments, form=form, tail_pages=create_tail_pages(table, segments),
    )  # fmt: skip
    assert_near(got, case.twin())


def test_few_rows_are_fused() -> None:
    assert choose_form(1, 4096) == "fused"
    assert choose_form(1, 14336) == "pair"
    assert choose_form(64, 2048) == "pair"


def test_what_does_not_go_together_is_refused(device: torch.device) -> None:
    case = small_case([0, 1], num_adapters=2)
    table, group = case.pages(device).table, case.group(device)
    segments = create_segments(case.slots(device), table.num_slots, 16)
    x, y = case.x.to(device), case.base(device)
    with pytest.raises(ValueError, match=r"x must be \[2, 100\]"):
        add_lora_(y, x[:1], group, table, segments)
    with pytest.raises(ValueError, match="x is torch.float16 and the pool torch.float32"):
        add_lora_(y, x.half(), group, table, segments)
    with pytest.raises(ValueError, match=r"y must be \[2, 105\]"):
        add_lora_(y[:, 1:], x, group, table, segments)
    with pytest.raises(ValueError, match="y and bias must be torch.float32"):
        add_lora_(y.half(), x, group, table, segments)
    with pytest.raises(ValueError, match="bias must be contiguous"):
        add_lora_(y, x, group, table, segments, bias_O=y[0, 1:])
    with pytest.raises(ValueError, match="segments over 9 slots"):
        add_lora_(y, x, group, table, create_segments(case.slots(device), 9, 16))
    far = create_site_group([99, 3], 100, group.widths, device)
    with pytest.raises(ValueError, match="site 99"):
        add_lora_(y, x, far, table, segments)
    with pytest.raises(ValueError, match="form must be"):
        add_lora_(y, x, group, table, segments, form="best")
    weight = create_linear_weight(case.w.to(device))
    with pytest.raises(ValueError, match="needs tail_pages"):
        adapted_linear(x, weight, None, group, table, segments, form="tail")
    for sites, widths in (([1, 1], [8, 8]), ([1], [8, 8]), ([], []), ([-1], [8])):
        with pytest.raises(ValueError, match="sites"):
            create_site_group(sites, 8, widths, device)


@pytest.mark.parametrize("space", TUNING, ids=lambda space: str(space.operator))
def test_what_tuning_would_time_runs(space: TuningSpace, device: torch.device) -> None:
    shape = dict.fromkeys(space.shapes[0], 64) | {"rows": 2}
    shape = {key: shape[key] for key in space.shapes[0]}
    candidate = {**space.candidates(shape)[0], "BLOCK_M": 16}
    space.create_launch(shape, device)(candidate)()
