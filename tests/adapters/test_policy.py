"""Eviction policies: who goes, and that nobody goes in vain."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft_adapters.policy import POLICIES, Pins, Resident, choose_victims, create_policy


def resident(
    digest: str, num_bytes: int = 100, last_used_s: float = 0.0, reload_s: float = 1.0
) -> Resident:
    return Resident(digest, num_bytes, last_used_s, reload_s)


def digests(victims: list[Resident]) -> list[str]:
    return [victim.digest for victim in victims]


def test_lru_lets_the_least_recently_used_go() -> None:
    policy = create_policy("lru")
    residents = [resident("new", last_used_s=9.0), resident("old", last_used_s=1.0)]
    assert digests(choose_victims(policy.rank(residents, 10.0), 100)) == ["old"]


def test_lfu_lets_the_least_often_requested_go_and_the_older_of_equals() -> None:
    policy = create_policy("lfu")
    for digest in ("often", "often", "once", "once more"):
        policy.record(digest, 0.0)
    residents = [
        resident("once", last_used_s=5.0),
        resident("often", last_used_s=1.0),
        resident("once more", last_used_s=4.0),
    ]
    assert digests(choose_victims(policy.rank(residents, 10.0), 200)) == ["once more", "once"]


@pytest.mark.parametrize(
    ("kept", "evicted"),
    [
        (resident("popular"), resident("rare")),
        (resident("rare", reload_s=9.0), resident("rare too", reload_s=1.0)),
        (resident("rare", num_bytes=10), resident("rare too", num_bytes=100)),
    ],
    ids=["more requests", "longer to bring again", "fewer bytes"],
)
def test_cost_keeps_what_is_worth_more_per_byte(kept: Resident, evicted: Resident) -> None:
    policy = create_policy("cost")
    for digest, count in {"popular": 5, "rare": 1, "rare too": 1}.items():
        for _ in range(count):
            policy.record(digest, 0.0)
    assert choose_victims(policy.rank([kept, evicted], 1.0), 1) == [evicted]


def test_cost_is_not_fooled_by_a_sweep_over_all_adapters() -> None:
    policy = create_policy("cost")
    for i in range(20):
        policy.record("regular", 10.0 * i)
    for i in range(20):
        policy.record(f"scan-{i}", 200.0 + i)
    residents = [resident("regular", last_used_s=190.0)]
    residents += [resident(f"scan-{i}", last_used_s=200.0 + i) for i in range(20)]
    now = 225.0
    assert "regular" not in digests(choose_victims(policy.rank(residents, now), 2000))
    lru = create_policy("lru")
    assert digests(choose_victims(lru.rank(residents, now), 100)) == ["regular"]


def test_a_large_one_makes_small_ones_before_it_needless() -> None:
    policy = create_policy("lru")
    residents = [
        resident("small", 10, last_used_s=1.0),
        resident("large", 1000, last_used_s=2.0),
        resident("last", 1000, last_used_s=3.0),
    ]
    assert digests(choose_victims(policy.rank(residents, 10.0), 1000)) == ["large"]
    assert digests(choose_victims(policy.rank(residents, 10.0), 1005)) == ["small", "large"]


@given(
    policy_name=st.sampled_from(POLICIES),
    sizes=st.lists(st.integers(1, 50), max_size=12),
    requests=st.lists(st.integers(0, 11), max_size=30),
    num_bytes=st.integers(0, 400),
)
def test_victims_suffice_and_each_is_needed(
    policy_name: str, sizes: list[int], requests: list[int], num_bytes: int
) -> None:
    policy = create_policy(policy_name)
    for now, i in enumerate(requests):
        policy.record(str(i), float(now))
    residents = [resident(str(i), size, last_used_s=i % 3) for i, size in enumerate(sizes)]
    victims = choose_victims(policy.rank(residents, 40.0), num_bytes)
    if num_bytes == 0 or num_bytes > sum(sizes):
        assert victims == []
        return
    freed = sum(victim.num_bytes for victim in victims)
    assert freed >= num_bytes
    assert all(freed - victim.num_bytes < num_bytes for victim in victims)
    assert len(set(digests(victims))) == len(victims)


def test_an_unknown_policy_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="cost, lru, lfu, not 'fifo'"):
        create_policy("fifo")


def test_what_is_pinned_stays() -> None:
    pins, residents = Pins(), [resident("a"), resident("b"), resident("c")]
    pins.set("b", True)
    assert digests(pins.free_to_go(residents, 300)) == ["a", "c"]
    pins.set("b", False)
    assert pins.free_to_go(residents, 300) == residents


def test_pins_hold_half_of_a_tier_at_most() -> None:
    pins, residents = Pins(), [resident("a"), resident("b"), resident("c")]
    for digest in ("c", "b", "a"):
        pins.set(digest, True)
    assert digests(pins.free_to_go(residents, 399)) == ["a", "b"]
    assert digests(pins.free_to_go(residents, 400)) == ["a"]
    assert "a" in pins
