"""The keys of `rank_pattern` and `alpha_pattern`: a tenant's regular expressions, matched safely.

PEFT takes the first key for which `re.match(rf"(.*\\.)?({key})$", module)` holds. Python's `re` can
be made to run for years, so keys here are a plain language with the same meaning: a key that is the
end of a module's name is looked up; the few others run as one automaton, in time linear in the
name, whatever the key. Knows nothing of ranks or configs.

The language: letters, digits, `_`, `-`, `.`, `\\.`, `\\d`, `\\w`, `[...]`, `(...)`, `(?:...)`, `|`,
`*`, `+`, `?`, a leading `^` and a trailing `$`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from weft_adapters.faults import shown

MAX_PATTERNS = 100_000
MAX_PATTERN_CHARS = 300
MAX_EXPRESSION_CHARS = 512

_ANY = frozenset(chr(code) for code in range(32, 127))
_DIGITS = frozenset("0123456789")
_WORD = frozenset(char for char in _ANY if char.isalnum()) | {"_"}
_PLAIN = frozenset(char for char in _WORD) | {"-"}
_MAX_STATES = 20_000
_NUMBER = r"(?:0|[1-9][0-9]*)"
_NAME = re.compile(
    rf"(?:(?:(?:(?:model\.)?layers\.)?{_NUMBER}\.)?(?:self_attn|mlp|block_sparse_moe)\.)?"
    rf"(?:experts\.(?:{_NUMBER}\.)?|shared_expert\.)?"
    r"(?:(?:[qkvo]|gate|up|gate_up|down)_proj|w[123]|shared_expert_gate)\Z"
)

Chars = frozenset[str]
Edges = list[list[tuple[Chars | None, int]]]


class PatternSet:
    """The keys of one pattern table, in the order in which PEFT tries them."""

    def __init__(self, keys: Iterable[str]) -> None:
        """Raises ValueError, a sentence naming the key, for one outside the language."""
        self._keys = tuple(keys)
        if len(self._keys) > MAX_PATTERNS:
            raise ValueError(f"There are {len(self._keys)} patterns; at most {MAX_PATTERNS}.")
        self._names: dict[str, int] = {}
        expressions: list[tuple[int, str]] = []
        for index, key in enumerate(self._keys):
            if len(key) > MAX_PATTERN_CHARS:
                raise ValueError(f"The pattern {shown(key)} has {len(key)} characters.")
            name = key.replace("\\.", ".")
            if _NAME.match(name) is not None:
                self._names.setdefault(name, index)
            else:
                expressions.append((index, key))
        if sum(len(key) for _, key in expressions) > MAX_EXPRESSION_CHARS:
            raise ValueError(
                f"The patterns that are not ends of module names have over {MAX_EXPRESSION_CHARS} "
                "characters together."
            )
        self._automaton = _Automaton(expressions)

    def first_match(self, module: str) -> str | None:
        """The first key that matches a module's full name (`model.layers...`), or None."""
        found = [self._automaton.first_match(module)] if self._automaton.has_patterns else []
        end: str | None = module
        while end:
            found.append(self._names.get(end))
            end = end.partition(".")[2]
        indices = [index for index in found if index is not None]
        return self._keys[min(indices)] if indices else None


