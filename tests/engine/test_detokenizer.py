"""Text as tokens come: whole characters, and stop strings wherever token borders lie."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.engine.detokenizer import Detokenizer


class Bytes:
    """Tokens that are byte strings; a byte-level tokenizer decodes like this."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.tokens = tokens

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.tokens[i] for i in ids).decode("utf-8", "replace")


def deltas(tokens: Sequence[bytes], stop: Sequence[str] = ()) -> list[str]:
    """What is given out after each token, and at the end; nothing more once it has stopped."""
    text = Detokenizer(Bytes(tokens).decode, stop)
    given = []
    for i in range(len(tokens)):
        text.add(i)
        given.append(text.give(final=text.stopped))
        if text.stopped:
            return given
    text.finish()
    return [*given, text.give(final=True)]


def expected(tokens: Sequence[bytes], stop: Sequence[str]) -> str:
    """The text up to the stop string that is complete first."""
    for num in range(len(tokens) + 1):
        text = b"".join(tokens[:num]).decode("utf-8", "replace")
        starts = [text.find(s) for s in stop if s in text]
        if starts:
            return text[: min(starts)]
    return b"".join(tokens).decode("utf-8", "replace")


def test_a_character_is_given_out_when_its_last_byte_has_come() -> None:
    assert deltas([b"a", b"\xe2", b"\x82", b"\xac", b"b"]) == ["a", "", "", "€", "b", ""]
    assert deltas([b"\xf0\x9f", b"\x98\x80!"]) == ["", "😀!", ""]


def test_what_stays_broken_is_given_out_at_the_end() -> None:
    assert deltas([b"a", b"\xe2", b"\x82"]) == ["a", "", "", "\ufffd"]


def test_broken_text_is_given_out_once_nothing_can_mend_it() -> None:
    assert deltas([b"\x80"] * 5) == ["", "", "", "\ufffd", "\ufffd", "\ufffd" * 3]
    assert deltas([b"\xe2\x82", b"a"]) == ["", "\ufffda", ""]


def test_a_character_after_a_long_broken_run_is_whole() -> None:
    assert "".join(deltas([*[b"\x80"] * 6, b"\xe2", b"\x82", b"\xac"])) == "\ufffd" * 6 + "€"


def test_a_long_broken_run_is_not_decoded_anew_for_ever() -> None:
    longest = 0
    tokens = Bytes([b"\x80"] * 2000)

    def decode(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return tokens.decode(ids)

    text = Detokenizer(decode, ())
    for i in range(2000):
        text.add(i)
    text.finish()
    assert text.give(final=True) == "\ufffd" * 2000
    assert longest < 300


def test_a_stop_string_inside_a_token_cuts_it() -> None:
    assert deltas([b"Hello, ", b"world.\n\nMore"], ["\n\n"]) == ["Hello, ", "world."]


def test_a_stop_string_across_tokens_is_never_given_out() -> None:
    assert deltas([b"a", b"b<", b"/s", b">c"], ["</s>"]) == ["a", "b", "", ""]


def test_the_beginning_of_a_stop_string_is_given_out_when_it_is_none() -> None:
    assert deltas([b"b<", b"/s", b"x"], ["</s>"]) == ["b", "", "</sx", ""]
    assert deltas([b"aab", b"aa", b"c"], ["aabaac"]) == ["", "", ""]
    assert deltas([b"aab", b"aab", b"aac"], ["aabaac"]) == ["", "aab", ""]


def test_the_beginning_of_a_stop_string_at_the_end_is_text() -> None:
    assert deltas([b"so ", b"</s"], ["</s>"]) == ["so ", "", "</s"]


def test_the_first_of_several_stop_strings_cuts() -> None:
    assert "".join(deltas([b"one two three"], ["three", "two"])) == "one "
    assert "".join(deltas([b"one", b" two", b" three"], ["three", "e t"])) == "on"


def test_a_stop_string_may_be_of_many_bytes() -> None:
    assert deltas([b"a", b"\xe2", b"\x82", b"\xac", b"b"], ["€"]) == ["a", "", "", ""]


def test_a_stop_string_that_only_the_end_completes_stops() -> None:
    text = Detokenizer(Bytes([b"a", b"\xe2"]).decode, ["\ufffd"])
    text.add(0)
    text.add(1)
    assert not text.stopped
    text.finish()
    assert text.stopped
    assert text.give(final=True) == "a"


def test_tokens_without_text_change_nothing() -> None:
    assert deltas([b"", b"a", b"", b"", b"b"]) == ["", "a", "", "", "b", ""]


@given(st.lists(st.binary(max_size=3), max_size=40))
def test_any_bytes_are_given_out_as_if_decoded_at_once(tokens: list[bytes]) -> None:
    assert "".join(deltas(tokens)) == expected(tokens, ())


@given(
    st.text("ab€😀\n", max_size=60),
    st.lists(st.integers(1, 5), min_size=1, max_size=8),
    st.lists(st.text("ab€\n", min_size=1, max_size=4), max_size=3),
)
def test_any_split_and_stops_give_the_text_up_to_the_first_stop(
    text: str, sizes: list[int], stop: list[str]
) -> None:
    data = text.encode()
    tokens: list[bytes] = []
    while data:
        size = sizes[len(tokens) % len(sizes)]
        tokens.append(data[:size])
        data = data[size:]
    assert "".join(deltas(tokens, stop)) == expected(tokens, stop)


@pytest.mark.parametrize("stop", [(), ("zz",)])
def test_giving_twice_gives_nothing_twice(stop: tuple[str, ...]) -> None:
    text = Detokenizer(Bytes([b"abc"]).decode, stop)
    text.add(0)
    assert text.give(final=False) == "abc"
    assert text.give(final=False) == ""
    assert text.give(final=True) == ""


def test_stop_strings_count_from_the_least_length_on() -> None:
    text = Detokenizer(lambda ids: bytes(ids).decode(), ["ab"], min_tokens=3)
    for token in b"abxa":
        text.add(token)
    assert not text.stopped
    assert text.give(final=False) == "abx"
    text.add(ord("b"))
    assert text.stopped
    assert text.give(final=True) == ""


def test_a_stop_string_may_begin_before_the_least_length() -> None:
    text = Detokenizer(lambda ids: bytes(ids).decode(), ["abc"], min_tokens=2)
    for token in b"abc":
        text.add(token)
    assert text.stopped
    assert text.give(final=True) == ""
