"""The engine's thread as the gateway sees it: streams, limits, draining, and its death."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from tests.engine.started import Runner, collect, create_request, start_worker, until

from weft.engine.config import EngineConfig
from weft.engine.worker import InProcessEngine
from weft.messages import (
    EngineDeadError,
    EngineDrainingError,
    EngineOutput,
    EngineQueueFullError,
)

if TYPE_CHECKING:
    from tests.bench import Bench

Start = Callable[..., tuple[InProcessEngine, dict[str, str]]]


@pytest.fixture
def start(dense: Bench) -> Iterator[Start]:
    """Starts workers with engine options; they are closed at the end."""
    workers = []

    def start(*, run: Runner | None = None, **options: Any) -> tuple[InProcessEngine, Any]:
        worker, digests = start_worker(dense, run, **options)
        workers.append(worker)
        return worker, digests

    yield start
    for worker in workers:
        worker.close()


async def test_requests_stream_side_by_side(start: Start) -> None:
    worker, digests = start()
    names = [None, "small", "all-linear", "mlp", "wide", "patterns"]
    streams = [
        await worker.generate(create_request(f"{name}", digests.get(name or ""))) for name in names
    ]
    for outputs in await asyncio.gather(*map(collect, streams)):
        assert [o.finish_reason for o in outputs] == [None] * 7 + ["length"]
        assert sum(len(o.token_ids) for o in outputs) == 8
        assert outputs[-1].usage.num_completion_tokens == 8
        assert outputs[-1].usage.num_prompt_tokens == 3


async def test_a_stream_comes_token_by_token(start: Start) -> None:
    run = Runner()
    worker, _ = start(run=run)
    stream = await worker.generate(create_request("r", max_tokens=250))
    run.may_run.set()
    first = await anext(stream)
    assert first.finish_reason is None
    assert worker.snapshot().num_generation_tokens < 250, "the rest was not waited for"
    worker.abort("r")
    await collect(stream)


async def test_what_can_never_run_is_refused_at_the_call(start: Start) -> None:
    worker, _ = start()
    with pytest.raises(ValueError, match="maximum context length"):
        await worker.generate(create_request("r", max_tokens=300))
    with pytest.raises(ValueError, match="outside the vocabulary"):
        await worker.generate(create_request("r", prompt=(10**6,)))
    stream = await worker.generate(create_request("r"))
    with pytest.raises(ValueError, match="already in use"):
        await worker.generate(create_request("r"))
    assert len(await collect(stream)) == 8


async def test_an_abort_that_comes_too_late_spares_the_next_request_of_that_id(
    dense: Bench,
) -> None:
    options: dict[str, Any] = {"max_model_len": 256, "device": "cpu"}
    built, _ = dense.build(**options)
    # this thread is the engine's, so that the abort comes between the last step and its output
    worker = InProcessEngine(EngineConfig(dense.base_dir, dense.root / "store", **options), built)
    first = await worker.generate(create_request("r", max_tokens=1))
    worker._take_commands()
    [last] = built.engine.step()
    worker.abort("r")
    worker._deliver(last)
    second = await worker.generate(create_request("r", max_tokens=2))
    worker._take_commands()
    for _ in range(2):
        for output in built.engine.step():
            worker._deliver(output)
    assert [o.finish_reason for o in await collect(first)] == ["length"]
    assert [o.finish_reason for o in await collect(second)] == [None, "length"]
    worker.close()


async def test_an_abort_ends_a_stream_midway(start: Start) -> None:
    worker, _ = start()
    stream = await worker.generate(create_request("r", max_tokens=250))
    other = await worker.generate(create_request("other"))
    first = await anext(stream)
    worker.abort("r")
    worker.abort("r")
    worker.abort("never seen")
    rest = await collect(stream)
    assert rest[-1].finish_reason == "abort"
    assert rest[-1].error is None
    num_tokens = sum(len(o.token_ids) for o in [first, *rest])
    assert rest[-1].usage.num_completion_tokens == num_tokens < 250
    assert (await collect(other))[-1].finish_reason == "length"
    await until(lambda: worker.snapshot().num_running == 0)
    assert worker.snapshot().num_blocks_free == worker.snapshot().num_blocks_total


async def test_a_request_is_aborted_before_its_first_step(start: Start) -> None:
    run = Runner()
    worker, _ = start(run=run)
    running = await worker.generate(create_request("running"))
    await until(run.is_held.is_set)
    waiting = await worker.generate(create_request("waiting"))
    worker.abort("waiting")
    run.may_run.set()
    assert [o.finish_reason for o in await collect(waiting)] == ["abort"]
    assert len(await collect(running)) == 8


async def test_a_full_queue_admits_nothing(start: Start) -> None:
    run = Runner()
    worker, _ = start(run=run, max_running=1, max_waiting=2)
    streams = [await worker.generate(create_request("running"))]
    await until(run.is_held.is_set)
    streams += [await worker.generate(create_request(name)) for name in ("first", "second")]
    with pytest.raises(EngineQueueFullError) as refused:
        await worker.generate(create_request("third"))
    assert refused.value.num_waiting == 2
    assert worker.snapshot().num_waiting == 2
    run.may_run.set()
    for stream in streams:
        assert len(await collect(stream)) == 8
    assert len(await collect(await worker.generate(create_request("third")))) == 8


async def test_draining_finishes_what_runs_and_admits_nothing(start: Start) -> None:
    run = Runner()
    worker, _ = start(run=run)
    await until(lambda: worker.is_ready)
    stream = await worker.generate(create_request("r"))
    await until(run.is_held.is_set)
    drained = asyncio.create_task(worker.drain(20))
    await until(lambda: not worker.is_ready)
    assert worker.not_ready_reason == "The engine is draining."
    with pytest.raises(EngineDrainingError):
        await worker.generate(create_request("late"))
    assert not drained.done()
    run.may_run.set()
    await drained
    assert (await collect(stream))[-1].finish_reason == "length"


async def test_draining_aborts_what_outlives_the_deadline(start: Start) -> None:
    run = Runner()
    worker, _ = start(run=run)
    stream = await worker.generate(create_request("r", max_tokens=250))
    await until(run.is_held.is_set)
    drained = asyncio.create_task(worker.drain(0.01))
    await asyncio.sleep(0.05)
    run.may_run.set()
    await drained
    outputs = await collect(stream)
    assert outputs[-1].finish_reason == "abort"
    assert outputs[-1].usage.num_completion_tokens < 250


async def test_closing_aborts_what_runs_and_what_was_never_looked_at(start: Start) -> None:
    run = Runner()
    worker, _ = start(run=run)
    running = await worker.generate(create_request("running", max_tokens=250))
    await until(run.is_held.is_set)
    unseen = await worker.generate(create_request("unseen"))
    closing = asyncio.create_task(asyncio.to_thread(worker.close))
    await until(lambda: not worker.is_ready)
    with pytest.raises(EngineDrainingError):
        await worker.generate(create_request("late"))
    run.may_run.set()
    await closing
    for stream in (running, unseen):
        last = (await collect(stream))[-1]
        assert (last.finish_reason, last.error) == ("abort", None)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_crash_ends_every_stream_and_is_told(start: Start) -> None:
    run = Runner()
    worker, _ = start(run=run)
    streams = [await worker.generate(create_request(name, max_tokens=250)) for name in "ab"]
    await until(run.is_held.is_set)
    run.may_run.set()
    first = await anext(streams[0])
    run.may_run.clear()
    run.is_held.clear()
    await until(run.is_held.is_set)
    unseen = await worker.generate(create_request("unseen"))
    run.error = RuntimeError("the device is lost")
    run.may_run.set()
    for stream in (*streams, unseen):
        last = (await collect(stream))[-1]
        assert last.finish_reason == "error"
        assert last.error == "The engine stopped while it ran this request."
        if stream is streams[0]:
            assert last.usage.num_completion_tokens >= first.usage.num_completion_tokens == 1
    assert not worker.is_ready
    assert worker.not_ready_reason == "The engine has stopped: RuntimeError: the device is lost"
    with pytest.raises(EngineDeadError, match="the device is lost"):
        await worker.generate(create_request("late"))
    async with asyncio.timeout(5):
        await worker.drain(60)


async def test_a_step_that_does_not_end_is_told(start: Start) -> None:
    run = Runner()
    worker, _ = start(run=run, step_timeout_s=0.02)
    await until(lambda: worker.is_ready)
    stream = await worker.generate(create_request("r"))
    await until(lambda: not worker.is_ready)
    assert worker.not_ready_reason.startswith("A step has been running for over")
    run.may_run.set()
    await collect(stream)
    await until(lambda: worker.is_ready)
    assert worker.not_ready_reason == ""


async def test_a_snapshot_counts(start: Start) -> None:
    run = Runner()
    worker, digests = start(run=run)
    streams = [
        await worker.generate(create_request("a", digests["small"])),
        await worker.generate(create_request("b", digests["small"], prompt=(1,) * 7)),
    ]
    await until(run.is_held.is_set)
    held = worker.snapshot()
    assert held.num_running + held.num_waiting == 2
    assert held.running_adapters == (digests["small"],)
    assert held.adapter_states[digests["small"]] == "device"
    assert held.num_blocks_free < held.num_blocks_total
    assert held.num_pages_free < held.num_pages_total
    run.may_run.set()
    for stream in streams:
        await collect(stream)
    after = worker.snapshot(drain=True)
    assert (after.num_running, after.num_waiting) == (0, 0)
    assert (after.num_prompt_tokens, after.num_generation_tokens) == (10, 16)
    assert len(after.histograms["time_to_first_token"]) == 2
    assert len(after.histograms["queue_time"]) == 2
    assert len(after.histograms["inter_token_latency"]) == 14
    again = worker.snapshot(drain=True)
    assert all(values == () for values in again.histograms.values())
    assert again.num_generation_tokens == 16


async def test_a_prefetched_adapter_comes_to_the_device(start: Start) -> None:
    worker, digests = start()
    worker.prefetch_adapter(digests["wide"])
    await until(lambda: worker.snapshot().adapter_states.get(digests["wide"]) == "device")


async def test_a_reader_that_leaves_holds_up_nobody(start: Start) -> None:
    worker, _ = start()
    left = await worker.generate(create_request("left"))
    await anext(left)
    assert len(await collect(await worker.generate(create_request("stays")))) == 8
    await until(lambda: worker.snapshot().num_running == 0)


def test_a_caller_whose_event_loop_is_gone_does_not_stop_the_engine(start: Start) -> None:
    run = Runner()
    worker, _ = start(run=run)

    async def leave() -> None:
        await worker.generate(create_request("left"))

    asyncio.run(leave())
    run.may_run.set()

    async def stay() -> list[EngineOutput]:
        return await collect(await worker.generate(create_request("stays")))

    assert len(asyncio.run(stay())) == 8
