"""The demo's skills: seeded task generators with disjoint splits, and exact checkers.

Pure Python. Knows nothing of tokens, chat formats, models or training. A prompt never names its
skill: the same words could be meant for any of them, which is what the adapters decide.

Splits: a word is held out by a stable hash, and so is a combination of training words. Training
prompts hold training words only, in training combinations; half of the held-out prompts are new
combinations of training words, half are made of held-out words alone.
"""

import json
import random
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from weft.demo.words import CITIES, NAMES, WORDS

_CONSONANTS, _VOWELS = "bcdfghjklmnpqrstvwxyz", "aeiou"
_MADE_UP_SHARE = 0.4


class Split(Enum):
    """Which side of the train / held-out line a draw is on."""

    TRAIN = "train"
    NEW_COMBINATION = "new combination"
    NEW_WORDS = "new words"


@dataclass(frozen=True)
class Example:
    """One task: the user's message and the exact answer."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Skill:
    """A named text operation. `solve` computes the answer from the prompt alone."""

    name: str
    description: str
    solve: Callable[[str], str] = field(repr=False)
    _draw: Callable[[random.Random, Split], str] = field(repr=False)

    def train_example(self, rng: random.Random) -> Example:
        return self._example(rng, Split.TRAIN)

    def heldout_example(self, rng: random.Random) -> Example:
        return self._example(rng, rng.choice((Split.NEW_COMBINATION, Split.NEW_WORDS)))

    def is_correct(self, prompt: str, output: str) -> bool:
        """Exact match, outer white space aside."""
        return output.strip() == self.solve(prompt)

    def _example(self, rng: random.Random, split: Split) -> Example:
        while True:
            prompt = self._draw(rng, split)
            is_new = is_heldout_prompt(prompt)
            if split is Split.NEW_WORDS or is_new == (split is Split.NEW_COMBINATION):
                return Example(prompt, self.solve(prompt))


def is_heldout_word(word: str) -> bool:
    """True for the fifth of all words, names and cities that no training task may hold."""
    return zlib.crc32(b"word:" + word.lower().encode()) % 5 == 0


def is_heldout_prompt(prompt: str) -> bool:
    """True for the eighth of all combinations that no training task may hold."""
    return zlib.crc32(b"prompt:" + prompt.encode()) % 8 == 0


def _made_up_word(rng: random.Random) -> str:
    start = rng.randrange(2)
    letters = (_CONSONANTS, _VOWELS)
    return "".join(rng.choice(letters[(start + i) % 2]) for i in range(rng.randint(3, 6)))


def _word(rng: random.Random, split: Split, listed: Sequence[str] = WORDS) -> str:
    while True:
        word = _made_up_word(rng) if rng.random() < _MADE_UP_SHARE else rng.choice(listed)
        if listed is not WORDS:
            word = word.capitalize()
        if is_heldout_word(word) == (split is Split.NEW_WORDS):
            return word


def _words(rng: random.Random, split: Split, low: int, high: int) -> list[str]:
    """Words with distinct first letters, so that sorting needs no second letter."""
    words: list[str] = []
    num_words = rng.randint(low, high)
    while len(words) < num_words:
        word = _word(rng, split)
        if all(word[0] != other[0] for other in words):
            words.append(word)
    return words


def _draw_words(rng: random.Random, split: Split) -> str:
    return " ".join(_words(rng, split, 3, 4))


def _draw_text(rng: random.Random, split: Split) -> str:
    words = _words(rng, split, 2, 4)
    if len(words) > 2 and rng.random() < 0.2:
        words[0] += ","
    return " ".join(words) + rng.choice(("", "", "", ".", "!"))


_FORMS = (
    "name {name} age {age} city {city}",
    "age {age} name {name} city {city}",
    "city {city} name {name} age {age}",
    "name {name} city {city} age {age}",
    "{name} is {age} and lives in {city}",
    "{name}, {age}, from {city}",
)
_PATTERNS = tuple(
    re.compile(form.format(name=r"(?P<name>\w+)", age=r"(?P<age>\d+)", city=r"(?P<city>\w+)"))
    for form in _FORMS
)


def _draw_person(rng: random.Random, split: Split) -> str:
    return rng.choice(_FORMS).format(
        name=_word(rng, split, NAMES), age=rng.randint(18, 99), city=_word(rng, split, CITIES)
    )


def _extract(prompt: str) -> str:
    for pattern in _PATTERNS:
        if found := pattern.fullmatch(prompt.strip()):
            fields = {"name": found["name"], "age": int(found["age"]), "city": found["city"]}
            return json.dumps(fields)
    raise ValueError(f"not a sentence about a person: {prompt!r}")


def _mirror(prompt: str) -> str:
    return " ".join(reversed(prompt.split()))


def _sort(prompt: str) -> str:
    return " ".join(sorted(prompt.split()))


def _initials(prompt: str) -> str:
    return ".".join(word[0].upper() for word in prompt.split()) + "."


SKILLS: dict[str, Skill] = {
    skill.name: skill
    for skill in (
        Skill("shout", "writes the text in capital letters", str.upper, _draw_text),
        Skill("extract", "turns a phrase about a person into JSON", _extract, _draw_person),
        Skill("mirror", "reverses the order of the words", _mirror, _draw_words),
        Skill("sorter", "sorts the words by their first letter", _sort, _draw_words),
        Skill("initials", "answers with the initials", _initials, _draw_words),
    )
}
