"""How long failures make the next attempt wait, and whose they are."""

from __future__ import annotations

from weft.tenancy.lockout import ACCOUNT, ADDRESS, LockoutPolicy, account_key, address_key

SECRET = b"s" * 32
POLICY = LockoutPolicy(num_free=3, first_wait_s=2, max_wait_s=60, forget_s=600)


def test_the_first_failures_are_free_and_each_later_one_doubles_the_wait() -> None:
    waits = [POLICY.wait_s(n) for n in range(1, 11)]
    assert waits == [0, 0, 2, 4, 8, 16, 32, 60, 60, 60]


def test_any_number_of_failures_waits_no_longer_than_the_most() -> None:
    assert POLICY.wait_s(10**9) == POLICY.max_wait_s


def test_a_day_of_guessing_is_a_few_hundred_guesses() -> None:
    for policy, most in ((ACCOUNT, 120), (ADDRESS, 150)):
        time_s = num_guesses = 0
        while time_s < 86_400:
            num_guesses += 1
            time_s += policy.wait_s(num_guesses)
        assert num_guesses < most


def test_an_address_is_one_however_it_is_written() -> None:
    assert address_key("::ffff:192.0.2.7", SECRET) == address_key("192.0.2.7", SECRET)
    assert address_key("2001:db8::1", SECRET) == address_key("2001:db8:0:0:ffff::2", SECRET)
    assert address_key("2001:db8::1", SECRET) != address_key("2001:db8:0:1::1", SECRET)
    assert address_key("192.0.2.7", SECRET) != address_key("192.0.2.8", SECRET)
    assert address_key("testclient", SECRET) != address_key("", SECRET)


def test_keys_tell_nothing_of_what_they_are_of() -> None:
    assert "ada" not in account_key("ada@acme.example", SECRET)
    assert account_key("192.0.2.7", SECRET) != address_key("192.0.2.7", SECRET)
    assert account_key("a@b.example", SECRET) != account_key("a@b.example", b"t" * 32)
