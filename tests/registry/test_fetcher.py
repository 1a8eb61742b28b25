"""The fetcher against a local https server that misbehaves on request."""

from __future__ import annotations

import hashlib
import ipaddress
import ssl
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from tests.internet import BODY, FILES, HUB, INSIDE, Handler, Internet

from weft.registry.addresses import HostRules
from weft.registry.fetcher import Fetcher, FetchLimits
from weft.registry.sources import SourceError


@pytest.fixture
async def fetcher(internet: Internet) -> AsyncIterator[Fetcher]:
    fetcher = internet.fetcher()
    yield fetcher
    await fetcher.close()


async def refused(fetcher: Fetcher, url: str, file: Path, max_bytes: int = 10**6) -> SourceError:
    with pytest.raises(SourceError) as caught:
        await fetcher.fetch(url, file, max_bytes)
    await fetcher.close()
    return caught.value


async def test_a_file_is_written_and_hashed(internet: Internet, fetcher: Fetcher) -> None:
    fetched = await fetcher.fetch(internet.url("ok"), internet.file, len(BODY))
    assert internet.file.read_bytes() == BODY
    assert (fetched.num_bytes, fetched.sha256) == (len(BODY), hashlib.sha256(BODY).hexdigest())
    assert fetched.headers["x-linked-etag"] == "abc"
    # nothing of the server goes along, and the name is the one that was asked for
    (seen,) = Handler.headers_seen
    assert set(seen) == {"host", "accept", "accept-encoding", "connection", "user-agent"}
    assert (seen["host"], seen["accept-encoding"]) == (f"{HUB}:{internet.port}", "identity")


async def test_a_redirect_is_followed_to_listed_hosts(internet: Internet, fetcher: Fetcher) -> None:
    path = f"to/{FILES}:{internet.port}/ok"
    await fetcher.fetch(internet.url(path), internet.file, 10**6)
    assert internet.file.read_bytes() == BODY
    assert [host.partition(":")[0] for host, _ in Handler.hits] == [HUB, FILES]
    assert internet.resolved == [HUB, FILES]


@pytest.mark.parametrize(
    "location",
    [
        "https://evil.example/ok",
        "https://127.0.0.1:{port}/ok",
        "https://[::ffff:127.0.0.1]:{port}/ok",
        "https://2130706433:{port}/ok",
        "https://localhost.:{port}/ok",
        "https://169.254.169.254/latest/meta-data",
        "http://hub.example:{port}/ok",
        "https://hub.example/ok",
        "https://hub.example:22/ok",
        "https://user:password@hub.example:{port}/ok",
        "https://hub.example@evil.example/ok",
        "file:///etc/passwd",
        "gopher://hub.example:{port}/",
        "//evil.example/ok",
        "https://hub.example:{port}\\@evil.example/ok",
    ],
)
async def test_neither_a_source_nor_a_redirect_leads_elsewhere(
    internet: Internet, fetcher: Fetcher, location: str
) -> None:
    location = location.format(port=internet.port)
    redirect = internet.url(f"location/{location.encode().hex()}")
    error = await refused(fetcher, redirect, internet.file)
    assert error.code == "source_not_allowed"
    assert internet.num_hits == 1
    if not location.startswith("//"):
        error = await refused(internet.fetcher(), location, internet.file)
        assert error.code == "source_not_allowed"
        assert internet.num_hits == 1
    assert not internet.file.exists()


async def test_a_name_of_the_inside_is_not_connected_to(internet: Internet) -> None:
    error = await refused(internet.fetcher(networks=()), internet.url("ok"), internet.file)
    assert error.code == "source_not_allowed"
    assert internet.num_hits == 0


async def test_a_name_is_resolved_once_for_the_check_and_the_connection(
    internet: Internet, fetcher: Fetcher
) -> None:
    # a rebinding name server gives a good address first, and a bad one to who asks again
    internet.names[HUB] = ["127.0.0.1", "10.0.0.1"]
    await fetcher.fetch(internet.url("ok"), internet.file, 10**6)
    assert internet.resolved == [HUB]
    assert internet.file.read_bytes() == BODY


