"""People's passwords: what a new one must be, and its Argon2id hash. Knows no accounts.

The rules follow NIST SP 800-63B: length counts, kinds of characters do not, and what others would
try first is refused.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import unicodedata
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher

from weft.errors import InvalidRequestError, OverloadedError

ResultT = TypeVar("ResultT")
MIN_PASSWORD_CHARS = 12
# hashing reads all of it: an upper bound, far above what anyone types
MAX_PASSWORD_CHARS = 256
# that many characters must be left when words and runs that anybody would try are taken away
_MIN_UNPREDICTABLE_CHARS = 8
_COMMON_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        password passwort passwd passphrase secret geheim letmein welcome willkommen qwerty qwertz
        azerty asdf zxcv iloveyou dragon monkey football baseball sunshine princess master shadow
        superman batman trustno admin administrator root user guest login changeme default test
        weft lora adapter company firma summer winter spring autumn sommer herbst
        january february march april june july august september october november december
        monday tuesday wednesday thursday friday saturday sunday
        """,
    )
)
_LEET = str.maketrans("@4301!5$7", "aaeoiisst")
_ROWS = ("qwertyuiop", "qwertzuiop", "azertyuiop", "asdfghjkl", "zxcvbnm", "yxcvbnm")


def normalise_password(password: str) -> str:
    """NFKC: the same password from any keyboard and system."""
    return unicodedata.normalize("NFKC", password)


def check_new_password(password: str, about: Iterable[str] = ()) -> None:
    """InvalidRequestError unless the password may be chosen by somebody of whom `about` is known:
    e-mail address and name."""
    password = normalise_password(password)
    if not MIN_PASSWORD_CHARS <= len(password) <= MAX_PASSWORD_CHARS:
        raise InvalidRequestError(
            f"A password has {MIN_PASSWORD_CHARS} to {MAX_PASSWORD_CHARS} characters.",
            param="password",
        )
    if count_unpredictable_chars(password, about) < _MIN_UNPREDICTABLE_CHARS:
        raise InvalidRequestError(
            "This password is too easy to guess: names, common words, dates, repetitions and runs "
            "such as 'abcd' count for nothing. Several unrelated words make a good one.",
            param="password",
        )


def count_unpredictable_chars(password: str, about: Iterable[str] = ()) -> int:
    """Characters that are left of `password` without known words, years, repetitions and runs."""
    rest = password.casefold()
    own = [part for text in about for part in re.split(r"[^\w]+", text.casefold())]
    words = sorted({word for word in (*own, *_COMMON_WORDS) if len(word) >= 4}, key=len)
    for word in reversed(words):
        rest = _without(rest, word)
    rest = re.sub(r"(?:19|20)\d\d", "", rest)
    rest = re.sub(r"(.{1,6}?)\1+", r"\1", rest)  # "ababab" says no more than "ab"
    return len(rest) - _num_in_runs(rest)


def _without(text: str, word: str) -> str:
    """`text` less each `word`, also where digits and signs stand for letters."""
    plain = text.translate(_LEET)  # character by character: places are the same in both
    kept, i = "", 0
    while i < len(text):
        if text.startswith(word, i) or plain.startswith(word, i):
            i += len(word)
        else:
            kept += text[i]
            i += 1
    return kept


def _num_in_runs(text: str) -> int:
    """Characters that continue a run of three or more: "abc", "4321", or keys side by side."""
    steps = [_step(a, b) for a, b in zip(text, text[1:], strict=False)]
    return sum(1 for i in range(1, len(steps)) if steps[i] is not None and steps[i] == steps[i - 1])


def _step(a: str, b: str) -> tuple[str, int] | None:
    """How `b` follows `a`: in the alphabet or on a row of keys, forwards or backwards."""
    if abs(ord(a) - ord(b)) == 1:
        return "code", ord(b) - ord(a)
    for row in _ROWS:
        if a in row and b in row and abs(row.index(a) - row.index(b)) == 1:
            return "row", row.index(b) - row.index(a)
    return None


@dataclass(frozen=True, slots=True)
class Verified:
    """`new_hash` is to be stored where the cost of hashes has risen since."""

    is_right: bool
    new_hash: str | None = None


class PasswordHasher:
    """Argon2id in threads of its own: one hash takes 64 MiB and tens of milliseconds, so there are
    few at a time and few that wait."""

    def __init__(
        self, hasher: Argon2Hasher | None = None, *, num_at_once: int = 2, max_waiting: int = 64
    ) -> None:
        self._hash = PasswordHash((hasher or Argon2Hasher(),))
        self._threads = ThreadPoolExecutor(num_at_once, thread_name_prefix="weft-password")
        self._max_pending = num_at_once + max_waiting
        self._num_pending = 0
        self._nobodys: str | None = None

    async def hash(self, password: str) -> str:
        """What to store of a password; OverloadedError where too many wait already."""
        return await self._run(lambda: self._hash.hash(normalise_password(password)))

    async def verify(self, password: str, stored: str | None) -> Verified:
        """Whether `stored` is of this password. None, for an account that does not exist or has
        no password, takes the same work and is never right."""
        return await self._run(lambda: self._verify(normalise_password(password), stored))

    def _verify(self, password: str, stored: str | None) -> Verified:
        if self._nobodys is None:  # in whichever call is the first, not only for nobody's
            self._nobodys = self._hash.hash(secrets.token_urlsafe(32))
        if len(password) > MAX_PASSWORD_CHARS:
            password, stored = "", None
        is_right, new_hash = self._hash.verify_and_update(password, stored or self._nobodys)
        return Verified(is_right and stored is not None, new_hash if stored is not None else None)

    async def _run(self, work: Callable[[], ResultT]) -> ResultT:
        if self._num_pending >= self._max_pending:
            raise OverloadedError("Too many people are signing in at once; try again.")
        self._num_pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._num_pending -= 1
