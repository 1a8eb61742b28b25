"""A scheduler with pretended adapters and tokens, and a tiny base of every family."""

from __future__ import annotations

import functools
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from weft.engine.blocks import BlockManager
from weft.engine.plan import BlockMoves, ScheduledReq, StepPlan
from weft.engine.prefix import PrefixRoots
from weft.engine.req import Req, create_choices
from weft.engine.scheduler import Scheduler
from weft.messages import EngineRequest, SamplingParams, TenantShare

if TYPE_CHECKING:
    from tests.bench import Bench

BLOCK_SIZE = 4
# who was told that an adapter is not there asks again after so many steps
ASK_EVERY_STEPS = 3


@dataclass
class FakeResidency:
    """Adapters arrive `load_steps` steps after they were asked for. Where there is `room` for fewer
    than are asked for, one that has had `turn_steps` steps has to leave for the next."""

    load_steps: int = 0
    room: int = 1000
    turn_steps: int = 1
    now: int = 0
    asked_at: dict[str, int] = field(default_factory=dict)
    wanted_at: dict[str, int] = field(default_factory=dict)
    arrived_at: dict[str, int] = field(default_factory=dict)
    leaving: set[str] = field(default_factory=set)
    references: Counter[str] = field(default_factory=Counter)
    load_cost: float = 0.0

    @property
    def num_changes(self) -> int:
        num_loaded = sum(self.now >= at + self.load_steps for at in self.asked_at.values())
        return 100 * (self.now // ASK_EVERY_STEPS) + num_loaded

    def try_acquire(self, digest: str) -> bool:
        self.wanted_at[digest] = self.now
        if digest in self.leaving and not self._due():
            self.leaving.remove(digest)  # who needed its room is gone
        if digest in self.leaving:
            return False
        if digest not in self.arrived_at:
            self.asked_at.setdefault(digest, self.now)
            self._make_room()
            if not self._has_arrived(digest):
                return False
        self.references[digest] += 1
        return True

    def _due(self) -> list[str]:
        """Who could come if there were room, and is still asked for."""
        return [
            digest
            for digest, asked_at in self.asked_at.items()
            if self.now >= asked_at + self.load_steps
            and self.now - self.wanted_at[digest] <= ASK_EVERY_STEPS
        ]

    def _make_room(self) -> None:
        for digest in [d for d in self.leaving if not self.references[d]]:
            self.leaving.remove(digest)
            del self.arrived_at[digest]
        lack = len(self.arrived_at) - len(self.leaving) + len(self._due()) - self.room
        for digest in sorted(self.arrived_at, key=self.arrived_at.__getitem__)[: max(0, lack)]:
            if self.now >= self.arrived_at[digest] + self.turn_steps:
                self.leaving.add(digest)

    def _has_arrived(self, digest: str) -> bool:
        is_due = self.now >= self.asked_at[digest] + self.load_steps
        if is_due and len(self.arrived_at) < self.room:
            del self.asked_at[digest]
            self.arrived_at[digest] = self.now
            return True
        return False

    def release(self, digest: str) -> None:
        self.references[digest] -= 1
        assert self.references[digest] >= 0

    def is_loaded(self, digest: str) -> bool:
        if digest in self.arrived_at:
            return digest not in self.leaving
        asked_at = self.asked_at.get(digest, self.now + 1)
        return self.now >= asked_at + self.load_steps and len(self.arrived_at) < self.room

    def is_leaving(self, digest: str) -> bool:
        return digest in self.leaving

    def failure(self, digest: str) -> str | None:
        return None

    def take_load_cost(self, digest: str) -> float:
        cost, self.load_cost = self.load_cost, 0.0
        return cost


class Contents:
    """What the blocks hold, as a runner would fill them: at a token's place a hash of the adapter
    and of all tokens up to it, which is what its keys and values depend on."""

    def __init__(self) -> None:
        self._device: dict[int, dict[int, int]] = {}
        self._host: dict[int, dict[int, int]] = {}

    def move(self, moves: BlockMoves) -> None:
        for block, host in moves.out:
            self._host[host] = dict(self._device[block])
        copied = [(own, dict(self._device[shared])) for shared, own in moves.copies]
        self._device.update(copied)
        for host, block in moves.back:
            self._device[block] = dict(self._host[host])

    def compute(self, item: ScheduledReq, token_ids: Sequence[int]) -> None:
        """Write the item's tokens, after a look at all that they attend to."""
        assert len(token_ids) >= item.stop, "a token is computed that nobody chose"
        value = hash(item.req.adapter_digest)
        for position, token in enumerate(token_ids[: item.stop]):
            value = hash((value, token))
            place = item.req.blocks[position // BLOCK_SIZE]
            block = self._device.setdefault(place, {})
            if position < item.start:
                assert block.get(position % BLOCK_SIZE) == value, "a block holds other tokens"
            block[position % BLOCK_SIZE] = value


@dataclass
class Simulation:
    """Steps a scheduler and checks every plan; a sampled token is a function of the sequence, so
    that what a request gets does not depend on how it was scheduled. `depth` steps stay in flight
    where the scheduler can look ahead, as in the engine."""

    scheduler: Scheduler
    residency: FakeResidency
    max_step_tokens: int
    depth: int = 0
    num_ahead: int = 0
    now: float = 0.0
    service: Counter[str] = field(default_factory=Counter)
    answers: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    first_token_at: dict[str, float] = field(default_factory=dict)
    contents: Contents = field(default_factory=Contents)
    _num_added: int = 0
    _counted: Counter[Req] = field(default_factory=Counter)
    _in_flight: deque[tuple[StepPlan, Mapping[Req, int]]] = field(default_factory=deque)
    _chosen: dict[Req, list[int]] = field(default_factory=dict)

    def add(
        self,
        tenant: str = "t",
        prompt: int | tuple[int, ...] = 4,
        max_tokens: int = 4,
        adapter: str | None = None,
        share: TenantShare | None = None,
        n: int = 1,
        sampling: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Req:
        self._num_added += 1
        tokens = prompt if isinstance(prompt, tuple) else self._unique(prompt)
        request = EngineRequest(
            options.pop("name", f"{tenant}-{self._num_added}"), tenant, tokens,
            SamplingParams(max_tokens, n=n, ignore_eos=True, **sampling or {}), adapter,
            share or TenantShare(), **options,
        )  # fmt: skip
        choices = create_choices(request, self.now)
        self.scheduler.add(choices[0])
        return choices[0]

    def _unique(self, size: int) -> tuple[int, ...]:
        return tuple(1000 * self._num_added + i for i in range(size))

    def step(self) -> StepPlan:
        if self._in_flight and not self.scheduler.can_look_ahead:
            self._land(0)
        self.num_ahead += bool(self._in_flight)
        plan = self.scheduler.schedule(self.now)
        self._check(plan)
        for req, refusal in plan.refused.items():
            self.refused[req.request_id] = refusal.code
            self.scheduler.finish(req, "error")
        self._launch(plan)
        self.now += 1.0
        self.residency.now += 1
        self._land(self.depth if plan.scheduled else 0)
        self.scheduler.integrity()
        return plan

    def _launch(self, plan: StepPlan) -> None:
        self.contents.move(plan.moves)
        tokens: dict[Req, int] = {}
        for item in plan.scheduled:
            req = item.req
            token_ids = [*req.token_ids, *self._chosen.get(req, [])]
            self.contents.compute(item, token_ids)
            if item.samples:
                tokens[req] = (31 * token_ids[-1] + req.index) % 997
            req.started_s = self.now if req.started_s is None else req.started_s
        for req, token in tokens.items():
            self._chosen.setdefault(req, []).append(token)
        if plan.scheduled:
            self._in_flight.append((plan, tokens))

    def _land(self, may_keep: int) -> None:
        while len(self._in_flight) > may_keep:
            plan, tokens = self._in_flight.popleft()
            for item in plan.scheduled:
                if not item.req.is_finished:
                    self._count(item.req, item.stop, item.samples)
            live = [req for req in tokens if not req.is_finished]
            self.scheduler.apply(plan, tokens)
            self.scheduler.integrity()
            for req in tokens:
                assert self._chosen[req].pop(0) == tokens[req]
            for req in live:
                self._take(req)

    def _take(self, req: Req) -> None:
        self.first_token_at.setdefault(req.request_id, self.now)
        if req.finish_reason is not None:
            self.answers[req.request_id, req.index] = req.token_ids[req.num_prompt_tokens :]
            self.scheduler.finish(req, req.finish_reason)

    def _check(self, plan: StepPlan) -> None:
        assert plan.num_tokens <= self.max_step_tokens
        assert len({item.req for item in plan.scheduled}) == len(plan.scheduled)
        for item in plan.scheduled:
            assert item.num_new > 0
            assert item.stop == item.req.num_computed
            written = range(item.start // BLOCK_SIZE, -(-item.stop // BLOCK_SIZE))
            for place in written:
                block = item.req.blocks[place]
                assert self.scheduler.blocks.is_writable(block), "a shared block is written"

    def _count(self, req: Req, stop: int, samples: bool) -> None:
        """Service as the fairness bound defines it: prompt tokens computed once, answers twice."""
        prompt = min(stop, req.num_prompt_tokens)
        if req.index == 0:
            begin = max(self._counted[req], req.num_cached_tokens)
            self.service[req.tenant_id] += max(0, prompt - begin)
            self._counted[req] = max(begin, prompt)
        self.service[req.tenant_id] += 2 * samples

    def run(self, max_steps: int = 10_000) -> None:
        """To the end, which must come."""
        for _ in range(max_steps):
            if not self.scheduler.has_work and not self._in_flight:
                break
            self.step()
        assert not self.scheduler.has_work, "requests are left"
        assert self.scheduler.blocks.num_free == self.scheduler.blocks.num_usable
        assert self.scheduler.memory.num_free_host == self.scheduler.memory.num_host_blocks
        assert not any(self.residency.references.values())


@pytest.fixture
def simulate() -> Callable[..., Simulation]:
    """`simulate(num_blocks=..., max_running=...)` makes a simulation; prefix cache on."""

    def create(
        num_blocks: int = 65,
        max_running: int = 8,
        max_step_tokens: int = 32,
        max_adapters: int = 4,
        num_host_blocks: int = 0,
        has_prefix_cache: bool = True,
        shares_base: bool = False,
        depth: int = 0,
        **residency: Any,
    ) -> Simulation:
        adapters = FakeResidency(**residency)
        scheduler = Scheduler(
            BlockManager(num_blocks, BLOCK_SIZE),
            adapters,
            max_running=max_running,
            max_step_tokens=max_step_tokens,
            max_adapters_in_batch=max_adapters,
            eos_token_ids=frozenset(),
            prefix_roots=PrefixRoots("b", "f", shares_base) if has_prefix_cache else None,
            num_host_blocks=num_host_blocks,
        )
        return Simulation(scheduler, adapters, max_step_tokens, depth)

    return create


@pytest.fixture(scope="session")
def get_family_bench(
    tmp_path_factory: pytest.TempPathFactory, create_bench: Callable[..., Bench]
) -> Callable[[str], Bench]:
    """The bench of one of `CASES` by its name; made once, so its oracle remembers what it said."""
    from tests.engine.families import CASES, create_model

    @functools.cache
    def get(name: str) -> Bench:
        case = CASES[name]
        root = tmp_path_factory.mktemp(case.model_type)
        bench = create_bench(root, create_model(case), case.adapters, **case.save)
        is_sharded = (bench.base_dir / "model.safetensors.index.json").is_file()
        assert is_sharded == bool(case.save)
        return bench

    return get
