"""Adapters of experts, by (expert, slot) of a token's pair, over pages at true rank.

    h[p] = s A x[p]                      shrink: one launch for the sites that share x (gate, up)
    y[p] = m * (y[p] + B h[p]) + b       expand: after the base's product, before the activation or
                                         the weighted sum

of pair p's adapter at its expert's site, `site = first_site + expert`. PEFT's module per expert and
its fused `target_parameters` come to the same sites: of a fused pair, each expert's slices are a
site, and gate and up have one A and a half of B each. Where both sites' pages name one A, it comes
from memory once and from the cache the second time.

The kernels are in `expert_lora_shrink.py` and `expert_lora_expand.py`; here is what these and the
base GEMMs of few tokens (`expert_mm.py`) share. A pair whose slot is -1, or whose adapter has no
rank at the site, reads nothing. Runs of a slot from `FEW_PAIRS` on use tensor cores, shorter ones a
GEMV per pair. No sum depends on the order of programs.

Legend: P pairs in sorted order (their *places*), S sites that share x, R the table's highest rank,
I in, O out, L runs. x bf16, fp16 or fp32, of the pool's dtype; h float32 `[S, P, R]`: columns from
an adapter's rank on, and rows without an adapter, hold anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from weft_kernels.cuda.aot import AotVariant
from weft_kernels.cuda.configs import Config
from weft_kernels.cuda.pages import PAGE_ROWS, PageTable
from weft_kernels.cuda.pair_groups import FEW_PAIRS, PairGroups

# rank rows of one tensor-core step: two pages
RANK_STEP = 16
# rows of a tile where there are more pairs than 2048, 256 tokens on 8 experts
MANY_TILE_ROWS = 64
MAX_FEW_PAIRS = 2048


@dataclass(frozen=True, slots=True)
class ExpertLora:
    """A layer's expert adapters: the first expert's site of each projection, and whose rows they
    are: slots_T int32 `[T]`, -1 for none."""

    table: PageTable
    gate_site: int
    up_site: int
    down_site: int
    slots_T: Tensor


def expand_arguments(table: PageTable | None) -> tuple[Tensor | None, ...]:
    """What the kernels that read B take of a table, in their order."""
    if table is None:
        return (None,) * 6
    return (
        table.memory, table.true_ranks, table.first_pages, table.b_offsets, table.row_scales,
        table.biases,
    )  # fmt: skip


def check_rows(x: Tensor, table: PageTable, groups: PairGroups) -> None:
    """ValueError for rows, of x or of y, that do not go with the pool, and pairs without slots."""
    if x.dim() != 2 or x.stride(1) != 1 or x.dtype != table.memory.dtype:
        raise ValueError(
            f"the rows must be a matrix of {table.memory.dtype}, as the pool, with unit stride, "
            f"not {x.dtype} {tuple(x.shape)}"
        )
    if groups.runs_L4 is None:
        raise ValueError("the pairs were grouped without slots")


# how the arguments of the experts' kernels are typed; what is not here is an int32
_POINTERS = {
    "x_ptr": "*bf16", "w_ptr": "*bf16", "act_ptr": "*bf16", "y_ptr": "*bf16", "h_ptr": "*fp32",
    "weights_ptr": "*fp32", "experts_ptr": "*i32", "planes_ptr": "*fp32", "arrived_ptr": "*i32",
    "tiles_ptr": "*i32", "runs_ptr": "*i32", "pair_ptr": "*i32", "slot_ptr": "*i32",
    "memory_ptr": "*bf16", "true_ranks_ptr": "*i32", "first_pages_ptr": "*i32",
    "a_offsets_ptr": "*i64", "b_offsets_ptr": "*i64", "scales_ptr": "*fp32",
    "row_scales_ptr": "*i64", "biases_ptr": "*i64",
}  # fmt: skip
_ALIGNED = {"num_in", "num_out", "width", "hidden", "x_stride", "y_stride"}
WITHOUT_VECTORS: dict[str, None] = dict.fromkeys(["row_scales_ptr", "biases_ptr"])


def create_variant(
    name: str, kernel: Any, config: Config, constants: Mapping[str, int | None]
) -> AotVariant:
    """A kernel of the experts with a configuration; constants: its own, None for what is absent."""
    names = kernel.arg_names
    shared = {"FEW_PAIRS": FEW_PAIRS, "PAGE_ROWS": PAGE_ROWS, "RANK_STEP": RANK_STEP, **config}
    return AotVariant(
        name=name,
        kernel=kernel,
        signature={n: _POINTERS.get(n, "i32") for n in names},
        constants={n: value for n, value in (shared | dict(constants)).items() if n in names},
        divisible_by_16=[n for n in names if n in _POINTERS or n in _ALIGNED],
        num_warps=config["num_warps"],
        num_stages=config["num_stages"],
        needs_mma=True,
    )
