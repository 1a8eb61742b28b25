r"""The grammar of a tenant's expressions: from text to the states of an automaton.

The language: letters, digits, `_`, `-`, `.`, `\.`, `\d`, `\w`, `\s`, `[...]`, `(...)`, `(?:...)`,
`|`, `*`, `+`, `?` and `{m}`, `{m,}`, `{m,n}` up to 64, each of these lazy or not (which makes no
difference to what matches), `\b`, a leading `^` and a trailing `$`. Each means what it means to
Python's `re`.
"""

from __future__ import annotations

import re

from weft_adapters.faults import shown

Chars = frozenset[str]
Edges = list[list[tuple[Chars | None, int]]]
"""By state: what leads where, a character of a set or, where it is None, nothing."""

# all that is read are names, which have no other characters
ANY = frozenset(chr(code) for code in range(32, 127))
WORD = frozenset(char for char in ANY if char.isalnum()) | {"_"}
# passed without a character, where a word begins or ends; no single character is in it
BOUNDARY: Chars = frozenset({r"\b"})

_PLAIN = WORD | {"-"}
_CLASSES = {"d": frozenset("0123456789"), "w": WORD, "s": frozenset(" ")}
_COUNT = re.compile(r"\{([0-9]{1,3})(,([0-9]{1,3})?)?\}", re.ASCII)
_BRACKET = re.compile(r"\^?(?:\w-\w|[\w.]|\\[dw.\-])+\]", re.ASCII)
_MAX_REPEATS = 64
_MAX_STATES = 20_000
_MAX_DEPTH = 20


class ExpressionError(ValueError):
    """An expression that is outside the language, or takes more steps than are allowed."""


class Parser:
    """Recursive descent over one expression; adds its states to `edges`."""

    def __init__(self, text: str, edges: Edges) -> None:
        self._text, self._edges = text, edges
        self._at, self._depth = 0, 0
        self.is_anchored = text.startswith("^")
        self.has_alternatives = False

    def parse(self) -> tuple[int, int]:
        """(first, last) state. Raises ExpressionError."""
        self._at = int(self.is_anchored)
        fragment = self._alternatives()
        if self._peek() == "$" and self._at == len(self._text) - 1:
            self._at += 1
        if self._at != len(self._text):
            raise self.refusal()
        return fragment

    def refusal(self) -> ExpressionError:
        return ExpressionError(f"The pattern {shown(self._text)} is not a simple expression.")

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _state(self) -> int:
        if len(self._edges) >= _MAX_STATES:
            raise ExpressionError(f"The pattern {shown(self._text)} repeats too much.")
        self._edges.append([])
        return len(self._edges) - 1

    def _alternatives(self) -> tuple[int, int]:
        first, last = self._state(), self._state()
        while True:
            start, end = self._sequence()
            self._edges[first].append((None, start))
            self._edges[end].append((None, last))
            if self._peek() != "|":
                return first, last
            self.has_alternatives |= self._depth == 0
            self._at += 1

    def _sequence(self) -> tuple[int, int]:
        first = last = self._state()
        while self._peek() not in ("", "|", ")", "$"):
            start, end = self._repeated()
            self._edges[last].append((None, start))
            last = end
        return first, last

    def _repeated(self) -> tuple[int, int]:
        begin = self._at
        fragment = self._atom()
        stop = self._at
        counts = self._counts()
        if counts is None:
            return fragment
        if self._peek() == "?":
            self._at += 1
        if self._peek() in ("*", "+", "?", "{") and self._peek():
            raise self.refusal()
        after = self._at
        minimum, maximum = counts
        first = last = self._state()
        for number in range(max(minimum, 1 if maximum is None else maximum)):
            if number:
                self._at = begin
                fragment = self._atom()
                assert self._at == stop, "the same text is the same atom"
            self._edges[last].append((None, fragment[0]))
            if number >= minimum:
                self._edges[fragment[0]].append((None, fragment[1]))
            last = fragment[1]
        if maximum is None:
            self._edges[fragment[1]].append((None, fragment[0]))
        self._at = after
        end = self._state()
        self._edges[last].append((None, end))
        return first, end

    def _counts(self) -> tuple[int, int | None] | None:
        """How often the atom before is there: (at least, at most)."""
        plain = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(self._peek())
        if plain is not None:
            self._at += 1
            return plain
        if self._peek() != "{":
            return None
        match = _COUNT.match(self._text, self._at)
        if match is None:
            raise self.refusal()
        self._at = match.end()
        minimum = int(match[1])
        maximum = minimum if match[2] is None else None if match[3] is None else int(match[3])
        if max(minimum, maximum or 0) > _MAX_REPEATS or (maximum is not None and maximum < minimum):
            raise self.refusal()
        return minimum, maximum

    def _atom(self) -> tuple[int, int]:
        if self._peek() != "(":
            first, last = self._state(), self._state()
            self._edges[first].append((self._chars(), last))
            return first, last
        self._at += 3 if self._text.startswith("(?:", self._at) else 1
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self.refusal()
        fragment = self._alternatives()
        if self._peek() != ")":
            raise self.refusal()
        self._at += 1
        self._depth -= 1
        return fragment

    def _chars(self) -> Chars:
        char = self._peek()
        self._at += 1
        if char == ".":
            return ANY
        if char == "[":
            return self._bracket()
        if char == "\\":
            return self._escape()
        if char not in _PLAIN:
            raise self.refusal()
        return frozenset(char)

    def _escape(self) -> Chars:
        char = self._peek()
        self._at += 1
        if char == "b":
            return BOUNDARY
        if char in _CLASSES:
            return _CLASSES[char]
        if not char or char not in ANY or char in WORD:
            raise self.refusal()
        return frozenset(char)

    def _bracket(self) -> Chars:
        match = _BRACKET.match(self._text, self._at)
        if match is None:
            raise self.refusal()
        self._at = match.end()
        body = match[0][:-1]
        try:
            allowed = re.compile(rf"[{body}]")
        except re.error:
            raise self.refusal() from None
        return frozenset(char for char in ANY if allowed.match(char))


def closing(text: str) -> int:
    """Where the group with which `text` begins ends."""
    depth, at, is_set = 0, 0, False
    while at < len(text):
        char = text[at]
        if char == "\\":
            at += 1
        elif is_set or char == "[":
            is_set = char != "]"
        else:
            depth += (char == "(") - (char == ")")
            if depth == 0:
                return at
        at += 1
    raise ExpressionError(f"The pattern {shown(text)} is not a simple expression.")
