"""What a report says of an adapter: its tensors, what it costs, and what is odd about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from weft_adapters.host import HostTier
from weft_adapters.pool import PagePool
from weft_adapters.report import MAX_ROWS
from weft_adapters.sites import BaseSpec
from weft_adapters.source import load_verified
from weft_adapters.store import FolderStore
from weft_adapters.validation import validate

WriteAdapter = Callable[..., tuple[bytes, Path]]
Factors = Callable[..., dict[str, NDArray[Any]]]


@pytest.fixture
def experts(factors: Factors) -> dict[str, NDArray[Any]]:
    """All of layer 1's experts, and a query projection of both layers."""
    tensors: dict[str, NDArray[Any]] = {}
    for layer in range(2):
        tensors |= factors(f"{layer}.self_attn.q_proj", 32, 64, seed=layer)
    for expert in range(4):
        tensors |= factors(f"1.mlp.experts.{expert}.down_proj", 24, 32, seed=expert)
    return tensors


def test_every_tensor_is_in_one_row_with_what_it_changes(
    moe: BaseSpec, write_adapter: WriteAdapter, experts: dict[str, NDArray[Any]]
) -> None:
    report = validate(*write_adapter(experts), moe, max_rank=16)
    assert {(row.name, row.role, row.target, row.num_tensors) for row in report.tensors} == {
        (f"base_model.model.model.layers.{name}.lora_{ab}.weight", f"lora_{ab}", target, count)
        for ab in "AB"
        for name, target, count in (
            ("{0-1}.self_attn.q_proj", "layer {0-1} q_proj", 2),
            ("1.mlp.experts.{0-3}.down_proj", "layer 1 expert {0-3} down_proj", 4),
        )
    }
    assert sum(row.num_tensors for row in report.tensors) == report.num_tensors == 12
    assert sum(row.num_bytes for row in report.tensors) == sum(t.nbytes for t in experts.values())
    row = next(row for row in report.tensors if row.target == "layer 1 expert {0-3} down_proj")
    assert (row.dtype, row.shape) == ("F32", (4, 24))
    rms = [
        float(np.sqrt((t**2).mean()))
        for name, t in experts.items()
        if "down_proj.lora_A" in name
    ]  # fmt: skip
    assert row.rms == pytest.approx((min(rms), max(rms)), rel=1e-6)
    assert not report.unmatched
    assert json.loads(json.dumps(report.to_dict()))["tensors"][0]["num_tensors"] in (2, 4)


def test_tensors_that_map_to_nothing_come_first_and_are_safe_to_print(
    dense: BaseSpec, write_adapter: WriteAdapter, factors: Factors
) -> None:
    hostile = "evil\x1b[31m\u202e\0\n.{}"
    tensors = factors("0.mlp.up_proj", 32, 48) | {
        f"{hostile}.{i}": np.zeros(1, np.float32) for i in range(3)
    }
    report = validate(*write_adapter(tensors), dense, max_rank=16)
    assert not report.ok
    (row,) = report.unmatched
    assert report.tensors[0] is row
    assert row.num_tensors == 3
    assert row.name.isascii()
    assert row.name.isprintable()
    assert row.name.endswith("{0-2}")
    assert len(report.tensors) == 3, "those that map to something are listed as well"


def test_a_report_is_bounded_whatever_the_names(
    dense: BaseSpec, write_adapter: WriteAdapter
) -> None:
    tensors = {f"name{i}x": np.zeros(1, np.float32) for i in range(MAX_ROWS + 5)}
    report = validate(*write_adapter(tensors), dense, max_rank=16)
    assert len(report.tensors) == MAX_ROWS
    assert report.num_rows_left_out == 5
    assert len(json.dumps(report.to_dict())) < 2**20


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_bytes_of_each_tier_are_those_that_the_tiers_take(
    moe: BaseSpec,
    write_adapter: WriteAdapter,
    experts: dict[str, NDArray[Any]],
    store: FolderStore,
    dtype: str,
) -> None:
    config, path = write_adapter(experts)
    report = validate(config, path, moe, max_rank=16, dtype=dtype)
    assert report.digest is not None
    store.put(report.digest, config, path)
    weights = load_verified(store.open(report.digest), report.digest, moe)
    pool = PagePool(moe, 2**20, getattr(torch, dtype), "cpu")
    host = HostTier(2**20)
    host.put(report.digest, weights, 0.1)
    assert report.tier_bytes == {
        "store": path.stat().st_size,
        "disk": path.stat().st_size,
        "host": host.num_bytes,
        "device": pool.num_bytes_needed(weights),
    }


def test_outliers_are_named(
    moe: BaseSpec, write_adapter: WriteAdapter, experts: dict[str, NDArray[Any]]
) -> None:
    assert not validate(*write_adapter(experts), moe, max_rank=16).warnings
    name = next(name for name in experts if "experts.2.down_proj.lora_B" in name)
    experts[name] *= 1e6
    (warning,) = validate(*write_adapter(experts), moe, max_rank=16).warnings
    assert "1 of 6 changes" in warning
    assert "layer 1 expert 2 down_proj" in warning


def test_an_adapter_that_is_all_too_large_is_an_outlier_by_itself(
    dense: BaseSpec, write_adapter: WriteAdapter, factors: Factors
) -> None:
    tensors = {name: 1e3 * t for name, t in factors("0.mlp.up_proj", 32, 48).items()}
    (warning,) = validate(*write_adapter(tensors), dense, max_rank=16).warnings
    assert "1 of 1 changes" in warning


def test_pairs_that_change_nothing_are_named(
    moe: BaseSpec, write_adapter: WriteAdapter, experts: dict[str, NDArray[Any]]
) -> None:
    for name, tensor in experts.items():
        if "q_proj.lora_A" in name:
            tensor[:] = 0
    (warning,) = validate(*write_adapter(experts), moe, max_rank=16).warnings
    assert warning == "2 of 6 pairs of factors change nothing: layer {0-1} q_proj"


@pytest.mark.parametrize("how", ["zero B", "zero alpha", "denormal"])
def test_an_adapter_without_effect_says_so(
    dense: BaseSpec, write_adapter: WriteAdapter, factors: Factors, how: str
) -> None:
    tensors = factors("0.mlp.up_proj", 32, 48)
    name = list(tensors)[1]
    tensors[name][:] = {"zero B": 0.0, "zero alpha": 1.0, "denormal": 1e-40}[how]
    alpha = 0 if how == "zero alpha" else 8
    (warning,) = validate(*write_adapter(tensors, lora_alpha=alpha), dense, max_rank=16).warnings
    assert "changes nothing" in warning


def test_values_that_the_device_cannot_hold_are_refused_at_once(
    dense: BaseSpec, write_adapter: WriteAdapter, factors: Factors
) -> None:
    tensors = factors("0.mlp.up_proj", 32, 48)
    name = list(tensors)[0]
    tensors[name][0, 0] = 65521
    config, path = write_adapter(tensors)
    assert validate(config, path, dense, max_rank=16).ok
    report = validate(config, path, dense, max_rank=16, dtype="float16")
    assert [(fault.code, fault.tensor) for fault in report.faults] == [("value_too_large", name)]


def test_without_the_bases_weights_all_is_judged_but_there_is_no_digest(
    moe: BaseSpec, write_adapter: WriteAdapter, experts: dict[str, NDArray[Any]]
) -> None:
    from dataclasses import replace

    report = validate(*write_adapter(experts), replace(moe, digest=""), max_rank=16)
    assert report.ok
    assert report.digest is None
    assert report.tensors
