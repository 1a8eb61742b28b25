"""A report for every upload, and never an exception."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from weft_adapters import expressions
from weft_adapters.sites import BaseSpec
from weft_adapters.validation import validate

WriteAdapter = Callable[..., tuple[bytes, Path]]
Factors = Callable[..., dict[str, NDArray[Any]]]


def test_a_good_adapter(dense: BaseSpec, write_adapter: WriteAdapter, factors: Factors) -> None:
    tensors = factors("0.self_attn.q_proj", 32, 64) | factors("1.mlp.down_proj", 48, 32, rank=8)
    config, path = write_adapter(tensors, rank_pattern={"down_proj": 8})
    report = validate(config, path, dense, max_rank=16)
    assert report.ok, report.faults
    assert report.ranks == (4, 8)
    assert report.max_rank == 8
    assert report.num_tensors == 4
    assert report.num_parameters == 4 * (32 + 64) + 8 * (48 + 32)
    assert report.num_bytes == path.stat().st_size
    assert report.sites == {"q_proj": 1, "down_proj": 1}
    assert not report.uses_experts
    assert not report.warnings
    assert json.loads(json.dumps(report.to_dict()))["ok"] is True


def test_experts_are_reported(moe: BaseSpec, write_adapter: WriteAdapter, factors: Factors) -> None:
    report = validate(*write_adapter(factors("1.mlp.experts.3.up_proj", 32, 24)), moe, max_rank=16)
    assert report.ok
    assert report.uses_experts


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_values_that_are_not_finite(
    dense: BaseSpec, write_adapter: WriteAdapter, factors: Factors, value: float, dtype: type
) -> None:
    tensors: dict[str, NDArray[Any]]
    tensors = {name: t.astype(dtype) for name, t in factors("0.mlp.up_proj", 32, 48).items()}
    bad = list(tensors)[1]
    tensors[bad][-1, -1] = value
    report = validate(*write_adapter(tensors), dense, max_rank=16)
    assert not report.ok
    assert report.digest is None
    assert [(f.code, f.tensor) for f in report.faults] == [("non_finite", bad)]


def test_a_rank_over_the_servers(
    dense: BaseSpec, write_adapter: WriteAdapter, factors: Factors
) -> None:
    tensors = factors("0.mlp.up_proj", 32, 48, rank=32)
    report = validate(*write_adapter(tensors, r=32), dense, max_rank=16)
    assert [fault.code for fault in report.faults] == ["rank_too_large"]
    assert "32" in report.faults[0].message
    assert "16" in report.faults[0].message


def test_an_adapter_of_another_base_lists_its_mismatches_up_to_a_limit(
    dense: BaseSpec, write_adapter: WriteAdapter, factors: Factors
) -> None:
    tensors: dict[str, NDArray[Any]] = {}
    for layer in range(40):
        tensors |= factors(f"{layer}.self_attn.q_proj", 128, 128)
    report = validate(*write_adapter(tensors), dense, max_rank=16)
    assert not report.ok
    assert len(report.faults) == 51
    assert report.faults[-1].message.startswith("and 30 more")
    assert {f.code for f in report.faults} == {"wrong_shape", "unmapped_tensor", "more_faults"}


def test_both_files_faults_are_listed(dense: BaseSpec, tmp_path: Path) -> None:
    path = tmp_path / "empty.safetensors"
    path.write_bytes(b"")
    report = validate(b"{}", path, dense, max_rank=16)
    codes = [fault.code for fault in report.faults]
    assert "header_truncated" in codes
    assert len(codes) >= 3


def test_another_name_of_the_base_is_a_warning(
    dense: BaseSpec, write_adapter: WriteAdapter, factors: Factors
) -> None:
    tensors = factors("0.mlp.up_proj", 32, 48)
    config, path = write_adapter(tensors, base_model_name_or_path="/home/me/other-base")
    report = validate(config, path, dense, max_rank=16, declared_base="tiny")
    assert report.ok
    assert "other-base" in report.warnings[0]
    config, path = write_adapter(tensors, base_model_name_or_path="org/tiny")
    assert not validate(config, path, dense, max_rank=16, declared_base="tiny").warnings


def test_where_file_and_config_differ_is_a_warning(
    dense: BaseSpec, write_adapter: WriteAdapter, factors: Factors
) -> None:
    tensors = factors("0.mlp.up_proj", 32, 48) | factors("1.self_attn.k_proj", 32, 32)
    config, path = write_adapter(tensors, target_modules=["up_proj", "gate_proj"])
    report = validate(config, path, dense, max_rank=16)
    assert report.ok
    missing, unnamed = report.warnings
    assert "names what its file does not change" in missing
    assert "gate_proj" in missing
    assert "layer 1 k_proj" in unnamed
    assert any("gate_proj" in pattern for pattern in report.missing)
    assert not any("k_proj" in pattern for pattern in report.missing)
    named = {"target_modules": r".*(0\.mlp\.up|1\.self_attn\.k)_proj"}
    config, path = write_adapter(tensors, **named)
    report = validate(config, path, dense, max_rank=16)
    assert (report.warnings, report.missing) == ((), ())


def test_an_expression_that_takes_too_many_steps_is_refused(
    dense: BaseSpec,
    write_adapter: WriteAdapter,
    factors: Factors,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(expressions, "MAX_WORK", 500)
    config, path = write_adapter(factors("0.mlp.up_proj", 32, 48), target_modules="(.*up.*)+")
    (fault,) = validate(config, path, dense, max_rank=16).faults
    assert (fault.code, fault.tensor) == ("invalid_config", "target_modules")


def test_an_adapter_that_changes_nothing_is_a_warning(
    dense: BaseSpec, write_adapter: WriteAdapter, factors: Factors
) -> None:
    tensors = factors("0.mlp.up_proj", 32, 48)
    tensors[list(tensors)[1]][:] = 0
    report = validate(*write_adapter(tensors), dense, max_rank=16)
    assert report.ok
    assert "changes nothing" in report.warnings[0]


@given(
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=5),
    in_config=st.booleans(),
)
@settings(
    max_examples=200, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_mutated_uploads_never_raise(
    dense: BaseSpec,
    write_adapter: WriteAdapter,
    factors: Factors,
    tmp_path: Path,
    edits: list[tuple[float, int]],
    in_config: bool,
) -> None:
    path = tmp_path / "mutated"
    if not (tmp_path / "good").exists():
        config, good = write_adapter(factors("0.mlp.up_proj", 32, 48), rank_pattern={"up.*": 4})
        good.rename(tmp_path / "good")
        (tmp_path / "config").write_bytes(config)
    config, data = (tmp_path / "config").read_bytes(), (tmp_path / "good").read_bytes()
    mutated = bytearray(config if in_config else data)
    for place, value in edits:
        # most of the structure is in the first bytes of the file
        mutated[int(place * (min(len(mutated), 400) - 1))] = value
    path.write_bytes(data if in_config else mutated)
    report = validate(bytes(mutated) if in_config else config, path, dense, max_rank=16)
    assert report.ok == (report.digest is not None) == (not report.faults)
    json.dumps(report.to_dict()).encode()


def test_validation_and_the_store_need_no_torch() -> None:
    modules = "validation, store, source, digest, format, patterns"
    code = f"import sys; from weft_adapters import {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