class _Automaton:
    """All expressions at once: an NFA whose visited state sets are remembered as a DFA."""

    def __init__(self, expressions: Iterable[tuple[int, str]]) -> None:
        self._edges: Edges = [[], [(_ANY, 1)]]  # 0 starts; 1 skips a prefix that ends in a dot
        self._accepts: dict[int, int] = {}
        self.has_patterns = False
        after_dot = self._state()
        self._edges[0] += [(None, 1), (None, after_dot)]
        self._edges[1].append((frozenset("."), after_dot))
        for index, text in expressions:
            self.has_patterns = True
            parser = _Parser(text, self._edges)
            start, end = parser.parse()
            self._edges[0 if parser.is_anchored else after_dot].append((None, start))
            self._accepts[end] = index
        self._start = self._closure(frozenset({0}))
        self._steps: dict[tuple[frozenset[int], str], frozenset[int]] = {}

    def _state(self) -> int:
        self._edges.append([])
        return len(self._edges) - 1

    def first_match(self, text: str) -> int | None:
        """The smallest index of an expression that matches the whole of `text`."""
        current = self._start
        for char in text:
            following = self._steps.get((current, char))
            if following is None:
                if len(self._steps) >= _MAX_STATES:
                    self._steps.clear()
                following = self._steps[current, char] = self._step(current, char)
            current = following
        return min((self._accepts[s] for s in current if s in self._accepts), default=None)

    def _step(self, states: frozenset[int], char: str) -> frozenset[int]:
        return self._closure(
            frozenset(
                target
                for state in states
                for chars, target in self._edges[state]
                if chars is not None and char in chars
            )
        )

    def _closure(self, states: frozenset[int]) -> frozenset[int]:
        seen, todo = set(states), list(states)
        while todo:
            for chars, target in self._edges[todo.pop()]:
                if chars is None and target not in seen:
                    seen.add(target)
                    todo.append(target)
        return frozenset(seen)


class _Parser:
    """Recursive descent over one expression; adds its states to `edges`."""

    def __init__(self, text: str, edges: Edges) -> None:
        self._text, self._edges = text, edges
        self._at, self._depth = 0, 0
        self.is_anchored = text.startswith("^")

    def parse(self) -> tuple[int, int]:
        """(first, last) state. Raises ValueError."""
        self._at = int(self.is_anchored)
        fragment = self._alternatives()
        if self._peek() == "$" and self._at == len(self._text) - 1:
            self._at += 1
        if self._at != len(self._text):
            raise self._refusal()
        return fragment

    def _refusal(self) -> ValueError:
        return ValueError(f"The pattern {shown(self._text)} is not a simple expression.")

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _state(self) -> int:
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
            self._at += 1

    def _sequence(self) -> tuple[int, int]:
        first = last = self._state()
        while self._peek() not in ("", "|", ")", "$"):
            start, end = self._repeated()
            self._edges[last].append((None, start))
            last = end
        return first, last

    def _repeated(self) -> tuple[int, int]:
        inner_first, inner_last = self._atom()
        repeat = self._peek()
        if repeat not in ("*", "+", "?") or not repeat:
            return inner_first, inner_last
        self._at += 1
        if self._peek() in ("*", "+", "?") and self._peek():
            raise self._refusal()
        first, last = self._state(), self._state()
        self._edges[first].append((None, inner_first))
        self._edges[inner_last].append((None, last))
        if repeat in "*?":
            self._edges[first].append((None, last))
        if repeat in "*+":
            self._edges[inner_last].append((None, inner_first))
        return first, last

    def _atom(self) -> tuple[int, int]:
        if self._peek() != "(":
            first, last = self._state(), self._state()
            self._edges[first].append((self._chars(), last))
            return first, last
        self._at += 3 if self._text.startswith("(?:", self._at) else 1
        self._depth += 1
        if self._depth > 20:
            raise self._refusal()
        fragment = self._alternatives()
        if self._peek() != ")":
            raise self._refusal()
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
            raise self._refusal()
        return frozenset(char)

    def _escape(self) -> Chars:
        char = self._peek()
        self._at += 1
        if char == "d":
            return _DIGITS
        if char == "w":
            return _WORD
        if not char or char not in _ANY or char in _WORD:
            raise self._refusal()
        return frozenset(char)

    def _bracket(self) -> Chars:
        match = re.compile(r"\^?(?:\w-\w|[\w.]|\\[dw.\-])+\]", re.ASCII).match(self._text, self._at)
        if match is None:
            raise self._refusal()
        self._at = match.end()
        body = match[0][:-1]
        try:
            allowed = re.compile(rf"[{body}]")
        except re.error:
            raise self._refusal() from None
        return frozenset(char for char in _ANY if allowed.match(char))
