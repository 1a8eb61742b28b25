"""What files say of embedding, head and tokens, and what is left of their matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from weft_adapters.config import parse_config
from weft_adapters.format import load, resolve
from weft_adapters.header import read_header_path
from weft_adapters.site_weights import SiteWeights, num_bytes
from weft_adapters.sites import BaseSpec, Site
from weft_adapters.tensors import Float32, TensorFile
from weft_adapters.validation import ValidationReport, validate

Tensors = Mapping[str, NDArray[Any]]
WriteAdapter = Callable[..., tuple[bytes, Path]]

V, H, R = 40, 32, 4
EMBED, HEAD = "base_model.model.model.embed_tokens.", "base_model.model.lm_head."


@dataclass(frozen=True)
class Base:
    """A base's matrices, `[V, H]` each, as a `BaseWeights` of what is asked here."""

    spec: BaseSpec
    matrices: Mapping[Site, Float32]
    digits: int | None = None
    weight_format: str = "test"

    def rows(self, site: Site, first: int, stop: int) -> Float32:
        return self.matrices[site][first:stop]

    def served(self, rows: Float32) -> Float32:
        return rows if self.digits is None else rows.round(self.digits)

    def weight(self, site: Site) -> Float32:
        raise AssertionError("no whole matrix is needed")

    def bias(self, site: Site) -> Float32 | None:
        raise AssertionError("no bias is needed")

    def row_norms(self, site: Site, a_RI: Float32, b_RO: Float32, scale: float) -> Float32:
        raise AssertionError("no norm is needed")


def numbers(*shape: int, seed: int = 0) -> Float32:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def create_base(spec: BaseSpec) -> Base:
    embedding = numbers(V, H, seed=1)
    head = embedding if spec.is_tied else numbers(V, H, seed=2)
    return Base(spec, {spec.embedding: embedding, spec.head: head})


def factors(num_tokens: int = V) -> dict[str, Float32]:
    """Of both modules."""
    return {
        f"{EMBED}lora_embedding_A": numbers(R, num_tokens, seed=3),
        f"{EMBED}lora_embedding_B": numbers(H, R, seed=4),
        f"{HEAD}lora_A.weight": numbers(R, H, seed=5),
        f"{HEAD}lora_B.weight": numbers(num_tokens, R, seed=6),
    }


def load_adapter(adapter: tuple[bytes, Path], base: Base) -> dict[Site, SiteWeights]:
    config, path = adapter
    header = read_header_path(path)
    plan = resolve(parse_config(config), header, base.spec)
    assert not plan.faults, plan.faults
    with TensorFile(path, header) as file:
        return load(plan, file, base.spec, base)


def whole(weights: SiteWeights, base: Base, site: Site, num_tokens: int) -> Float32:
    """The matrix that the adapter's requests see, `[num_tokens, H]`."""
    matrix = np.full((num_tokens, H), np.nan, np.float32)
    num_old = min(V, num_tokens)
    by_token, by_hidden = (
        (weights.a, weights.b) if site == base.spec.embedding else (weights.b, weights.a)
    )
    old = base.matrices[site] + weights.scale * by_token.T @ by_hidden
    matrix[:num_old] = old[:num_old]
    if weights.rows is not None:
        matrix[weights.rows.token_ids] = weights.rows.values
    return matrix


@pytest.fixture
def tied(dense: BaseSpec) -> BaseSpec:
    return replace(dense, is_tied=True)


def test_a_saved_base_layer_that_is_the_bases_costs_nothing(
    dense: BaseSpec, write_adapter: WriteAdapter
) -> None:
    base = create_base(dense)
    layers = {
        f"{EMBED}base_layer.weight": base.matrices[dense.embedding],
        f"{HEAD}base_layer.weight": base.matrices[dense.head],
    }
    found = load_adapter(write_adapter(factors() | layers), base)
    assert found[dense.embedding].rows is None
    assert found[dense.head].rows is None
    assert num_bytes(found) == 2 * R * (V + H) * 4


