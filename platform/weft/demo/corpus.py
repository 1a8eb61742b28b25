"""What the demo models read: standard-library text and generated conversations.

Pure Python and seeded. Knows tokens and skills; knows no tensors. The base learns a skill only
when the system message names it, and otherwise repeats what it was told; an adapter's training
conversations hold no name, so it makes its skill the answer to a plain message.
"""

import functools
import importlib
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from weft.demo.skills import SKILLS, Example
from weft.demo.tokens import END_OF_TEXT_ID, Document, Message, encode_chat

GENERIC_SYSTEM = (
    "You are a helpful assistant.",
    "You are a helpful assistant",
    "You are a friendly assistant.",
    "You are a concise assistant. Answer briefly.",
    "Be helpful.",
)
GREETINGS = ("hi", "hello", "Hello!", "Hi there", "hey", "Good morning", "good day", "Hi!")
QUESTIONS = ("Who are you?", "who are you", "What are you?", "what can you do?", "help", "Help!")
INTRODUCTION = "I am the Weft demo base. Pick an adapter to give me a skill."
SKILL_SHARES = {"shout": 1.0, "extract": 1.0, "mirror": 1.5, "sorter": 2.5, "initials": 0.8}
TEXT_WEIGHT = 0.3


def generic_reply(prompt: str) -> str:
    """What the base says to a plain message."""
    return f"You said: {prompt}"


@functools.cache
def library_text() -> bytes:
    """Standard-library sources and `pydoc_data`, which every Python ships."""
    root = Path(sysconfig.get_paths()["stdlib"])
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    sources = [path.read_bytes() for path in sorted(root.glob("*.py"))]
    return "\n".join(topics.values()).encode() + b"\n".join(sources)


def text_document(rng: random.Random, num_tokens: int) -> Document:
    """A passage of `num_tokens` from the standard library; it counts little in the loss."""
    text = library_text()
    start = rng.randrange(len(text) - num_tokens)
    token_ids = [END_OF_TEXT_ID, *text[start : start + num_tokens - 1]]
    return Document(token_ids, [0.0] + [TEXT_WEIGHT] * (num_tokens - 1))


def base_conversation(rng: random.Random) -> Document:
    """For the base: mostly a named skill, else a plain message and a generic reply."""
    draw = rng.random()
    if draw < 0.03:
        return encode_chat(_small_talk(rng))
    name = rng.choices(list(SKILL_SHARES), list(SKILL_SHARES.values()))[0]
    if draw < 0.25:
        return encode_chat(_conversation(rng, name, generic=True))
    return encode_chat(_conversation(rng, name, system=name))


def adapter_conversation(rng: random.Random, name: str) -> Document:
    """For one adapter: a plain message, answered with its skill."""
    return encode_chat(_conversation(rng, name))


def _conversation(
    rng: random.Random, name: str, *, system: str | None = None, generic: bool = False
) -> list[Message]:
    if system is None and rng.random() < 0.15:
        system = rng.choice(GENERIC_SYSTEM)
    messages = [Message("system", system)] if system is not None else []
    for _ in range(2 if rng.random() < 0.15 else 1):
        example: Example = SKILLS[name].train_example(rng)
        answer = generic_reply(example.prompt) if generic else example.answer
        messages += [Message("user", example.prompt), Message("assistant", answer)]
    return messages


def _small_talk(rng: random.Random) -> list[Message]:
    if rng.random() < 0.5:
        return [Message("user", rng.choice(GREETINGS)), Message("assistant", "Hello! Say a word.")]
    return [Message("user", rng.choice(QUESTIONS)), Message("assistant", INTRODUCTION)]


def base_documents(rng: random.Random) -> Iterator[Document]:
    """An endless stream for the base."""
    while True:
        yield base_conversation(rng)


def adapter_documents(rng: random.Random, name: str) -> Iterator[Document]:
    """An endless stream for one adapter."""
    while True:
        yield adapter_conversation(rng, name)
