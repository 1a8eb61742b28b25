"""Passwords: which may be chosen, and what is kept of them."""

from __future__ import annotations

import asyncio

import pytest
from pwdlib.hashers.argon2 import Argon2Hasher

from weft.errors import InvalidRequestError, OverloadedError
from weft.tenancy.passwords import (
    MAX_PASSWORD_CHARS,
    PasswordHasher,
    check_new_password,
    count_unpredictable_chars,
)

ABOUT = ("ada.lovelace@acme.example", "Ada King Lovelace")
GOOD = "correct horse battery staple"


@pytest.fixture
def hasher() -> PasswordHasher:
    return PasswordHasher(Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1))


@pytest.mark.parametrize(
    "password",
    [
        GOOD,
        "tr0ub4dor&3 kiwi",
        "Zp9vWq2xLm4t",
        "ein Satz, den nur ich kenne",
        "ключ от моря и неба",
    ],
)
def test_long_unrelated_passwords_may_be_chosen(password: str) -> None:
    check_new_password(password, ABOUT)


@pytest.mark.parametrize(
    "password",
    [
        "Zp9vWq2xLm4",  # 11 characters
        "x" * (MAX_PASSWORD_CHARS + 1),
        "aaaaaaaaaaaaaaaa",
        "abababababababab",
        "password1234",
        "P@ssw0rd2026!!",
        "qwertyuiop[]123",
        "abcdefghijklmnop",
        "123456789012345",
        "Ada.Lovelace2026",
        "lovelace-acme-ada",
        "changeme changeme",
        "weft admin 2026",
    ],
)
def test_what_others_would_try_first_is_refused(password: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check_new_password(password, ABOUT)
    assert caught.value.param == "password"
    assert password not in caught.value.message


def test_words_runs_and_repetitions_count_for_nothing() -> None:
    assert count_unpredictable_chars("") == 0
    assert count_unpredictable_chars("password") == 0
    assert count_unpredictable_chars("zqz9") == 4
    assert count_unpredictable_chars("zqz9", ("zqz9@x.example",)) == 0
    assert count_unpredictable_chars("k3k3k3k3") == 2


def test_judging_a_password_takes_no_time_to_speak_of() -> None:
    for password in ("ab" * 128, "a" * 256, "abcdef" * 42, "pass" * 64):
        count_unpredictable_chars(password, ABOUT)


async def test_a_hash_is_salted_and_verifies_its_password_only(hasher: PasswordHasher) -> None:
    first, second = await hasher.hash(GOOD), await hasher.hash(GOOD)
    assert first != second
    assert first.startswith("$argon2id$")
    assert GOOD not in first
    assert (await hasher.verify(GOOD, first)).is_right
    assert not (await hasher.verify(GOOD + " ", first)).is_right


async def test_the_same_password_from_another_keyboard_is_right(hasher: PasswordHasher) -> None:
    stored = await hasher.hash("caf\u00e9 im gr\u00fcnen Tal")
    assert (await hasher.verify("cafe\u0301 im gru\u0308nen Tal", stored)).is_right


async def test_nobodys_password_is_never_right(hasher: PasswordHasher) -> None:
    for password in ("", GOOD, "x" * 10_000):
        verified = await hasher.verify(password, None)
        assert not verified.is_right
        assert verified.new_hash is None


async def test_who_has_no_account_costs_as_much_work_as_who_has() -> None:
    num_verified = 0

    class Counting(Argon2Hasher):
        def verify(self, password: str | bytes, hash: str | bytes) -> bool:  # noqa: A002
            nonlocal num_verified
            num_verified += 1
            return super().verify(password, hash)

    hasher = PasswordHasher(Counting(time_cost=1, memory_cost=8, parallelism=1))
    stored = await hasher.hash(GOOD)
    for known in (stored, None):
        num_verified = 0
        await hasher.verify("wrong horse battery", known)
        assert num_verified == 1


async def test_a_hash_of_lower_cost_is_renewed(hasher: PasswordHasher) -> None:
    cheap = PasswordHasher(Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1))
    costly = PasswordHasher(Argon2Hasher(time_cost=2, memory_cost=16, parallelism=1))
    stored = await cheap.hash(GOOD)
    verified = await costly.verify(GOOD, stored)
    assert verified.is_right
    assert verified.new_hash is not None
    again = await costly.verify(GOOD, verified.new_hash)
    assert again.is_right
    assert again.new_hash is None


async def test_the_recommended_cost_is_the_default() -> None:
    assert (await PasswordHasher().hash(GOOD)).startswith("$argon2id$v=19$m=65536,t=3,p=4$")


async def test_more_than_may_wait_are_turned_away_and_the_rest_served() -> None:
    hasher = PasswordHasher(
        Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1), num_at_once=1, max_waiting=2
    )
    results = await asyncio.gather(*(hasher.hash(GOOD) for _ in range(10)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, OverloadedError)]
    assert len(refused) == 7
    assert (await hasher.hash(GOOD)).startswith("$argon2id$")
