"""What every `EngineClient` does, held against the engine in this process and over its socket."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from tests.engine.started import Runner, collect, create_request

from weft.messages import (
    EngineClient,
    EngineDeadError,
    EngineDrainingError,
    EngineOutput,
    EngineQueueFullError,
    EngineStats,
    Grammar,
)

if TYPE_CHECKING:
    from tests.ipc.conftest import Rig


async def until_stats(client: EngineClient, **wanted: Any) -> EngineStats:
    async with asyncio.timeout(20):
        while True:
            stats = await client.stats()
            if all(getattr(stats, name) == value for name, value in wanted.items()):
                return stats
            await asyncio.sleep(0.005)


async def until_ready(client: EngineClient) -> None:
    async with asyncio.timeout(20):
        while not client.is_ready:
            await asyncio.sleep(0.005)


async def test_requests_stream_side_by_side_and_are_counted(rig: Rig) -> None:
    client = await rig.start()
    names = [None, "small", "wide"]
    streams = [
        await client.generate(create_request(f"{name}", rig.digests.get(name or "")))
        for name in names
    ]
    answers = await asyncio.gather(*map(collect, streams))
    for outputs in answers:
        assert [o.finish_reason for o in outputs] == [None] * 7 + ["length"]
        assert sum(len(o.token_ids) for o in outputs) == 8
        assert outputs[-1].usage.num_prompt_tokens == 3
        assert outputs[-1].usage.num_completion_tokens == 8
    assert len({outputs[-1].token_ids for outputs in answers}) > 1, "adapters were applied"
    stats = await client.stats(drain=True)
    assert stats.num_generation_tokens == 24
    assert len(stats.histograms["time_to_first_token"]) == 3
    assert (await client.stats(drain=True)).histograms["time_to_first_token"] == ()
    await until_ready(client)
    assert client.info.base_digest.startswith("sha256:")
    assert client.info.hf_config["vocab_size"] == 320


async def test_a_stream_comes_token_by_token_and_is_aborted(rig: Rig) -> None:
    run = Runner()
    client = await rig.start(run)
    stream = await client.generate(create_request("r", max_tokens=250))
    run.may_run.set()
    first = await anext(stream)
    assert first.finish_reason is None
    for name in ("r", "r", "never seen"):
        client.abort(name)
    rest = await collect(stream)
    assert rest[-1].finish_reason == "abort"
    assert rest[-1].usage.num_completion_tokens < 250
    stats = await until_stats(client, num_running=0)
    assert stats.num_blocks_free == stats.num_blocks_total


async def test_what_can_never_run_is_refused_at_the_call(rig: Rig) -> None:
    run = Runner()
    client = await rig.start(run)
    with pytest.raises(ValueError, match="maximum context length"):
        await client.generate(create_request("r", max_tokens=300))
    with pytest.raises(ValueError, match="outside the vocabulary"):
        await client.generate(create_request("r", prompt=(10**6,)))
    stream = await client.generate(create_request("r"))
    with pytest.raises(ValueError, match="already in use"):
        await client.generate(create_request("r"))
    run.may_run.set()
    assert len(await collect(stream)) == 8


async def test_a_full_queue_refuses_and_says_how_many_wait(rig: Rig) -> None:
    run = Runner()
    client = await rig.start(run, max_running=1, max_waiting=2)
    streams = [await client.generate(create_request("running"))]
    await asyncio.to_thread(run.is_held.wait, 20)
    streams += [await client.generate(create_request(name)) for name in ("first", "second")]
    with pytest.raises(EngineQueueFullError) as caught:
        await client.generate(create_request("third"))
    assert caught.value.num_waiting == 2
    run.may_run.set()
    for outputs in await asyncio.gather(*map(collect, streams)):
        assert outputs[-1].finish_reason == "length"
    assert len(await collect(await client.generate(create_request("third")))) == 8


async def test_a_drain_lets_what_runs_finish_and_admits_nothing(rig: Rig) -> None:
    run = Runner()
    client = await rig.start(run)
    stream = await client.generate(create_request("r"))
    await asyncio.to_thread(run.is_held.wait, 20)
    drained = asyncio.create_task(client.drain(20))
    await asyncio.sleep(0)
    with pytest.raises(EngineDrainingError):
        await client.generate(create_request("late"))
    assert client.not_ready_reason == "The engine is draining."
    run.may_run.set()
    assert (await collect(stream))[-1].finish_reason == "length"
    await drained


async def test_a_drain_aborts_what_is_not_over_in_time(rig: Rig) -> None:
    run = Runner()
    client = await rig.start(run)
    stream = await client.generate(create_request("r", max_tokens=250))
    await asyncio.to_thread(run.is_held.wait, 20)
    drained = asyncio.create_task(client.drain(0.0))
    await asyncio.sleep(0.05)
    run.may_run.set()
    assert (await collect(stream))[-1].finish_reason == "abort"
    await drained


async def test_a_fault_of_the_engine_ends_every_request_and_refuses_later_ones(
    rig: Rig,
) -> None:
    run = Runner()
    run.error = RuntimeError("boom")
    client = await rig.start(run)
    streams = [await client.generate(create_request(name)) for name in "ab"]
    thread_errors: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("threading.excepthook", thread_errors.append)
        run.may_run.set()
        for outputs in await asyncio.gather(*map(collect, streams)):
            assert [o.error_code for o in outputs] == ["engine_failed"]
            assert outputs[-1].is_last
        with pytest.raises(EngineDeadError):
            await client.generate(create_request("late"))
        async with asyncio.timeout(5):
            # the thread says why it failed before it ends, and its end is what the hook sees
            while "boom" not in client.not_ready_reason or not thread_errors:
                await asyncio.sleep(0.01)
    assert not client.is_ready


async def test_a_reader_that_leaves_holds_up_nobody(rig: Rig) -> None:
    client = await rig.start()
    left = await client.generate(create_request("left"))
    await anext(left)
    assert len(await collect(await client.generate(create_request("stays")))) == 8
    await until_stats(client, num_running=0)


async def test_a_caller_that_is_cancelled_while_it_asks_has_nothing_running(rig: Rig) -> None:
    run = Runner()
    client = await rig.start(run)
    first = await client.generate(create_request("first"))
    await asyncio.to_thread(run.is_held.wait, 20)

    async def ask() -> EngineOutput:
        return await anext(await client.generate(create_request("cancelled", max_tokens=250)))

    asking = asyncio.create_task(ask())
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    client.abort("cancelled")  # what a caller does that got further than to ask
    run.may_run.set()
    await collect(first)
    stats = await until_stats(client, num_running=0, num_waiting=0)
    assert stats.num_generation_tokens < 250


async def test_adapters_are_brought_pinned_unloaded_and_discarded(rig: Rig) -> None:
    client = await rig.start()
    digest, other = rig.digests["small"], rig.digests["wide"]
    await client.pin_adapters({digest, other})
    client.prefetch_adapter(digest)
    async with asyncio.timeout(20):
        while [p.level for p in await client.placements(digest)] != ["gpu"]:
            await asyncio.sleep(0.005)
    (placement,) = await client.placements(digest)
    assert placement.is_pinned
    assert placement.rank == 4
    assert digest in {p.adapter_digest for p in await client.placements()}
    await client.pin_adapters([other])
    assert not (await client.placements(digest))[0].is_pinned
    await client.unload_adapter(digest)
    async with asyncio.timeout(20):
        while (await client.placements(digest))[0].level == "gpu":
            await asyncio.sleep(0.005)
    await client.discard_adapter(digest)


async def test_a_grammar_is_prepared_or_refused(rig: Rig) -> None:
    client = await rig.start()
    await client.prepare_grammar(Grammar("regex", "[ab]+"))
    with pytest.raises(ValueError, match=r"."):
        await client.prepare_grammar(Grammar("json_schema", "{not json"))