def test_only_rows_that_are_not_the_bases_are_kept(
    dense: BaseSpec, write_adapter: WriteAdapter
) -> None:
    base = create_base(dense)
    embedding = np.concatenate([base.matrices[dense.embedding], numbers(3, H, seed=7)])
    head = np.concatenate([base.matrices[dense.head], numbers(3, H, seed=8)])
    head[17] += 1.0
    layers = {f"{EMBED}base_layer.weight": embedding, f"{HEAD}base_layer.weight": head}
    tensors = factors(V + 3)
    found = load_adapter(write_adapter(tensors | layers), base)
    for site, want in ((dense.embedding, [V, V + 1, V + 2]), (dense.head, [17, V, V + 1, V + 2])):
        rows = found[site].rows
        assert rows is not None
        assert (rows.num_tokens, list(rows.token_ids)) == (V + 3, want)
    a, b = tensors[f"{EMBED}lora_embedding_A"], tensors[f"{EMBED}lora_embedding_B"]
    want_embedding = embedding + 2.0 * a.T @ b.T
    got = whole(found[dense.embedding], base, dense.embedding, V + 3)
    np.testing.assert_allclose(got, want_embedding, atol=1e-5)
    a, b = tensors[f"{HEAD}lora_A.weight"], tensors[f"{HEAD}lora_B.weight"]
    got = whole(found[dense.head], base, dense.head, V + 3)
    np.testing.assert_allclose(got, head + 2.0 * b @ a, atol=1e-5)


def test_rows_that_are_the_bases_once_rounded_are_left_out(
    dense: BaseSpec, write_adapter: WriteAdapter
) -> None:
    base = create_base(dense)
    coarse = replace(base, matrices={s: m.round(2) for s, m in base.matrices.items()}, digits=2)
    layer = {f"{HEAD}base_layer.weight": base.matrices[dense.head]}
    own = {name: t for name, t in factors().items() if name.startswith(HEAD)}
    found = load_adapter(write_adapter(own | layer), coarse)
    assert found[dense.head].rows is None


def test_a_trained_matrix_of_new_rows_needs_no_factors(
    dense: BaseSpec, write_adapter: WriteAdapter
) -> None:
    base = create_base(dense)
    head = numbers(V, H, seed=9)
    adapter = write_adapter({f"{HEAD}weight": head}, modules_to_save=["lm_head"])
    found = load_adapter(adapter, base)
    assert list(found) == [dense.head]
    assert found[dense.head].rank == 0
    np.testing.assert_array_equal(whole(found[dense.head], base, dense.head, V), head)


def test_one_resized_matrix_of_a_tied_base_is_kept_once(
    tied: BaseSpec, write_adapter: WriteAdapter
) -> None:
    base = create_base(tied)
    matrix = np.concatenate([base.matrices[tied.embedding], numbers(2, H)])
    both = write_adapter({f"{EMBED}weight": matrix, f"{HEAD}weight": matrix})
    one = write_adapter({f"{EMBED}weight": matrix})
    for adapter in (both, one):
        found = load_adapter(adapter, base)
        assert found[tied.embedding].rows is found[tied.head].rows
        assert num_bytes(found) == 2 * (H * 4 + 8)


@pytest.mark.parametrize("ties", [False, True])
def test_what_is_trained_at_one_end_of_a_tied_base_is_the_others_only_if_it_says_so(
    tied: BaseSpec, write_adapter: WriteAdapter, ties: bool
) -> None:
    base = create_base(tied)
    own = {name: t for name, t in factors().items() if name.startswith(EMBED)}
    found = load_adapter(write_adapter(own, ensure_weight_tying=ties), base)
    assert (tied.head in found) == ties
    if ties:
        embedding = whole(found[tied.embedding], base, tied.embedding, V)
        head = whole(found[tied.head], base, tied.head, V)
        np.testing.assert_allclose(embedding, head, atol=1e-6)


def test_a_smaller_vocabulary_is_one(dense: BaseSpec, write_adapter: WriteAdapter) -> None:
    base = create_base(dense)
    layers = {
        f"{EMBED}weight": base.matrices[dense.embedding][:30],
        f"{HEAD}weight": base.matrices[dense.head][:30],
    }
    found = load_adapter(write_adapter(layers), base)
    for site in (dense.embedding, dense.head):
        rows = found[site].rows
        assert rows is not None
        assert (rows.num_tokens, rows.values.shape) == (30, (0, H))


def judge(adapter: tuple[bytes, Path], base: BaseSpec) -> ValidationReport:
    return validate(*adapter, base, max_rank=64)


