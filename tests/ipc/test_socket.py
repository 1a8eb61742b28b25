"""The socket itself: who may connect, what ends a connection, and what follows from its end."""

from __future__ import annotations

import asyncio
import dataclasses
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from tests.engine.started import collect, create_request
from tests.gateway.echo import EchoEngine

from weft.ipc import link as link_module
from weft.ipc.client import AWAY, RemoteEngine
from weft.ipc.frames import MAX_FRAME_BYTES
from weft.ipc.link import EngineMismatchError
from weft.ipc.protocol import PROTOCOL, Hello
from weft.ipc.server import engine_socket
from weft.messages import EngineDeadError, EngineRequest, SamplingParams


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "engine.sock"


@pytest_asyncio.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def connect(stack: AsyncExitStack, path: Path) -> RemoteEngine:
    client = await RemoteEngine.connect(path, timeout_s=10)
    stack.push_async_callback(client.close)
    return client


def endless(name: str) -> EngineRequest:
    sampling = SamplingParams(10_000, ignore_eos=True)
    return EngineRequest(name, "tenant", tuple(b"abc"), sampling)


async def test_only_this_user_may_connect(path: Path) -> None:
    async with engine_socket(EchoEngine(), path):
        mode = path.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
    assert not path.exists()


async def test_a_worker_that_dies_has_its_requests_aborted_and_no_others(
    path: Path, stack: AsyncExitStack
) -> None:
    engine = EchoEngine()
    engine.delay_s = 0.005
    await stack.enter_async_context(engine_socket(engine, path))
    dying, other = await connect(stack, path), await connect(stack, path)
    stream = await dying.generate(endless("dying"))
    stays = await other.generate(endless("stays"))
    await anext(stream)
    assert dying._link is not None
    dying._link.writer._writer.transport.abort()
    async with asyncio.timeout(5):
        while engine.aborted != ["dying"]:
            await asyncio.sleep(0.005)
    assert (await anext(stays)).finish_reason is None
    assert (await collect(stream))[-1].error_code == "engine_failed"


async def test_a_worker_cannot_abort_anothers_request(path: Path, stack: AsyncExitStack) -> None:
    engine = EchoEngine()
    engine.delay_s = 0.005
    await stack.enter_async_context(engine_socket(engine, path))
    one, other = await connect(stack, path), await connect(stack, path)
    stream = await one.generate(endless("r"))
    other.abort("r")
    await other.stats()  # answered after the abort was taken
    assert engine.aborted == []
    one.abort("r")
    assert (await collect(stream))[-1].finish_reason == "abort"


async def test_an_engine_that_goes_is_waited_for(path: Path, stack: AsyncExitStack) -> None:
    first, second = EchoEngine(), EchoEngine()
    first.delay_s = 0.005
    async with engine_socket(first, path):
        client = await connect(stack, path)
        await client.pin_adapters(["sha256:a"])
        stream = await client.generate(endless("r"))
        told = await anext(stream)
    outputs = await collect(stream)
    last = outputs[-1]
    assert (last.finish_reason, last.error_code) == ("error", "engine_failed")
    assert last.usage.num_completion_tokens >= told.usage.num_completion_tokens > 0
    assert client.not_ready_reason == AWAY
    with pytest.raises(EngineDeadError):
        await client.generate(create_request("late"))
    with pytest.raises(EngineDeadError):
        await client.stats()
    await stack.enter_async_context(engine_socket(second, path))
    async with asyncio.timeout(10):
        while not client.is_ready or second.pinned != {"sha256:a"}:
            await asyncio.sleep(0.01)
    answer = await client.generate(create_request("again", prompt=tuple(b"hi"), max_tokens=2))
    assert "".join(o.text for o in await collect(answer)) == "hi"


async def test_an_engine_with_another_base_is_not_taken_for_the_same(
    path: Path, stack: AsyncExitStack
) -> None:
    other = EchoEngine()
    other.info = dataclasses.replace(other.info, base_digest="sha256:other")
    async with engine_socket(EchoEngine(), path):
        client = await connect(stack, path)
    await stack.enter_async_context(engine_socket(other, path))
    async with asyncio.timeout(10):
        while "another base" not in client.not_ready_reason:
            await asyncio.sleep(0.01)
    with pytest.raises(EngineDeadError, match="another base"):
        await client.generate(create_request("r"))


async def test_another_release_is_refused_by_both_sides(
    path: Path, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stack.enter_async_context(engine_socket(EchoEngine(), path))
    monkeypatch.setattr(link_module, "PROTOCOL", "another")
    with pytest.raises(EngineMismatchError, match="another release"):
        await RemoteEngine.connect(path, timeout_s=5)


def test_the_protocol_is_named_by_the_messages_form() -> None:
    assert len(PROTOCOL) == 64
    assert Hello(PROTOCOL) == Hello(PROTOCOL)


@pytest.mark.parametrize(
    "sent",
    [
        b"\xff\xff\xff\xff",
        (MAX_FRAME_BYTES + 1).to_bytes(4, "big"),
        (3).to_bytes(4, "big") + b"\xc1\xc1\xc1",
        (2).to_bytes(4, "big") + b"\x80\x04",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
async def test_what_is_no_message_ends_the_connection(
    path: Path, stack: AsyncExitStack, sent: bytes
) -> None:
    engine = EchoEngine()
    await stack.enter_async_context(engine_socket(engine, path))
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(sent)
    writer.write_eof()
    async with asyncio.timeout(5):
        while await reader.read(1024):
            pass
    writer.close()
    client = await connect(stack, path)
    assert len(await collect(await client.generate(create_request("r", max_tokens=1)))) == 1


async def test_a_request_that_is_too_long_is_refused_and_the_rest_goes_on(
    path: Path, stack: AsyncExitStack
) -> None:
    await stack.enter_async_context(engine_socket(EchoEngine(), path))
    client = await connect(stack, path)
    long = dataclasses.replace(create_request("long"), cache_salt="x" * MAX_FRAME_BYTES)
    with pytest.raises(ValueError, match="too long"):
        await client.generate(long)
    assert len(await collect(await client.generate(create_request("r", max_tokens=1)))) == 1


async def test_a_worker_that_reads_nothing_is_cut_off_and_holds_up_nobody(
    path: Path, stack: AsyncExitStack
) -> None:
    engine = EchoEngine()
    await stack.enter_async_context(engine_socket(engine, path, stall_timeout_s=0.2))
    stuck, other = await connect(stack, path), await connect(stack, path)
    assert stuck._link is not None
    transport = stuck._link.writer._writer.transport
    assert isinstance(transport, asyncio.Transport)
    sampling = SamplingParams(10_000, ignore_eos=True, logprobs=20)
    request = EngineRequest("stuck", "tenant", tuple(b"abc"), sampling)
    await stuck.generate(request)
    transport.pause_reading()
    async with asyncio.timeout(20):
        while "stuck" not in engine.aborted:
            await asyncio.sleep(0.01)
    assert len(await collect(await other.generate(create_request("r", max_tokens=1)))) == 1


async def test_nobody_there_is_said_in_time(path: Path) -> None:
    with pytest.raises(TimeoutError):
        await RemoteEngine.connect(path, timeout_s=0.1)
