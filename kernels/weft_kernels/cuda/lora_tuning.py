"""What the tuning command may try for the LoRA kernels: a decode or prefill batch of rank 16."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from weft_kernels.cuda.configs import Config, Launch, Shape, TuningSpace, listed_configs
from weft_kernels.cuda.lora_expand import lora_expand_
from weft_kernels.cuda.lora_fused import lora_fused_
from weft_kernels.cuda.lora_shrink import create_planes, lora_shrink
from weft_kernels.cuda.lora_sites import SiteGroup, create_site_group
from weft_kernels.cuda.lora_tail import lora_tail
from weft_kernels.cuda.page_columns import SitePages
from weft_kernels.cuda.pages import PageTable
from weft_kernels.cuda.segments import Segments, create_segments
from weft_kernels.cuda.slot_pages import create_page_table
from weft_kernels.cuda.tail_pages import create_tail_pages

_RANK = 16
_MAX_ADAPTERS = 64
# where the shape names only one side of the site
_OTHER_WIDTH = 4096
_NUM_PLANES = 8
_FUSED_ROWS = 2


@dataclass(frozen=True, slots=True)
class _Batch:
    """Rows that go round up to 64 adapters of one site."""

    x: Tensor
    y: Tensor
    group: SiteGroup
    table: PageTable
    segments: Segments

    def random_planes(self) -> Tensor:
        size = (len(self.x), 1, _RANK, _NUM_PLANES)
        return torch.randn(size, device=self.x.device)


def _create_batch(num_rows: int, num_in: int, num_out: int, device: torch.device) -> _Batch:
    num_adapters = min(num_rows, _MAX_ADAPTERS)
    size = _RANK * (num_in + num_out)
    pool = torch.randn(num_adapters * size, device=device).mul_(0.01).to(torch.bfloat16)
    adapters = [{0: SitePages(_RANK, 1.0, [(i * size, _RANK)])} for i in range(num_adapters)]
    slots = torch.arange(num_rows, dtype=torch.int32, device=device) % num_adapters
    return _Batch(
        x=torch.randn(num_rows, num_in, device=device).to(torch.bfloat16),
        y=torch.zeros(num_rows, num_out, dtype=torch.bfloat16, device=device),
        group=create_site_group([0], num_in, [num_out], device),
        table=create_page_table(pool, [(num_in, num_out)], adapters, max_rank=_RANK).table,
        segments=create_segments(slots, num_adapters),
    )


def _shrink_launch(shape: Shape, device: torch.device) -> Callable[[Config], Launch]:
    batch = _create_batch(shape["rows"], shape["num_in"], _OTHER_WIDTH, device)

    def with_config(config: Config) -> Launch:
        out = create_planes(batch.group, batch.table, batch.segments, config)

        def launch() -> None:
            lora_shrink(batch.x, batch.group, batch.table, batch.segments, out=out, config=config)

        return launch

    return with_config


def _expand_launch(shape: Shape, device: torch.device) -> Callable[[Config], Launch]:
    batch = _create_batch(shape["rows"], _OTHER_WIDTH, shape["num_out"], device)
    planes = batch.random_planes()
    return lambda config: (
        lambda: lora_expand_(
            batch.y, planes, _NUM_PLANES, batch.group, batch.table, batch.segments, config=config
        )
    )


def _fused_launch(shape: Shape, device: torch.device) -> Callable[[Config], Launch]:
    batch = _create_batch(_FUSED_ROWS, shape["num_in"], shape["num_out"], device)
    return lambda config: (
        lambda: lora_fused_(
            batch.y, batch.x, batch.group, batch.table, batch.segments, config=config
        )
    )


def _tail_launch(shape: Shape, device: torch.device) -> Callable[[Config], Launch]:
    batch = _create_batch(shape["rows"], _OTHER_WIDTH, shape["num_out"], device)
    planes = batch.random_planes()
    w = torch.randn(_OTHER_WIDTH, shape["num_out"], device=device).to(torch.bfloat16)
    pages = create_tail_pages(batch.table, batch.segments)

    def with_config(config: Config) -> Launch:
        def launch() -> None:
            lora_tail(
                batch.x, w, planes, _NUM_PLANES, batch.group, batch.table, batch.segments, pages,
                out=batch.y, config=config,
            )  # fmt: skip

        return launch

    return with_config


def _shrink_candidates(shape: Shape) -> list[Config]:
    """GEMV_K columns a program, so that a tile's rows of A are one load; K blocks for the rest."""
    is_prefill = shape["rows"] >= 1024
    return [
        {
            "BLOCK_R": block_r, "BLOCK_K": block_k, "GEMV_K": gemv_k, "GEMV_ROWS": gemv_rows,
            "SPLIT": max(1, shape["num_in"] // chunk), "RANK_SPLIT": 4 if shape["rows"] == 1 else 1,
            "num_warps": num_warps, "num_stages": 4,
        }
        for chunk in ((1024, 2048) if is_prefill else (256, 512, 1024))
        for gemv_k in ({256} if is_prefill else {chunk})
        for block_k in (64, 128)
        for block_r in ((16, 32) if is_prefill else (16,))
        for gemv_rows in (0, 3)
        for num_warps in (4, 8)
    ]  # fmt: skip


def _expand_candidates(shape: Shape) -> list[Config]:
    return [
        {
            "BLOCK_N": block_n, "BLOCK_R": 16, "GEMV_ROWS": gemv_rows,
            "num_warps": num_warps, "num_stages": 3,
        }
        for block_n in ((64, 128) if shape["rows"] >= 1024 else (128, 256, 512))
        for gemv_rows in (0, 3)
        for num_warps in (2, 4, 8)
        if block_n <= 128 * num_warps
    ]  # fmt: skip


def _fused_candidates(_: Shape) -> list[Config]:
    return [
        {
            "BLOCK_N": block_n, "BLOCK_R": 16, "BLOCK_K": 128, "GEMV_K": gemv_k, "GEMV_ROWS": 3,
            "num_warps": num_warps, "num_stages": num_stages,
        }
        for block_n in (128, 256, 512)
        for gemv_k in (256, 512)
        for num_warps in (4, 8)
        for num_stages in (3, 4)
        if block_n <= 64 * num_warps
    ]  # fmt: skip


def _tail_candidates(shape: Shape) -> list[Config]:
    return [
        {
            "BLOCK_M": shape["rows"], "BLOCK_N": block_n, "BLOCK_K": block_k, "BLOCK_R": 32,
            "num_warps": num_warps, "num_stages": num_stages,
        }
        for block_n in (32, 64, 128)
        for block_k in (64, 128)
        for num_warps in (4, 8)
        for num_stages in (3, 4)
        if (shape["rows"] + block_n) * block_k * 2 * num_stages <= 160 * 1024
    ]  # fmt: skip


def _space(
    operator: str,
    candidates: Callable[[Shape], list[Config]],
    create_launch: Callable[[Shape, torch.device], Callable[[Config], Launch]],
) -> TuningSpace:
    shapes = [shape for shape, _ in listed_configs(operator)]
    return TuningSpace(operator, shapes, candidates, create_launch)


TUNING = (
    _space("lora_shrink", _shrink_candidates, _shrink_launch),
    _space("lora_expand", _expand_candidates, _expand_launch),
    _space("lora_fused", _fused_candidates, _fused_launch),
    _space("lora_tail", _tail_candidates, _tail_launch),
)