async def test_each_hop_is_resolved_and_checked(internet: Internet, fetcher: Fetcher) -> None:
    internet.names[FILES] = ["10.0.0.1"]
    url = internet.url(f"to/{FILES}:{internet.port}/ok")
    assert (await refused(fetcher, url, internet.file)).code == "source_not_allowed"


async def test_the_certificate_must_be_of_the_name(internet: Internet) -> None:
    rules = HostRules(
        (f"{INSIDE}:{internet.port}",),
        (ipaddress.ip_network("127.0.0.1/32"),),
        internet.resolve,
    )
    context = ssl.create_default_context(cafile=str(internet.certificate))
    fetcher = Fetcher(rules, FetchLimits(num_attempts=1), context)
    error = await refused(fetcher, internet.url("ok", INSIDE), internet.file)
    assert error.code == "source_unavailable"
    assert internet.num_hits == 0


async def test_another_attempt_goes_to_another_address(internet: Internet) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.2", "127.0.0.1"]

    networks = (ipaddress.ip_network("127.0.0.0/8"),)
    rules = HostRules((f"{HUB}:{internet.port}",), networks, resolve)
    context = ssl.create_default_context(cafile=str(internet.certificate))
    fetcher = Fetcher(rules, FetchLimits(num_attempts=2, backoff_s=0.001), context)
    await fetcher.fetch(internet.url("ok"), internet.file, 10**6)
    assert internet.file.read_bytes() == BODY
    await fetcher.close()


async def test_redirects_come_to_an_end(internet: Internet, fetcher: Fetcher) -> None:
    error = await refused(fetcher, internet.url("round"), internet.file)
    assert error.code == "source_not_allowed"
    assert internet.num_hits == 6


@pytest.mark.parametrize("path", ["ok", "endless"])
async def test_a_file_over_the_cap_is_not_read_to_its_end(
    internet: Internet, fetcher: Fetcher, path: str
) -> None:
    error = await refused(fetcher, internet.url(path), internet.file, len(BODY) - 1)
    assert error.code == "source_too_large"
    assert not internet.file.exists() or internet.file.stat().st_size < len(BODY)
    assert internet.num_hits == 1


@pytest.mark.parametrize("what", ["status/500", "status/503", "status/429", "truncated", "reset"])
async def test_what_may_pass_is_tried_again(
    internet: Internet, fetcher: Fetcher, what: str
) -> None:
    fetched = await fetcher.fetch(internet.url(f"once/{what}"), internet.file, 10**6)
    assert internet.file.read_bytes() == BODY
    assert fetched.sha256 == hashlib.sha256(BODY).hexdigest()
    assert internet.num_hits == 2


@pytest.mark.parametrize("what", ["status/500", "truncated", "reset", "until-close"])
async def test_what_does_not_pass_is_unavailable(
    internet: Internet, fetcher: Fetcher, what: str
) -> None:
    error = await refused(fetcher, internet.url(what), internet.file)
    assert error.code == "source_unavailable"
    assert "secrets" not in error.message
    assert internet.num_hits == 3


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("status/404", "source_not_found"),
        ("status/401", "source_not_found"),
        ("status/403", "source_not_found"),
        ("status/418", "source_unavailable"),
        ("status/206", "source_unavailable"),
        ("gzip", "source_not_allowed"),
    ],
)
async def test_what_will_not_pass_is_asked_once(
    internet: Internet, fetcher: Fetcher, what: str, code: str
) -> None:
    error = await refused(fetcher, internet.url(what), internet.file)
    assert (error.code, internet.num_hits) == (code, 1)


@pytest.mark.parametrize("limit", ["stall_s", "timeout_s"])
async def test_a_source_that_stalls_is_given_up(internet: Internet, limit: str) -> None:
    limits = {"num_attempts": 1, limit: 0.1}
    fetcher = internet.fetcher(("127.0.0.1/32",), **limits)
    error = await refused(fetcher, internet.url("stall"), internet.file)
    assert error.code == "source_unavailable"
