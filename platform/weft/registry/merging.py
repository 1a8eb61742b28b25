"""Merged adapters of a tenant: resolved from its own versions on every request, made once.

A merge runs in a process of its own (`weft_adapters.merge_worker`), one at a time; tenants take
turns. What it makes is judged and stored like an upload. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from weft.db.database import Database
from weft.db.scope import Owner, TenantOwner
from weft.errors import InvalidRequestError, OverloadedError, WeftError
from weft.registry.intake import ReceivedAdapter, temporary_folder
from weft.registry.kept_merges import DerivedKey, KeptMerges
from weft.registry.merge_process import run_merge
from weft.registry.models import AdapterVersion
from weft.registry.names import MERGED_NAME
from weft.registry.publishing import Publisher
from weft.registry.service import ResolvedModel, resolve_model
from weft_adapters.merge import (
    MajoritySignMethod,
    MergeJob,
    MergeRecipe,
    MergeRefusedError,
    MergeStrategy,
    plan_merge,
    read_parent,
)
from weft_adapters.sites import BaseSpec
from weft_adapters.store import (
    AdapterNotStoredError,
    ReadableStore,
    StoredAdapter,
    StoreUnavailableError,
)

logger = logging.getLogger("weft.registry")

_PARAM = "merged_adapters"
# that one tenant may have waiting for their turn
_MAX_PENDING = 4


class MergingUnavailableError(WeftError):
    """This server was installed without PEFT, which merges adapters."""

    status_code = 501
    code = "merging_unavailable"


@dataclass(frozen=True, slots=True)
class WantedMerge:
    """A merge as a request asks for it; `ids` are names of the caller's adapters."""

    ids: tuple[str, ...]
    weights: tuple[float, ...]
    strategy: MergeStrategy = "linear"
    density: float | None = None
    majority_sign_method: MajoritySignMethod = "total"


@dataclass(frozen=True, slots=True)
class MergeLimits:
    """A tenant keeps `max_kept` merged adapters, those used last, each of at most `max_bytes`. A
    request waits for `wait_s` (None: to the end), a merge is given up after `timeout_s`."""

    max_bytes: int
    max_kept: int = 64
    wait_s: float | None = 30.0
    timeout_s: float = 240.0