MATRIX = numbers(V, H)
BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "one matrix resized": ({f"{EMBED}weight": numbers(V + 1, H)}, {}, "vocabulary_mismatch"),
    "factors of added tokens without their rows": (factors(V + 1), {}, "wrong_shape"),
    "a matrix of another width": ({f"{HEAD}weight": numbers(V, H + 1)}, {}, "wrong_shape"),
    "a vector": ({f"{HEAD}weight": numbers(V)}, {}, "wrong_shape"),
    "no tokens": ({f"{HEAD}weight": numbers(0, H)}, {}, "wrong_shape"),
    "a factor alone": ({f"{HEAD}lora_A.weight": numbers(R, H)}, {}, "missing_factor"),
    "a factor of another kind": (
        {f"{HEAD}lora_embedding_A": numbers(R, V)}, {}, "unmapped_tensor",
    ),
    "a saved module without its matrix": (
        {f"{EMBED}weight": MATRIX}, {"modules_to_save": ["lm_head"]}, "missing_tensor",
    ),
    "two matrices of one module": (
        {f"{HEAD}weight": MATRIX, f"{HEAD}base_layer.weight": MATRIX}, {}, "duplicate_site",
    ),
    "a copy of nothing": ({f"{HEAD}modules_to_save.weight": MATRIX}, {}, "unmapped_tensor"),
    "an original of nothing": ({f"{HEAD}original_module.weight": MATRIX}, {}, "unmapped_tensor"),
    "copies that differ": (
        {f"{HEAD}weight": MATRIX, f"{HEAD}modules_to_save.weight": MATRIX + 1},
        {"modules_to_save": ["lm_head"]},
        "tied_weights_differ",
    ),
    "another module saved": (
        {f"{HEAD}weight": MATRIX}, {"modules_to_save": ["norm"]}, "unsupported_config",
    ),
    "factors with DoRA": (factors(), {"use_dora": True}, "unsupported_config"),
    "tokens trained one by one": (
        {f"{HEAD}weight": MATRIX}, {"trainable_token_indices": [3]}, "unsupported_config",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_served_is_refused(
    dense: BaseSpec, write_adapter: WriteAdapter, what: str
) -> None:
    tensors, keys, code = BAD[what]
    report = judge(write_adapter(tensors, **keys), dense)
    assert code in {fault.code for fault in report.faults}


def test_so_many_tokens_that_other_rows_would_pay_for_them_are_refused(
    dense: BaseSpec, write_adapter: WriteAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft_adapters.vocabulary.MAX_ADDED_TOKENS", 2)
    for num_added, codes in ((2, []), (3, ["too_many_tokens"])):
        matrix = numbers(V + num_added, H)
        report = judge(write_adapter({f"{EMBED}weight": matrix, f"{HEAD}weight": matrix}), dense)
        assert [fault.code for fault in report.faults] == codes


def test_two_matrices_of_a_base_that_has_one_must_be_equal(
    tied: BaseSpec, dense: BaseSpec, write_adapter: WriteAdapter
) -> None:
    adapter = write_adapter({f"{EMBED}weight": MATRIX, f"{HEAD}weight": MATRIX + 1})
    assert [fault.code for fault in judge(adapter, tied).faults] == ["tied_weights_differ"]
    assert judge(adapter, dense).ok


def test_a_base_that_does_not_say_how_many_tokens_it_has_takes_none(
    dense: BaseSpec, write_adapter: WriteAdapter
) -> None:
    report = judge(write_adapter({f"{HEAD}weight": MATRIX}), replace(dense, vocab_size=0))
    assert [fault.code for fault in report.faults] == ["unknown_vocabulary"]


def test_the_report_says_how_many_tokens_there_are_and_what_each_tensor_is_for(
    dense: BaseSpec, write_adapter: WriteAdapter
) -> None:
    layers = {
        f"{EMBED}weight": numbers(V + 2, H),
        f"{HEAD}weight": numbers(V + 2, H),
        f"{HEAD}original_module.weight": numbers(V + 2, H),
    }
    report = judge(write_adapter(layers, modules_to_save=["lm_head"]), dense)
    assert report.ok, report.faults
    assert report.vocab_size == V + 2
    assert report.sites == {"embed_tokens": 1, "lm_head": 1}
    assert {(row.role, row.target) for row in report.tensors} == {
        ("weight", "embed_tokens"),
        ("weight", "lm_head"),
        ("original weight", "nothing: another one takes its place"),
    }


def test_what_ties_and_saved_modules_mean_is_part_of_the_digest(
    tied: BaseSpec, write_adapter: WriteAdapter
) -> None:
    tensors = {f"{EMBED}weight": MATRIX, f"{HEAD}weight": MATRIX}
    reports = [
        judge(write_adapter(tensors, **keys), tied)
        for keys in (
            {},
            {"modules_to_save": ["lm_head"]},
            {"modules_to_save": ["lm_head", "embed_tokens"]},
            {"ensure_weight_tying": True},
        )
    ]
    assert all(report.ok for report in reports)
    assert len({report.digest for report in reports}) == len(reports)
