"""The demo's tasks: right answers, disjoint splits, seeded draws. No torch."""

import json
import random
import re
from collections.abc import Callable

import pytest

from weft.demo.skills import SKILLS, Example, Skill
from weft.demo.tokens import ID_OF, Message, encode_chat, encode_prompt

NUM_DRAWS = 500


def draws(skill: Skill, seed: int = 0) -> tuple[list[Example], list[Example]]:
    rng = random.Random(seed)
    train = [skill.train_example(rng) for _ in range(NUM_DRAWS)]
    return train, [skill.heldout_example(rng) for _ in range(NUM_DRAWS)]


def by_selection(words: list[str]) -> list[str]:
    """A sort by repeated minimum of the first letter."""
    left, ordered = list(words), []
    while left:
        first = min(left, key=lambda word: word[0])
        left.remove(first)
        ordered.append(first)
    return ordered


def by_stack(words: list[str]) -> list[str]:
    left = list(words)
    return [left.pop() for _ in words]


def person(prompt: str) -> str:
    """Reads the fields by what they look like: an age is digits, a name comes before a city
    unless the phrase says otherwise."""
    age = next(token for token in re.findall(r"\w+", prompt) if token.isdigit())
    names = [token for token in re.findall(r"\w+", prompt) if token[0].isupper()]
    name, city = reversed(names) if prompt.startswith("city") else names
    return json.dumps({"name": name, "age": int(age), "city": city})


ORACLES: dict[str, Callable[[str], str]] = {
    "shout": lambda p: "".join(chr(ord(c) - 32) if "a" <= c <= "z" else c for c in p),
    "extract": person,
    "mirror": lambda p: " ".join(by_stack(p.split(" "))),
    "sorter": lambda p: " ".join(by_selection(p.split(" "))),
    "initials": lambda p: "".join(f"{part[0]}." for part in p.upper().split(" ")),
}


def test_every_skill_has_an_oracle() -> None:
    assert ORACLES.keys() == SKILLS.keys()


@pytest.mark.parametrize("name", SKILLS)
def test_answers_equal_an_independent_computation(name: str) -> None:
    train, heldout = draws(SKILLS[name])
    for example in train + heldout:
        assert example.answer == ORACLES[name](example.prompt)


@pytest.mark.parametrize("name", SKILLS)
def test_train_and_heldout_prompts_are_disjoint(name: str) -> None:
    train, heldout = draws(SKILLS[name])
    assert not {e.prompt for e in train} & {e.prompt for e in heldout}


def test_half_of_the_heldout_prompts_have_unseen_words_only() -> None:
    train, heldout = draws(SKILLS["mirror"])
    seen = {word for e in train for word in e.prompt.split()}
    num_unseen = sum(not seen & set(e.prompt.split()) for e in heldout)
    assert 0.4 < num_unseen / len(heldout) < 0.6


@pytest.mark.parametrize("name", SKILLS)
def test_draws_are_seeded(name: str) -> None:
    assert draws(SKILLS[name], seed=3) == draws(SKILLS[name], seed=3)
    assert draws(SKILLS[name], seed=3) != draws(SKILLS[name], seed=4)


@pytest.mark.parametrize("name", SKILLS)
def test_only_the_exact_answer_is_correct(name: str) -> None:
    example = SKILLS[name].train_example(random.Random(0))
    assert SKILLS[name].is_correct(example.prompt, f" {example.answer}\n")
    assert not SKILLS[name].is_correct(example.prompt, f"You said: {example.prompt}")
    assert not SKILLS[name].is_correct(example.prompt, "")


def test_skills_give_different_answers_to_one_prompt() -> None:
    answers = {SKILLS[n].solve("cherry banana apple date") for n in SKILLS if n != "extract"}
    assert len(answers) == len(SKILLS) - 1


def test_a_phrase_about_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="not a sentence about a person"):
        SKILLS["extract"].solve("cherry banana apple")


def test_only_what_the_assistant_says_is_trained_on() -> None:
    messages = [Message("system", "shout"), Message("user", "ab"), Message("assistant", "AB")]
    document = encode_chat(messages)
    trained = [i for i, w in zip(document.token_ids, document.weights, strict=True) if w]
    assert trained == [ord("A"), ord("B"), ID_OF["<|end|>"]]
    assert encode_prompt(messages[:2]) == document.token_ids[: -len(trained)]
