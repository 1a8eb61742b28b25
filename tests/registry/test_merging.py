"""Merged adapters of a tenant: made once, from what the tenant may use at that moment."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from tests.registry.shelf import Shelf
from tests.tiny import BASE_DIGEST, HF_CONFIG

from weft.db.scope import TenantOwner
from weft.errors import InvalidRequestError, ModelNotFoundError, OverloadedError, WeftError
from weft.registry import merge_process, service
from weft.registry.merge_process import run_merge
from weft.registry.merging import MergeLimits, Merger, MergingUnavailableError, WantedMerge
from weft.registry.models import VersionState
from weft.registry.names import MERGED_NAME
from weft.registry.repository import RegistryRepository
from weft_adapters.merge import MergeJob, MergeRecipe
from weft_adapters.merge_worker import run_job
from weft_adapters.store import StoredAdapter, StoreUnavailableError

LINEAR = WantedMerge(("one", "two@v1"), (0.5, 0.5))


@dataclass
class Works:
    """Runs merges as the worker's process does, in this one; holds them back on demand."""

    jobs: list[MergeJob] = field(default_factory=list)
    may_go: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, job: MergeJob, timeout_s: float) -> None:
        self.jobs.append(job)
        await self.may_go.wait()
        await asyncio.to_thread(run_job, job)


@dataclass
class Mill:
    """A merger over a shelf with two adapters of a tenant."""

    shelf: Shelf
    owner: TenantOwner
    works: Works
    limits: MergeLimits = MergeLimits(2**20)
    _mergers: list[Merger] = field(default_factory=list)

    def merger(self, **limits: Any) -> Merger:
        merger = Merger(
            self.shelf.database, self.shelf.publisher, self.shelf.store,
            self.shelf.root / "uploads", HF_CONFIG, replace(self.limits, **limits), self.works.run,
        )  # fmt: skip
        self._mergers.append(merger)
        return merger

    async def aclose(self) -> None:
        for merger in self._mergers:
            await merger.close()

    def left_over(self) -> list[str]:
        return [path.name for path in (self.shelf.root / "uploads").iterdir()]

    async def states(self) -> list[str]:
        async with self.shelf.database.reading() as session:
            adapter = await service.get_adapter(session, self.owner, MERGED_NAME)
            repository = RegistryRepository(session, self.owner)
            last = await repository.next_number(adapter)
            found = [await repository.find_version(adapter, n) for n in range(1, last)]
            return [version.state for version in found if version is not None]


@pytest.fixture
async def mill(shelf: Shelf) -> AsyncIterator[Mill]:
    owner = await shelf.tenant("acme", "one", "two")
    await shelf.publish(owner, "one", 1)
    await shelf.publish(owner, "two", 2)
    works = Works()
    works.may_go.set()
    async with aclosing(Mill(shelf, owner, works)) as mill:
        yield mill


async def started(works: Works, num_jobs: int) -> None:
    async with asyncio.timeout(20):
        while len(works.jobs) < num_jobs:
            await asyncio.sleep(0.005)


async def test_a_merge_is_made_once_and_stored_as_a_version(mill: Mill) -> None:
    merger = mill.merger()
    found = await asyncio.gather(*(merger.resolve(mill.owner, LINEAR) for _ in range(5)))
    assert len(mill.works.jobs) == 1
    assert len(set(found)) == 1
    model = found[0]
    assert (model.name, model.merged_from) == ("~merged@v1", ("one@v1", "two@v1"))
    assert model.digest is not None
    assert mill.shelf.store.exists(model.digest)
    version = await mill.shelf.version(mill.owner, MERGED_NAME, 1)
    assert (version.state, version.digest) == (VersionState.READY, model.digest)
    recipe = mill.works.jobs[0].recipe
    assert version.source == {
        "type": "merge",
        "derived_digest": recipe.digest,
        "ids": ["one@v1", "two@v1"],
        "weights": [0.5, 0.5],
        "merge_strategy": "linear",
    }
    assert mill.left_over() == []
    # after a restart it is there
    assert await mill.merger().resolve(mill.owner, LINEAR) == model
    assert len(mill.works.jobs) == 1
    other = await merger.resolve(mill.owner, replace(LINEAR, weights=(0.5, 0.25)))
    assert (other.name, len(mill.works.jobs)) == ("~merged@v2", 2)


