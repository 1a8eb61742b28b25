"""The page pool: every page is somewhere, and holds what was written and nothing older."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weft_adapters.pages import padded_rank
from weft_adapters.placement import PooledSite
from weft_adapters.pool import PagePool
from weft_adapters.site_weights import SiteWeights
from weft_adapters.sites import BaseSpec, Site

MIB = 2**20
Vectors = tuple[Collection[Site], Collection[Site]]
NO_VECTORS: Vectors = ((), ())


def weights_of(
    base: BaseSpec, ranks: Mapping[Site, int], seed: int = 0, vectors: Vectors = NO_VECTORS
) -> dict[Site, SiteWeights]:
    """`vectors`: which sites have row scales and which have biases; those may have no rank."""
    random = np.random.default_rng(seed)
    weights = {}
    for site in sorted({*ranks, *vectors[1]}):
        num_in, num_out = base.shape(site)
        a, b, m, c = (
            random.standard_normal(shape).astype(np.float32)
            for shape in ((ranks.get(site, 0), num_in), (ranks.get(site, 0), num_out), num_out,
                          num_out)
        )  # fmt: skip
        row_scale, bias = m if site in vectors[0] else None, c if site in vectors[1] else None
        weights[site] = SiteWeights(a, b, 2.0, row_scale, bias)
    return weights


def assert_holds(pool: PagePool, digest: str, weights: Mapping[Site, SiteWeights]) -> None:
    adapter = pool.get(digest)
    assert adapter is not None
    assert set(adapter.sites) == set(weights)
    for site, w in weights.items():
        pooled = adapter.sites[site]
        assert (pooled.rank, pooled.padded_rank) == (w.rank, padded_rank(w.rank))
        assert pooled.scale == w.scale
        for stored, source in zip(pool.read(digest, site), (w.a, w.b), strict=True):
            expected = torch.zeros(pooled.padded_rank, source.shape[1])
            expected[: w.rank] = torch.from_numpy(source)
            assert torch.equal(stored, expected.to(pool.dtype))
        vectors = pool.read_vectors(digest, site)
        for stored_vector, vector in zip(vectors, (w.row_scale, w.bias), strict=True):
            assert (stored_vector is None) == (vector is None)
            if stored_vector is not None and vector is not None:
                assert torch.equal(stored_vector, torch.from_numpy(vector).to(pool.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_adapter_is_read_back_at_its_true_rank(moe: BaseSpec, dtype: torch.dtype) -> None:
    pool = PagePool(moe, MIB, dtype, "cpu")
    ranks = {Site(0, "q_proj"): 4, Site(0, "down_proj"): 8, Site(1, "up_proj", 3): 17}
    weights = weights_of(moe, ranks)
    adapter = pool.try_load("a", weights)
    assert adapter is not None
    assert_holds(pool, "a", weights)
    elements = 8 * (32 + 64) + 8 * (48 + 32) + 24 * (32 + 24)
    assert adapter.num_bytes == pool.num_bytes_needed(weights) == elements * dtype.itemsize
    pool.integrity()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_row_scales_and_biases_lie_side_by_side(moe: BaseSpec, dtype: torch.dtype) -> None:
    pool = PagePool(moe, MIB, dtype, "cpu", keep_checksums=True)
    q, k, up = Site(0, "q_proj"), Site(0, "k_proj"), Site(1, "up_proj", 3)
    weights = weights_of(moe, {q: 4, up: 8}, vectors=([q, up], [q, k]))
    adapter = pool.try_load("a", weights)
    assert adapter is not None
    assert_holds(pool, "a", weights)
    assert (adapter.sites[k].rank, adapter.sites[k].runs) == (0, ())
    (block,) = adapter.placement.blocks
    assert block.num_units == -(-(64 + 64 + 32 + 24) // (8 * 4)), "the widths have 4 in common"
    assert adapter.num_bytes == pool.num_bytes_needed(weights)
    bias = pool.read_vectors("a", k)[1]
    assert bias is not None
    bias[5] += 1
    with pytest.raises(AssertionError, match="changed"):
        pool.integrity()


def test_vectors_are_apart_where_there_is_no_run(dense: BaseSpec) -> None:
    q, down = Site(0, "q_proj"), Site(0, "down_proj")
    unit_bytes = 8 * 16 * 4
    pool = PagePool(dense, 12 * unit_bytes, torch.float32, "cpu")
    page = weights_of(dense, {}, vectors=([], [down]))  # one unit
    for name in "abcdefghijkl":
        assert pool.try_load(name, page) is not None
    for name in "acegik":
        pool.free(name)
    weights = weights_of(dense, {}, vectors=([], [q, down]))
    weights[q] = replace(weights[q], row_scale=np.ones(64, np.float32))
    assert pool.num_bytes_needed(weights) == 2 * unit_bytes
    adapter = pool.try_load("apart", weights)
    assert adapter is not None
    assert len(adapter.placement.blocks) == 3
    assert adapter.num_bytes == 3 * unit_bytes
    assert_holds(pool, "apart", weights)
    pool.integrity()
    assert (
        pool.try_load("too many", weights_of(dense, {}, vectors=([], list(dense.sites())))) is None
    )
    pool.integrity()


def test_a_whole_site_is_read_without_a_copy(dense: BaseSpec) -> None:
    pool = PagePool(dense, MIB, torch.float32, "cpu")
    pool.try_load("a", weights_of(dense, {Site(0, "q_proj"): 32}))
    first, second = pool.read("a", Site(0, "q_proj")), pool.read("a", Site(0, "q_proj"))
    assert [t.data_ptr() for t in first] == [t.data_ptr() for t in second]


def test_what_does_not_fit_changes_nothing(dense: BaseSpec) -> None:
    pool = PagePool(dense, 8 * (32 + 64) * 4 * 2, torch.float32, "cpu")
    held = weights_of(dense, {Site(0, "q_proj"): 8})
    assert pool.try_load("held", held) is not None
    num_free = pool.num_free_pages
    too_large = weights_of(dense, {Site(0, "k_proj"): 8, Site(1, "q_proj"): 8})
    assert pool.try_load("large", too_large) is None
    assert pool.num_free_pages == num_free
    assert pool.get("large") is None
    assert_holds(pool, "held", held)
    pool.integrity()


def test_a_site_is_split_by_page_where_there_is_no_run(dense: BaseSpec) -> None:
    q = Site(0, "q_proj")
    page_bytes = 8 * (32 + 64) * 4
    pool = PagePool(dense, 4 * page_bytes, torch.float32, "cpu")
    for name in "abcd":
        assert pool.try_load(name, weights_of(dense, {q: 8}, seed=ord(name))) is not None
    pool.free("a")
    pool.free("c")
    weights = weights_of(dense, {q: 13})
    adapter = pool.try_load("split", weights)
    assert adapter is not None
    assert len(adapter.sites[q].runs) == 2
    assert_holds(pool, "split", weights)
    assert_holds(pool, "d", weights_of(dense, {q: 8}, seed=ord("d")))
    pool.integrity()


def test_nothing_older_shows_through(dense: BaseSpec) -> None:
    """Each byte of the pool held 7 before; the next adapter's padding holds zero all the same."""
    pool = PagePool(dense, 64 * 1024, torch.float32, "cpu")
    q = Site(0, "q_proj")
    ones = SiteWeights(np.full((64, 32), 7, np.float32), np.full((64, 64), 7, np.float32), 1.0)
    pool.try_load("old", {q: ones})
    pool.free("old")
    weights = weights_of(dense, {Site(1, "k_proj"): 1, Site(0, "up_proj"): 9})
    pool.try_load("new", weights)
    assert_holds(pool, "new", weights)
    with pytest.raises(KeyError):
        pool.read("new", q)


