"""Which hosts and addresses may be connected to."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import pytest

from weft.registry.addresses import HostRules, is_public
from weft.registry.sources import SourceError

PUBLIC = "93.184.215.14"


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1",
        "127.8.9.10",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:93.184.215.14",
        "::7f00:1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::7f00:1",
        "2002:7f00:1::",
        "2001:0:7f00:1::",
        "2001:db8::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "ff02::1",
        "100::1",
    ],
)
def test_an_address_that_is_not_of_the_public_internet_is_refused(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", [PUBLIC, "8.8.8.8", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"])
def test_an_address_of_the_public_internet_is_allowed(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    ("host", "port", "allowed"),
    [
        ("hub.example", 443, True),
        ("HUB.Example", 443, True),
        ("a.files.example", 443, True),
        ("a.b.files.example", 443, True),
        ("other.example", 8443, True),
        ("files.example", 443, False),
        ("xfiles.example", 443, False),
        ("hub.example", 8443, False),
        ("other.example", 443, False),
        ("hub.example.", 443, False),
        ("hub.example.evil.example", 443, False),
        ("localhost", 443, False),
        ("localhost.", 443, False),
        ("127.0.0.1", 443, False),
        ("2130706433", 443, False),
        ("0177.0.0.1", 443, False),
        ("0", 443, False),
        ("::1", 443, False),
        ("", 443, False),
    ],
)
def test_only_listed_names_are_allowed(host: str, port: int, allowed: bool) -> None:
    rules = HostRules(("hub.example", "*.files.example", "other.example:8443"))
    assert rules.allows(host, port) is allowed


def rules_for(*answers: str, networks: tuple[str, ...] = ()) -> HostRules:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return answers

    allowed = tuple(ipaddress.ip_network(network) for network in networks)
    return HostRules(("hub.example",), allowed, resolve)


async def test_a_name_must_have_public_addresses_only() -> None:
    assert await rules_for(PUBLIC).addresses("hub.example", 443) == [PUBLIC]
    for answers in (("127.0.0.1",), (PUBLIC, "10.0.0.1"), ("fe80::1%eth0",), ()):
        with pytest.raises(SourceError) as caught:
            await rules_for(*answers).addresses("hub.example", 443)
        assert caught.value.code == "source_not_allowed"
        # what a name of the inside resolves to is not told
        assert not any(answer in caught.value.message for answer in answers)


async def test_networks_of_the_operator_are_allowed_beside() -> None:
    rules = rules_for("10.1.2.3", networks=("10.1.0.0/16",))
    assert await rules.addresses("hub.example", 443) == ["10.1.2.3"]
    with pytest.raises(SourceError):
        await rules_for("10.2.2.3", networks=("10.1.0.0/16",)).addresses("hub.example", 443)


async def test_a_name_that_does_not_resolve_is_unavailable() -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        raise OSError(-2, "Name or service not known")

    with pytest.raises(SourceError) as caught:
        await HostRules(("hub.example",), (), resolve).addresses("hub.example", 443)
    assert caught.value.code == "source_unavailable"