async def test_nobody_calls_or_fills_it_by_name(mill: Mill) -> None:
    await mill.merger().resolve(mill.owner, LINEAR)
    async with mill.shelf.database.reading() as session:
        for name in (MERGED_NAME, f"{MERGED_NAME}@v1", f"{MERGED_NAME}@default"):
            with pytest.raises(ModelNotFoundError):
                await service.resolve_model(session, mill.owner, mill.shelf.base, name)
        servable = await RegistryRepository(session, mill.owner).list_servable(BASE_DIGEST)
        assert [adapter.name for adapter, _ in servable] == ["one", "two"]
    with pytest.raises(InvalidRequestError, match="takes no uploads"):
        await mill.shelf.publish(mill.owner, MERGED_NAME, 3)


async def test_the_parents_must_be_the_callers_on_every_request(mill: Mill) -> None:
    merger = mill.merger()
    await merger.resolve(mill.owner, LINEAR)
    other = await mill.shelf.tenant("other", "one")
    await mill.shelf.publish(other, "one", 1)  # the same bytes under the same name
    with pytest.raises(ModelNotFoundError) as caught:
        await merger.resolve(other, LINEAR)
    assert caught.value.param == "merged_adapters.ids[1]"
    await mill.shelf.publish(mill.owner, "two", 3)  # moves the default alias, not `two@v1`
    await merger.resolve(mill.owner, LINEAR)
    await mill.shelf.delete_version(mill.owner, "two", 1)
    with pytest.raises(ModelNotFoundError, match="two@v1"):
        await merger.resolve(mill.owner, LINEAR)
    with pytest.raises(InvalidRequestError, match="'tiny' is the base model"):
        await merger.resolve(mill.owner, WantedMerge(("one", "tiny"), (1.0, 1.0)))
    assert len(mill.works.jobs) == 1


async def test_two_recipes_with_one_outcome_are_one_version(mill: Mill) -> None:
    merger = mill.merger()
    all_kept = replace(LINEAR, strategy="dare_linear", density=1.0)
    first = await merger.resolve(mill.owner, LINEAR)
    assert await merger.resolve(mill.owner, all_kept) == first
    assert await merger.resolve(mill.owner, all_kept) == first
    assert len(mill.works.jobs) == 2


async def test_who_waits_too_long_is_told_and_the_merge_goes_on(mill: Mill) -> None:
    merger = mill.merger(wait_s=0.01)
    mill.works.may_go.clear()
    with pytest.raises(OverloadedError) as caught:
        await merger.resolve(mill.owner, LINEAR)
    assert (caught.value.code, caught.value.headers["retry-after"]) == ("adapter_loading", "5")
    mill.works.may_go.set()
    async with asyncio.timeout(20):
        while True:
            try:
                assert (await merger.resolve(mill.owner, LINEAR)).name == "~merged@v1"
                break
            except OverloadedError:
                await asyncio.sleep(0.01)
    assert len(mill.works.jobs) == 1


async def test_tenants_take_turns_and_have_a_few_merges_waiting(mill: Mill) -> None:
    merger = mill.merger()
    other = await mill.shelf.tenant("other", "one", "two")
    await mill.shelf.publish(other, "one", 1)
    await mill.shelf.publish(other, "two", 2)
    mill.works.may_go.clear()
    tasks = [asyncio.create_task(merger.resolve(mill.owner, LINEAR))]
    await started(mill.works, 1)
    for weight in (0.1, 0.2, 0.3):
        wanted = replace(LINEAR, weights=(0.5, weight))
        tasks.append(asyncio.create_task(merger.resolve(mill.owner, wanted)))
    while len(merger._tasks) < 4:
        await asyncio.sleep(0.005)
    with pytest.raises(OverloadedError, match="4 merges of yours"):
        await merger.resolve(mill.owner, replace(LINEAR, weights=(0.5, 0.4)))
    tasks.append(asyncio.create_task(merger.resolve(other, replace(LINEAR, weights=(0.5, 7.0)))))
    while len(merger._tasks) < 5:
        await asyncio.sleep(0.005)
    mill.works.may_go.set()
    await asyncio.gather(*tasks)
    weights = [job.recipe.weights[1] for job in mill.works.jobs]
    assert weights.index(7.0) <= 2  # at most one that came before, besides the one under way
    assert sorted(weights) == [0.1, 0.2, 0.3, 0.5, 7.0]