def test_weights_that_overflow_the_pools_dtype_are_refused(dense: BaseSpec) -> None:
    pool = PagePool(dense, MIB, torch.float16, "cpu")
    num_free = pool.num_free_pages
    a = np.full((4, 32), 1e6, np.float32)
    huge = {Site(0, "k_proj"): SiteWeights(a, a, 1.0)}
    with pytest.raises(ValueError, match="too large"):
        pool.try_load("huge", huge)
    assert pool.num_free_pages == num_free
    pool.integrity()


def test_a_changed_page_is_noticed(dense: BaseSpec) -> None:
    pool = PagePool(dense, MIB, torch.float32, "cpu", keep_checksums=True)
    pool.try_load("a", weights_of(dense, {Site(0, "q_proj"): 8}))
    pool.read("a", Site(0, "q_proj"))[1][3, 3] += 1
    with pytest.raises(AssertionError, match="changed"):
        pool.integrity()


def test_a_pool_without_room_for_a_page_is_refused(dense: BaseSpec) -> None:
    with pytest.raises(ValueError, match="no room"):
        PagePool(dense, 10, torch.float32, "cpu")


operation = st.tuples(
    st.sampled_from(["load", "load", "free"]),
    st.integers(0, 7),
    st.dictionaries(st.integers(0, 22), st.integers(1, 20), min_size=1, max_size=6),
    st.tuples(st.integers(0, 3), st.sets(st.integers(0, 22), max_size=4)),
)


