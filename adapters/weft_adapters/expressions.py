r"""Regular expressions of tenants, matched in bounded time.

Python's `re` can be made to run for years. Expressions here are a plain language with the same
meaning that becomes one automaton for all of them, so that a step is taken per character of the
text, and what all steps cost together is bounded too. Knows nothing of modules or configs.

The language: letters, digits, `_`, `-`, `.`, `\.`, `\d`, `\w`, `\s`, `[...]`, `(...)`, `(?:...)`,
`|`, `*`, `+`, `?` and `{m}`, `{m,}`, `{m,n}` up to 64, each of these lazy or not (which makes no
difference to what matches), `\b`, a leading `^` and a trailing `$`. An `Expression` may begin with
`(?=...)` and `(?!...)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from weft_adapters.faults import shown

# all that is read are names, which have no other characters
_ANY = frozenset(chr(code) for code in range(32, 127))
_DIGITS = frozenset("0123456789")
_WORD = frozenset(char for char in _ANY if char.isalnum()) | {"_"}
_SPACE = frozenset(" ")
_PLAIN = _WORD | {"-"}
_CLASSES = {"d": _DIGITS, "w": _WORD, "s": _SPACE}
_COUNT = re.compile(r"\{([0-9]{1,3})(,([0-9]{1,3})?)?\}", re.ASCII)
_BRACKET = re.compile(r"\^?(?:\w-\w|[\w.]|\\[dw.\-])+\]", re.ASCII)
_MAX_REPEATS = 64
_MAX_STATES = 20_000
_MAX_REMEMBERED = 20_000
_MAX_DEPTH = 20
# less than a second; expressions in use take some thousands
MAX_WORK = 2_000_000

Chars = frozenset[str]
# passed without a character, where a word begins or ends; no single character is in it
_BOUNDARY: Chars = frozenset({r"\b"})
Edges = list[list[tuple[Chars | None, int]]]


class ExpressionError(ValueError):
    """An expression that is outside the language, or takes more steps than are allowed."""


class Expressions:
    """Several expressions at once: an NFA whose visited state sets are remembered as a DFA."""

    def __init__(self, expressions: Iterable[tuple[int, str]], *, after_dot: bool = False) -> None:
        """(rank, expression) pairs. `after_dot`: what goes before the match may be anything that
        ends in a dot, unless the expression begins with `^`. Raises ExpressionError."""
        self._edges: Edges = [[]]
        self._accepts: dict[int, int] = {}
        self._work = 0
        inner = 0
        if after_dot:
            self._edges += [[(_ANY, 1)], []]  # 1 skips a prefix that ends in a dot
            self._edges[0] += [(None, 1), (None, 2)]
            self._edges[1].append((frozenset("."), 2))
            inner = 2
        for rank, text in expressions:
            parser = _Parser(text, self._edges)
            start, end = parser.parse()
            if after_dot and parser.is_anchored and parser.has_alternatives:
                raise parser.refusal()  # `^a|b` is anchored in one of its alternatives only
            self._edges[0 if parser.is_anchored else inner].append((None, start))
            self._accepts[end] = rank
        self._start = self._closure(frozenset({0}))
        self._steps: dict[tuple[frozenset[int], bool, str], frozenset[int]] = {}

    @property
    def is_empty(self) -> bool:
        return not self._accepts

    def first_match(self, text: str) -> int | None:
        """The smallest rank of an expression that matches the whole of `text`, or None."""
        current, is_word = self._start, False
        for char in text:
            key = (current, is_word, char)
            following = self._steps.get(key)
            if following is None:
                if len(self._steps) >= _MAX_REMEMBERED:
                    self._steps.clear()
                following = self._steps[key] = self._step(*key)
            current, is_word = following, char in _WORD
        if is_word:
            current = self._closure(current, is_boundary=True)
        return min((self._accepts[s] for s in current if s in self._accepts), default=None)

    def _step(self, states: frozenset[int], is_word: bool, char: str) -> frozenset[int]:
        if is_word != (char in _WORD):
            states = self._closure(states, is_boundary=True)
        targets = set()
        for state in states:
            self._work += 1 + len(self._edges[state])
            targets |= {t for chars, t in self._edges[state] if chars is not None and char in chars}
        if self._work > MAX_WORK:
            raise ExpressionError("The expressions take too many steps to match.")
        return self._closure(frozenset(targets))

    def _closure(self, states: frozenset[int], is_boundary: bool = False) -> frozenset[int]:
        seen, todo = set(states), list(states)
        while todo:
            edges = self._edges[todo.pop()]
            self._work += 1 + len(edges)
            for chars, target in edges:
                is_free = chars is None or (is_boundary and chars is _BOUNDARY)
                if is_free and target not in seen:
                    seen.add(target)
                    todo.append(target)
        return frozenset(seen)


class Expression:
    """One expression that matches whole texts, as `re.fullmatch`."""

    def __init__(self, text: str) -> None:
        """Raises ExpressionError for one outside the language."""
        rest = text.removeprefix("^")
        self._looks: list[tuple[bool, Expressions]] = []
        while rest.startswith(("(?=", "(?!")):
            end = _closing(rest)
            ahead = Expressions([(0, f"(?:{rest[3:end]}).*")])
            self._looks.append((rest[2] == "=", ahead))
            rest = rest[end + 1 :]
        self._whole = Expressions([(0, rest)])

    def matches(self, text: str) -> bool:
        """Raises ExpressionError where that takes too many steps."""
        looks = (wanted == (e.first_match(text) is not None) for wanted, e in self._looks)
        return all(looks) and self._whole.first_match(text) is not None


def _closing(text: str) -> int:
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


class _Parser:
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
            return _ANY
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
            return _BOUNDARY
        if char in _CLASSES:
            return _CLASSES[char]
        if not char or char not in _ANY or char in _WORD:
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
        return frozenset(char for char in _ANY if allowed.match(char))
