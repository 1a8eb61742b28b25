"""Many names that differ in numbers, as few patterns: `layers.{0-47}.mlp.experts.{0-127}.up_proj`.

A pattern stands for exactly the names that it was made of: every combination of its numbers is one
of them. Knows nothing of tensors.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

# a number that is a part of a path by itself: no layer is meant by the 1 of `w1`
_NUMBER = re.compile(r"(?<![\w-])(0|[1-9][0-9]{0,8})(?![\w-])", re.ASCII)
# names of strangers may hold any number of them
_MAX_NUMBERS = 4

Axes = tuple[tuple[int, ...], ...]
Template = tuple[str, ...]
"""A text's parts between its numbers."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A text, and for each place between two of its parts the numbers that stand there, sorted."""

    template: Template
    axes: Axes

    def __str__(self) -> str:
        filled = [self.template[0]]
        for values, part in zip(self.axes, self.template[1:], strict=True):
            filled += [_ranges(values), part]
        return "".join(filled)


def template_of(name: str) -> tuple[Template, tuple[int, ...]]:
    """The parts of a name between its first few numbers, and the numbers."""
    parts = _NUMBER.split(name, maxsplit=_MAX_NUMBERS)
    return tuple(parts[::2]), tuple(int(number) for number in parts[1::2])


def patterns_of(names: Iterable[str]) -> list[Pattern]:
    """Patterns that cover each name once and nothing else, in order of first appearance."""
    by_template: dict[Template, list[tuple[int, ...]]] = {}
    for name in names:
        template, numbers = template_of(name)
        by_template.setdefault(template, []).append(numbers)
    return [
        Pattern(template, axes)
        for template, numbers in by_template.items()
        for axes in boxes_of(numbers)
    ]


def boxes_of(points: Iterable[Sequence[int]]) -> Iterator[Axes]:
    """Sets of whole combinations that together are the points, each once."""
    following: defaultdict[int, set[tuple[int, ...]]] = defaultdict(set)
    for point in points:
        if not point:
            yield ()
            return
        following[point[0]].add(tuple(point[1:]))
    firsts: defaultdict[frozenset[tuple[int, ...]], list[int]] = defaultdict(list)
    for first, rest in following.items():
        firsts[frozenset(rest)].append(first)
    for shared, equals in firsts.items():
        for axes in boxes_of(shared):
            yield (tuple(sorted(equals)), *axes)


def _ranges(values: Sequence[int]) -> str:
    """`7` for one, `{0-3,5}` for several."""
    if len(values) == 1:
        return str(values[0])
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    texts = (str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return "{" + ",".join(texts) + "}"