@given(operations=st.lists(operation, max_size=25))
@settings(max_examples=50, deadline=None)
def test_any_history_keeps_every_page_and_every_value(
    moe: BaseSpec, operations: list[tuple[str, int, dict[int, int], tuple[int, set[int]]]]
) -> None:
    pool = PagePool(moe, 48 * 1024, torch.float32, "cpu")
    sites = list(moe.sites())
    held: dict[str, dict[Site, SiteWeights]] = {}
    for seed, (kind, index, by_number, (num_scaled, with_bias)) in enumerate(operations):
        digest = f"adapter-{index}"
        if kind == "free":
            if held.pop(digest, None) is not None:
                pool.free(digest)
        elif digest not in held:
            ranks = {sites[i]: rank for i, rank in by_number.items()}
            vectors = (list(ranks)[:num_scaled], [sites[i] for i in with_bias])
            weights = weights_of(moe, ranks, seed, vectors)
            if pool.try_load(digest, weights) is not None:
                held[digest] = weights
        pool.integrity()
    for digest, weights in held.items():
        assert_holds(pool, digest, weights)
        pool.free(digest)
    assert pool.num_free_pages == pool.num_pages


def test_a_load_is_prepared_once_from_its_own_sites(dense: BaseSpec) -> None:
    pool, prepared = PagePool(dense, MIB, torch.float32, "cpu"), []

    def prepare(sites: Mapping[Site, PooledSite]) -> object:
        prepared.append(sites)
        return tuple(sites)

    pool.prepare_with(prepare)
    weights = weights_of(dense, {Site(0, "q_proj"): 8})
    first = pool.try_load("a", weights)
    assert first is not None
    assert first.prepared == (Site(0, "q_proj"),)
    assert pool.try_load("a", weights) is first
    assert prepared == [first.sites]
    pool.free("a")
    other = pool.try_load("other", weights)  # takes its pages
    again = pool.try_load("a", weights)
    assert other is not None
    assert again is not None
    assert prepared == [first.sites, other.sites, again.sites]
    assert again.sites != first.sites


def test_a_load_that_cannot_be_prepared_leaves_nothing(dense: BaseSpec) -> None:
    pool = PagePool(dense, MIB, torch.float32, "cpu")

    def refuse(sites: Mapping[Site, PooledSite]) -> object:
        raise ValueError("no slot holds it")

    pool.prepare_with(refuse)
    with pytest.raises(ValueError, match="no slot holds it"):
        pool.try_load("a", weights_of(dense, {Site(0, "q_proj"): 8}))
    assert pool.get("a") is None
    assert pool.num_free_pages == pool.num_pages
    pool.integrity()


def test_loads_are_prepared_for_one_alone_from_the_first_on(dense: BaseSpec) -> None:
    pool = PagePool(dense, MIB, torch.float32, "cpu")
    pool.prepare_with(len)
    with pytest.raises(ValueError, match="for somebody else"):
        pool.prepare_with(len)
    late = PagePool(dense, MIB, torch.float32, "cpu")
    late.try_load("a", weights_of(dense, {Site(0, "q_proj"): 8}))
    with pytest.raises(ValueError, match="without being prepared"):
        late.prepare_with(len)
