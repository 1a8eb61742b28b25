"""Nothing of a load happens inside a step: columns of the page table are packed by the loader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.engine.cuda.conftest import IS_INTERPRETED
from tests.engine.preparations import record_threads, run_in_turn

from weft.engine.offline import load_adapters
from weft.engine.slot_adapters import SlotAdapters
from weft_adapters.placement import Placement, PooledSite
from weft_adapters.sites import Site
from weft_kernels.cuda.page_columns import ColumnForm
from weft_kernels.cuda.slot_pages import SlotPages

if TYPE_CHECKING:
    from tests.bench import Bench

pytestmark = [] if IS_INTERPRETED else [pytest.mark.gpu]
DEVICE = "cpu" if IS_INTERPRETED else "cuda"


@pytest.mark.slow
def test_columns_are_packed_where_adapters_are_loaded(
    dense: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, digests = dense.build(
        kernels="triton", device=DEVICE, max_running=1, max_adapters_in_batch=1, max_model_len=64
    )
    threads = record_threads(monkeypatch, ColumnForm, "pack")
    entries = record_threads(monkeypatch, SlotPages, "set")
    loaded = [digests["small"], digests["mlp"]]
    # one slot: each of the three enters it anew
    run_in_turn(built, [*loaded, loaded[0]])
    built.tiers.close()
    assert threads == ["weft-adapter-loader"] * 2
    assert len(entries) == 3
    assert "weft-adapter-loader" not in entries


class _Unreadable(Mapping[Site, PooledSite]):
    def __getitem__(self, site: Site) -> PooledSite:
        raise AssertionError("a step reads an adapter's sites")

    def __iter__(self) -> Iterator[Site]:
        raise AssertionError("a step reads an adapter's sites")

    def __len__(self) -> int:
        raise AssertionError("a step reads an adapter's sites")


def test_a_slot_reads_nothing_of_an_adapter_but_what_was_prepared(dense: Bench) -> None:
    """It may have any number of sites: what a step does for it does not grow with them."""
    built, digests = dense.build(
        kernels="triton", device=DEVICE, max_running=1, max_adapters_in_batch=2
    )
    adapters = built.engine._runner._adapters
    assert isinstance(adapters, SlotAdapters)
    load_adapters(built, [digests["small"]])
    pooled = built.tiers.acquire(digests["small"])
    assert pooled is not None

    adapters.update({pooled.digest: replace(pooled, placement=Placement(_Unreadable()))})
    adapters.integrity()
    assert adapters.slots([pooled.digest])[0] != [-1]
    built.tiers.close()
