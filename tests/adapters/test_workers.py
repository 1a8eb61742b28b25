"""Workers are fair between tenants, bounded, and let go of what nobody wants."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from weft_adapters.workers import Cancellation, CancelledError, FairWorkers, Work

Create = Callable[..., FairWorkers]


class Gate:
    """Work that notes what was begun, and ends when it is let through."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.cancelled: list[str] = []
        self._changed = threading.Condition()
        self._may_end: set[str] = set()

    def __call__(self, digest: str, cancellation: Cancellation) -> None:
        with self._changed:
            self.begun.append(digest)
            self._changed.notify_all()
            while digest not in self._may_end:
                if cancellation.is_cancelled:
                    self.cancelled.append(digest)
                    self._changed.notify_all()
                    return
                self._changed.wait(0.005)

    def let_through(self, *digests: str) -> None:
        with self._changed:
            self._may_end.update(digests)
            self._changed.notify_all()

    def wait_for(self, is_met: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(is_met, 10), (self.begun, self.cancelled)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def create() -> Iterator[Create]:
    made: list[FairWorkers] = []

    def build(num_threads: int, work: Work) -> FairWorkers:
        made.append(FairWorkers("worker", num_threads, work))
        return made[-1]

    yield build
    for workers in made:
        workers.close()


def test_no_more_is_begun_than_there_are_threads(create: Create, gate: Gate) -> None:
    workers = create(2, gate)
    for tenant in "abc":
        workers.add(tenant, tenant)
    gate.wait_for(lambda: len(gate.begun) == 2)
    assert gate.begun == ["a", "b"]
    gate.let_through("a")
    gate.wait_for(lambda: gate.begun == ["a", "b", "c"])
    gate.let_through("b", "c")


def test_a_flood_of_one_tenant_delays_another_by_one_turn(create: Create, gate: Gate) -> None:
    workers = create(1, gate)
    flood = [f"flood-{i}" for i in range(5)]
    for digest in flood:
        workers.add(digest, "flood")
    workers.add("quiet", "quiet")
    gate.wait_for(lambda: gate.begun == flood[:1])
    gate.let_through(*flood, "quiet")
    gate.wait_for(lambda: len(gate.begun) == 6)
    assert gate.begun.index("quiet") <= 2


def test_a_flood_leaves_a_thread_free(create: Create, gate: Gate) -> None:
    workers = create(3, gate)
    for i in range(5):
        workers.add(f"flood-{i}", "flood")
    gate.wait_for(lambda: len(gate.begun) == 2)
    workers.add("quiet", "quiet")
    gate.wait_for(lambda: gate.begun[-1] == "quiet")
    assert gate.begun == ["flood-0", "flood-1", "quiet"]
    gate.let_through("quiet", *(f"flood-{i}" for i in range(5)))
    gate.wait_for(lambda: len(gate.begun) == 6)


def test_what_waits_is_cancelled_before_it_is_begun(create: Create, gate: Gate) -> None:
    workers = create(1, gate)
    for digest in "abc":
        workers.add(digest, "t")
    gate.wait_for(lambda: gate.begun == ["a"])
    assert workers.cancel("b")
    gate.let_through("a", "c")
    gate.wait_for(lambda: gate.begun == ["a", "c"])


def test_what_is_under_way_is_told_and_can_be_asked_for_again(create: Create, gate: Gate) -> None:
    workers = create(2, gate)
    workers.add("a", "t")
    gate.wait_for(lambda: gate.begun == ["a"])
    assert not workers.cancel("a")
    workers.add("a", "t")
    gate.wait_for(lambda: gate.begun == ["a", "a"])
    assert gate.cancelled == ["a"]
    gate.let_through("a")


def test_work_that_raises_does_not_end_the_thread(create: Create, gate: Gate) -> None:
    def work(digest: str, cancellation: Cancellation) -> None:
        if digest == "bad":
            raise RuntimeError("a fault of ours")
        gate(digest, cancellation)

    workers = create(1, work)
    workers.add("bad", "t")
    workers.add("good", "t")
    gate.wait_for(lambda: gate.begun == ["good"])
    gate.let_through("good")


def test_a_sleep_ends_when_nobody_waits_any_more() -> None:
    cancellation = Cancellation()
    timer = threading.Timer(0.05, cancellation.cancel)
    timer.start()
    with pytest.raises(CancelledError):
        cancellation.sleep(30)
    timer.join()
