"""Regular expressions of tenants, matched in bounded time.

Python's `re` can be made to run for years. Expressions here are in a plain language, see
`expression_grammar`, and become one automaton for all of them, so that a step is taken per
character of the text, and what all steps cost together is bounded too. Knows nothing of modules or
configs.
"""

from __future__ import annotations

from collections.abc import Iterable

from weft_adapters.expression_grammar import (
    ANY,
    BOUNDARY,
    WORD,
    Edges,
    ExpressionError,
    Parser,
    closing,
)
from weft_adapters.faults import shown

__all__ = ["Expression", "ExpressionError", "Expressions"]

_MAX_REMEMBERED = 20_000
_MAX_LOOKS = 4
# visits of states and edges: tenths of a second; expressions in use take some thousands
MAX_WORK = 300_000


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
            self._edges += [[(ANY, 1)], []]  # 1 skips a prefix that ends in a dot
            self._edges[0] += [(None, 1), (None, 2)]
            self._edges[1].append((frozenset("."), 2))
            inner = 2
        for rank, text in expressions:
            parser = Parser(text, self._edges)
            start, end = parser.parse()
            if after_dot and parser.is_anchored and parser.has_alternatives:
                raise parser.refusal()  # `^a|b` is anchored in one of its alternatives only
            self._edges[0 if parser.is_anchored else inner].append((None, start))
            self._accepts[end] = rank
        self._start = self._closure(frozenset({0}))
        self._steps: dict[tuple[frozenset[int], bool, str], frozenset[int]] = {}
        self._ends: dict[tuple[frozenset[int], bool], int | None] = {}

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
            current, is_word = following, char in WORD
        return self._accepted(current, is_word)

    def _accepted(self, states: frozenset[int], is_word: bool) -> int | None:
        """What ends here; remembered like the steps."""
        key = (states, is_word)
        if key not in self._ends:
            if len(self._ends) >= _MAX_REMEMBERED:
                self._ends.clear()
            last = self._closure(states, is_boundary=True) if is_word else states
            found = (self._accepts[s] for s in last if s in self._accepts)
            self._ends[key] = min(found, default=None)
        return self._ends[key]

    def _step(self, states: frozenset[int], is_word: bool, char: str) -> frozenset[int]:
        if is_word != (char in WORD):
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
                is_free = chars is None or (is_boundary and chars is BOUNDARY)
                if is_free and target not in seen:
                    seen.add(target)
                    todo.append(target)
        return frozenset(seen)


class Expression:
    """One expression that matches whole texts, as `re.fullmatch`. It may begin with up to 4 of
    `(?=...)` and `(?!...)`."""

    def __init__(self, text: str) -> None:
        """Raises ExpressionError for one outside the language."""
        rest = text.removeprefix("^")
        self._looks: list[tuple[bool, Expressions]] = []
        while rest.startswith(("(?=", "(?!")):
            end = closing(rest)
            if len(self._looks) == _MAX_LOOKS:
                raise ExpressionError(f"The pattern {shown(text)} looks ahead too often.")
            ahead = Expressions([(0, f"(?:{rest[3:end]}).*")])
            self._looks.append((rest[2] == "=", ahead))
            rest = rest[end + 1 :]
        self._whole = Expressions([(0, rest)])

    def matches(self, text: str) -> bool:
        """Raises ExpressionError where that takes too many steps."""
        looks = (wanted == (e.first_match(text) is not None) for wanted, e in self._looks)
        return all(looks) and self._whole.first_match(text) is not None