class Merger:
    """Of the served base, whose `config.json` is `hf_config`. `run` makes one merge's files in the
    job's folder, as `run_merge` does."""

    def __init__(
        self,
        database: Database,
        publisher: Publisher,
        store: ReadableStore,
        folder: Path,
        hf_config: dict[str, Any],
        limits: MergeLimits,
        run: Callable[[MergeJob, float], Awaitable[None]] = run_merge,
    ) -> None:
        self._database, self._publisher, self._store = database, publisher, store
        self._folder, self._hf_config = folder, hf_config
        self._spec = BaseSpec.from_config(hf_config, publisher.base.digest)
        self._limits = limits
        self._run = run
        self._kept = KeptMerges(database, publisher.base, limits.max_kept)
        self._tasks: dict[DerivedKey, asyncio.Task[AdapterVersion]] = {}
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._one_at_a_time = asyncio.Semaphore(1)

    async def resolve(self, owner: Owner, wanted: WantedMerge) -> ResolvedModel:
        """The merged adapter, made where it is not there yet.

        ModelNotFoundError for a parent that is unknown or not the caller's, also where the merge is
        there; OverloadedError (`adapter_loading`) where it takes longer than a request may wait.
        """
        parents = await self._resolve_parents(owner, wanted)
        try:
            recipe = MergeRecipe.create(
                [digest for _, digest in parents], wanted.weights, wanted.strategy, wanted.density,
                wanted.majority_sign_method,
            )  # fmt: skip
        except ValueError as error:
            raise _refused(str(error)) from error
        names = tuple(name for name, _ in parents)
        version = await self._kept.find(owner, recipe.digest)
        if version is None:
            version = await self._wait_for(owner, recipe, names)
        self._kept.note_use(owner, recipe.digest, version)
        return ResolvedModel(
            f"{MERGED_NAME}@v{version.number}", self._publisher.base.name, version.adapter_id,
            version.number, version.digest, merged_from=names,
        )  # fmt: skip

    async def close(self) -> None:
        """End what is being merged; nothing of it stays."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _resolve_parents(self, owner: Owner, wanted: WantedMerge) -> list[tuple[str, str]]:
        """(immutable name, digest) of each."""
        parents = []
        async with self._database.reading() as session:
            for place, name in enumerate(wanted.ids):
                try:
                    found = await resolve_model(session, owner, self._publisher.base, name)
                except WeftError as error:
                    error.param = f"{_PARAM}.ids[{place}]"
                    raise
                if found.digest is None:
                    raise InvalidRequestError(
                        f"'{name}' is the base model, not an adapter.",
                        param=f"{_PARAM}.ids[{place}]",
                    )
                parents.append((found.name, found.digest))
        return parents

    async def _wait_for(
        self, owner: Owner, recipe: MergeRecipe, names: tuple[str, ...]
    ) -> AdapterVersion:
        """Of all requests for a merge one makes it, and it goes on when they have left."""
        if importlib.util.find_spec("peft") is None:
            raise MergingUnavailableError(
                "This server cannot merge adapters: PEFT is not installed.",
                param=_PARAM,
                headers={"x-should-retry": "false"},
            )
        key = owner.tenant_id, recipe.digest
        task = self._tasks.get(key)
        if task is None:
            pending = Counter(tenant_id for tenant_id, _ in self._tasks)
            if pending[owner.tenant_id] >= _MAX_PENDING:
                raise OverloadedError(
                    f"{_MAX_PENDING} merges of yours are under way; try again.", retry_after_s=5
                )
            task = asyncio.create_task(self._make(TenantOwner(owner.tenant_id), recipe, names))
            self._tasks[key] = task
            task.add_done_callback(lambda done: self._forget(key, done))
        done, _ = await asyncio.wait({task}, timeout=self._limits.wait_s)
        if not done:
            raise OverloadedError(
                "The adapters are still being merged; try again shortly.",
                retry_after_s=5,
                code="adapter_loading",
            )
        return task.result()

    def _forget(self, key: DerivedKey, task: asyncio.Task[AdapterVersion]) -> None:
        del self._tasks[key]
        # told even where every request has left; a refusal was their own affair
        if not task.cancelled() and not isinstance(task.exception(), WeftError | None):
            logger.error("a merge failed", exc_info=task.exception())

    async def _make(
        self, owner: Owner, recipe: MergeRecipe, names: tuple[str, ...]
    ) -> AdapterVersion:
        # a tenant has one merge in the queue at a time, so that tenants take turns
        turn = self._turns.setdefault(owner.tenant_id, asyncio.Lock())
        async with (
            turn,
            self._one_at_a_time,
            temporary_folder(self._folder) as folder,
        ):
            try:
                with ExitStack() as held:
                    stored = await asyncio.to_thread(self._check, recipe, names, held)
                    await self._run(
                        self._job(recipe, names, stored, folder), self._limits.timeout_s
                    )
            except MergeRefusedError as error:
                raise _refused(str(error)) from error
            files = await asyncio.to_thread(ReceivedAdapter.in_folder, folder)
            source = {"type": "merge", "derived_digest": recipe.digest, **_told(recipe, names)}
            await self._kept.ensure_adapter(owner)
            published = await self._publisher.publish(owner, MERGED_NAME, files, source=source)
            await self._kept.drop_least_used(owner, published.version)
            return published.version

    def _job(
        self,
        recipe: MergeRecipe,
        names: Sequence[str],
        stored: Sequence[StoredAdapter],
        folder: Path,
    ) -> MergeJob:
        parents = (
            (name, str(files.config_path.resolve()), str(files.tensors_path.resolve()))
            for name, files in zip(names, stored, strict=True)
        )
        base = self._publisher.base
        return MergeJob(
            recipe, tuple(parents), self._hf_config, base.name, base.digest, str(folder.resolve())
        )

    def _check(
        self, recipe: MergeRecipe, names: Sequence[str], held: ExitStack
    ) -> list[StoredAdapter]:
        """Where the parents' files are, as long as they are `held`; MergeRefusedError before a
        process is started."""
        try:
            stored = [held.enter_context(self._store.reading(d)) for d in recipe.parents]
        except AdapterNotStoredError:
            raise MergeRefusedError("an adapter's files are not in the store") from None
        except StoreUnavailableError as error:
            logger.warning("adapters that are to be merged could not be fetched: %s", error)
            raise OverloadedError(
                "The adapters to be merged could not be fetched; try again.",
                retry_after_s=5,
                code="adapter_loading",
            ) from error
        merges = plan_merge(
            [
                read_parent(name, digest, files, self._spec)
                for name, digest, files in zip(names, recipe.parents, stored, strict=True)
            ]
        )
        num_bytes = sum(merge.num_bytes(self._spec) for merge in merges)
        if num_bytes > self._limits.max_bytes:
            raise MergeRefusedError(
                f"the merged adapter would have {num_bytes} bytes, at most "
                f"{self._limits.max_bytes} are taken"
            )
        return stored


def _refused(message: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"The adapters cannot be merged: {message}.", param=_PARAM, code="merge_refused"
    )


def _told(recipe: MergeRecipe, names: tuple[str, ...]) -> dict[str, object]:
    """The recipe as the tenant gave it, for its version's `source`."""
    told: dict[str, object] = {
        "ids": list(names),
        "weights": list(recipe.weights),
        "merge_strategy": recipe.strategy,
    }
    if recipe.density is not None:
        told["density"] = recipe.density
    if recipe.strategy.endswith("ties"):
        told["majority_sign_method"] = recipe.majority_sign_method
    return told
