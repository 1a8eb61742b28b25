"""Magnitudes and saved biases: what they are for, which are refused, and what they come to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from weft_adapters.config import parse_config
from weft_adapters.format import load, resolve
from weft_adapters.header import read_header_path
from weft_adapters.row_scales import RowScales
from weft_adapters.site_weights import SiteWeights
from weft_adapters.sites import BaseSpec, Site
from weft_adapters.source import load_verified
from weft_adapters.store import FolderStore
from weft_adapters.tensors import Float32, TensorFile
from weft_adapters.validation import validate

WriteAdapter = Callable[..., tuple[bytes, Path]]
Factors = Callable[..., dict[str, NDArray[Any]]]
CodesOf = Callable[[bytes, Path, BaseSpec], set[str]]
PREFIX = "base_model.model.model.layers"
Q0, K1 = Site(0, "q_proj"), Site(1, "k_proj")


@dataclass
class Base:
    """Random weights for any site, and biases at some; counts what is asked of it."""

    spec: BaseSpec
    with_bias: tuple[Site, ...] = ()
    num_norms: int = 0

    weight_format = "float64"

    def _random(self, site: Site, *shape: int) -> NDArray[np.float64]:
        return np.random.default_rng([*str(site).encode(), len(shape)]).standard_normal(shape)

    def weight(self, site: Site) -> NDArray[np.float64]:
        num_in, num_out = self.spec.shape(site)
        return self._random(site, num_out, num_in)

    def bias(self, site: Site) -> Float32 | None:
        if site not in self.with_bias:
            return None
        return self._random(site, self.spec.shape(site)[1]).astype(np.float32)

    def row_norms(self, site: Site, a_RI: Float32, b_RO: Float32, scale: float) -> Float32:
        self.num_norms += 1
        rows = self.weight(site) + scale * b_RO.T.astype(np.float64) @ a_RI
        norms: Float32 = np.linalg.norm(rows, axis=1).astype(np.float32)
        return norms

    def rows(self, site: Site, first: int, stop: int) -> Float32:
        raise AssertionError("the vocabulary is not asked for")

    def served(self, rows: Float32) -> Float32:
        raise AssertionError("the vocabulary is not asked for")


@pytest.fixture
def base(dense: BaseSpec) -> Base:
    return Base(dense, (Q0,))


@pytest.fixture
def dora(factors: Factors) -> dict[str, NDArray[Any]]:
    """Factors and a magnitude at one site."""
    magnitude = np.random.default_rng(5).random(64).astype(np.float32)
    own = {f"{PREFIX}.0.self_attn.q_proj.lora_magnitude_vector": magnitude}
    return factors("0.self_attn.q_proj", 32, 64) | own


def read(config: bytes, path: Path, base: Base) -> dict[Site, SiteWeights]:
    header = read_header_path(path)
    plan = resolve(parse_config(config), header, base.spec)
    assert not plan.faults, plan.faults
    with TensorFile(path, header) as file:
        return load(plan, file, base.spec, base)


@pytest.mark.parametrize("ending", ["", ".weight"])
def test_a_magnitude_over_the_adapted_rows_length_is_the_row_scale(
    base: Base, write_adapter: WriteAdapter, dora: dict[str, NDArray[Any]], ending: str
) -> None:
    (name,) = [name for name in dora if "magnitude" in name]
    magnitude = dora.pop(name)
    tensors = {**dora, name + ending: magnitude}
    w = read(*write_adapter(tensors, use_dora=True), base)[Q0]
    rows = base.weight(Q0) + w.scale * (w.b.T @ w.a)
    want = magnitude / np.linalg.norm(rows, axis=1)
    assert w.row_scale is not None
    assert w.row_scale.dtype == np.float32
    np.testing.assert_allclose(w.row_scale, want, rtol=1e-5)
    assert w.bias is None


@pytest.mark.parametrize("spelled", ["base_layer.bias", "bias"])
def test_a_saved_bias_replaces_the_bases(
    base: Base, write_adapter: WriteAdapter, factors: Factors, spelled: str
) -> None:
    """Beside factors and alone, at a site where the base has a bias and where it has none."""
    saved = {site: np.full(base.spec.shape(site)[1], 3, np.float32) for site in (Q0, K1)}
    tensors = factors("0.self_attn.q_proj", 32, 64) | {
        f"{PREFIX}.{site.layer}.self_attn.{site.projection}.{spelled}": saved[site]
        for site in saved
    }
    weights = read(*write_adapter(tensors, bias="all"), base)
    own = base.bias(Q0)
    assert own is not None
    for site, already in ((Q0, own), (K1, np.float32(0))):
        added = weights[site].bias
        assert added is not None
        np.testing.assert_allclose(already + added, saved[site], rtol=1e-5)
        assert weights[site].row_scale is None
    assert (weights[Q0].rank, weights[K1].rank) == (4, 0)


def test_row_scales_that_are_known_are_not_computed(
    base: Base, write_adapter: WriteAdapter, dora: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    config, path = write_adapter(dora, use_dora=True)
    digest = validate(config, path, base.spec, max_rank=64).digest
    assert digest is not None
    store = FolderStore(tmp_path / "store")
    store.put(digest, config, path)
    found = []
    for _ in range(2):  # the second time from the folder
        cache = RowScales(base.spec.digest, base.weight_format, tmp_path / "derived")
        for _ in range(2):
            found.append(load_verified(store.open(digest), digest, base.spec, base, cache)[Q0])
    assert base.num_norms == 1
    assert len({w.row_scale.tobytes() for w in found if w.row_scale is not None}) == 1
    assert load_verified(store.open(digest), digest, base.spec, base)[Q0].row_scale is not None
    assert base.num_norms == 2


def test_they_are_not_left_out_without_the_bases_weights(
    base: Base, write_adapter: WriteAdapter, dora: dict[str, NDArray[Any]]
) -> None:
    config, path = write_adapter(dora, use_dora=True)
    header = read_header_path(path)
    plan = resolve(parse_config(config), header, base.spec)
    with TensorFile(path, header) as file, pytest.raises(ValueError, match="need the base's own"):
        load(plan, file, base.spec)


def test_a_row_that_the_adapter_undoes_is_refused(
    base: Base, write_adapter: WriteAdapter, dora: dict[str, NDArray[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    norms = np.ones(64, np.float32)
    norms[7] = 0
    monkeypatch.setattr(base, "row_norms", lambda *factors: norms)
    with pytest.raises(ValueError, match="DoRA at layer 0 q_proj has no row scale for row 7"):
        read(*write_adapter(dora, use_dora=True), base)


@pytest.mark.parametrize(
    ("name", "size", "keys", "code"),
    [
        ("q_proj.lora_magnitude_vector", 64, {}, "config_mismatch"),
        ("q_proj.lora_magnitude_vector", 63, {"use_dora": True}, "wrong_shape"),
        ("k_proj.lora_magnitude_vector", 32, {"use_dora": True}, "missing_factor"),
        ("q_proj.bias", 64, {}, "config_mismatch"),
        ("q_proj.base_layer.bias", 32, {"bias": "all"}, "wrong_shape"),
        ("q_proj.lora_B.bias", 64, {"bias": "all"}, "unmapped_tensor"),
        ("z_proj.bias", 64, {"bias": "all"}, "unmapped_tensor"),
        ("q_norm.bias", 64, {"bias": "lora_only"}, "unmapped_tensor"),
        (None, 0, {"use_dora": True}, "missing_factor"),
    ],
)
def test_what_does_not_go_together_is_refused(
    base: Base, write_adapter: WriteAdapter, factors: Factors, codes_of: CodesOf,
    name: str | None, size: int, keys: dict[str, Any], code: str,
) -> None:  # fmt: skip
    tensors = factors("0.self_attn.q_proj", 32, 64)
    if name is not None:
        tensors[f"{PREFIX}.0.self_attn.{name}"] = np.ones(size, np.float32)
    assert code in codes_of(*write_adapter(tensors, **keys), base.spec)


def test_two_biases_for_one_site_are_refused(
    base: Base, write_adapter: WriteAdapter, factors: Factors, codes_of: CodesOf
) -> None:
    tensors = factors("0.self_attn.q_proj", 32, 64)
    for spelled in ("bias", "base_layer.bias"):
        tensors[f"{PREFIX}.0.self_attn.q_proj.{spelled}"] = np.ones(64, np.float32)
    assert codes_of(*write_adapter(tensors, bias="all"), base.spec) == {"duplicate_site"}


def test_the_report_names_them_and_counts_their_bytes(
    base: Base, write_adapter: WriteAdapter, dora: dict[str, NDArray[Any]]
) -> None:
    dora[f"{PREFIX}.1.self_attn.k_proj.bias"] = np.ones(32, np.float32)
    report = validate(
        *write_adapter(dora, use_dora=True, bias="all"), base.spec, max_rank=64, dtype="float32"
    )
    assert report.ok, report.faults
    roles = {row.role: row.target for row in report.tensors}
    assert roles["lora_magnitude_vector"] == "layer 0 q_proj"
    assert roles["bias"] == "layer 1 k_proj"
    assert report.sites == {"q_proj": 1, "k_proj": 1}
    assert report.tier_bytes["host"] == 4 * (4 * (32 + 64) + 64 + 32)
    # row scale and bias share units of 128 elements
    assert report.tier_bytes["device"] == 4 * (8 * (32 + 64) + 128)


def test_huge_magnitudes_are_told(
    base: Base, write_adapter: WriteAdapter, dora: dict[str, NDArray[Any]]
) -> None:
    (name,) = [name for name in dora if "magnitude" in name]
    dora[name][:] = 1e6
    report = validate(*write_adapter(dora, use_dora=True), base.spec, max_rank=64)
    assert report.ok
    (warning,) = [warning for warning in report.warnings if "magnitudes" in warning]
    assert "1 of 1" in warning
    assert "layer 0 q_proj" in warning