async def test_those_used_last_are_kept(mill: Mill) -> None:
    merger = mill.merger(max_kept=2)
    wanted = [replace(LINEAR, weights=(0.5, weight)) for weight in (0.1, 0.2, 0.3)]
    models = [await merger.resolve(mill.owner, each) for each in wanted[:2]]
    assert await merger.resolve(mill.owner, wanted[0]) == models[0]
    await merger.resolve(mill.owner, wanted[2])
    assert await mill.states() == ["ready", "archived", "ready"]
    await mill.shelf.purger.purge(86_400)  # they need no retention time
    assert await mill.states() == ["ready", "purged", "ready"]
    assert models[1].digest is not None
    assert not mill.shelf.store.exists(models[1].digest)
    # it can be made again
    again = await merger.resolve(mill.owner, wanted[1])
    assert (again.name, again.digest) == ("~merged@v4", models[1].digest)


async def test_a_deleted_merge_is_made_again(mill: Mill) -> None:
    merger = mill.merger()
    first = await merger.resolve(mill.owner, LINEAR)
    await mill.shelf.delete_version(mill.owner, MERGED_NAME, 1)
    again = await merger.resolve(mill.owner, LINEAR)
    assert (again.name, again.digest) == ("~merged@v2", first.digest)


async def test_what_cannot_be_merged_is_refused_and_leaves_nothing(mill: Mill) -> None:
    merger = mill.merger()
    await mill.shelf.publisher.publish(mill.owner, "two", mill.shelf.files(5, rank=2))
    cases: list[tuple[WantedMerge, str]] = [
        (WantedMerge(("one", "two"), (1, 1)), "'one@v1' has rank 4 and 'two@v2' rank 2"),
        (WantedMerge((), ()), "not 0"),
        (WantedMerge(("one",), (1, 1)), "2 weights for 1 adapters"),
        (replace(LINEAR, strategy="ties"), "needs a density"),
    ]
    for wanted, said in cases:
        with pytest.raises(InvalidRequestError, match=said) as caught:
            await merger.resolve(mill.owner, wanted)
        assert (caught.value.code, caught.value.param) == ("merge_refused", "merged_adapters")
    with pytest.raises(InvalidRequestError, match="would have 512 bytes, at most 511 are taken"):
        await mill.merger(max_bytes=511).resolve(mill.owner, LINEAR)
    assert mill.works.jobs == []
    async with mill.shelf.database.reading() as session:
        assert await RegistryRepository(session, mill.owner).find_adapter(MERGED_NAME) is None


async def test_a_store_that_does_not_answer_is_no_refusal(mill: Mill) -> None:
    merger = mill.merger()
    available = mill.shelf.store.open

    def refuse(digest: str) -> StoredAdapter:
        raise StoreUnavailableError("connection reset by 10.0.0.7")

    mill.shelf.store.open = refuse  # type: ignore[method-assign]
    with pytest.raises(OverloadedError) as caught:
        await merger.resolve(mill.owner, LINEAR)
    assert (caught.value.status_code, caught.value.code) == (503, "adapter_loading")
    assert "10.0.0.7" not in caught.value.message
    mill.shelf.store.open = available  # type: ignore[method-assign]
    assert (await merger.resolve(mill.owner, LINEAR)).name == "~merged@v1"


async def test_closing_ends_what_is_being_merged(mill: Mill) -> None:
    merger = mill.merger()
    mill.works.may_go.clear()
    waiting = asyncio.create_task(merger.resolve(mill.owner, LINEAR))
    await started(mill.works, 1)
    await merger.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert mill.left_over() == []


async def test_without_peft_the_request_says_so(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    merger = mill.merger()
    made = await merger.resolve(mill.owner, LINEAR)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MergingUnavailableError) as caught:
        await merger.resolve(mill.owner, replace(LINEAR, weights=(1.0, 1.0)))
    assert (caught.value.status_code, caught.value.headers["x-should-retry"]) == (501, "false")
    assert await merger.resolve(mill.owner, LINEAR) == made  # what is there needs no PEFT


# ---- the process ----


@pytest.fixture
def job(tmp_path: Any) -> MergeJob:
    recipe = MergeRecipe.create(["sha256:" + "a" * 64], [1.0])
    return MergeJob(recipe, (("one", "c", "t"),), HF_CONFIG, "tiny", BASE_DIGEST, str(tmp_path))


async def test_a_process_that_fails_is_the_servers_fault(
    job: MergeJob, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(merge_process, "_WORKER", "weft_adapters.no_such_worker")
    with pytest.raises(WeftError) as caught:
        await run_merge(job, 60.0)
    assert (caught.value.status_code, caught.value.code) == (500, "merge_failed")
    assert "no_such_worker" in caplog.text
    assert "no_such_worker" not in caught.value.message


async def test_a_process_that_takes_too_long_is_ended(
    job: MergeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge_process, "_WORKER", "http.server")  # never ends by itself
    with pytest.raises(WeftError, match="in time"):
        await run_merge(job, 0.5)
