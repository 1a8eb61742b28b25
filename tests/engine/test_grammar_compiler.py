"""Which texts a grammar allows, which grammars are refused, and how they are compiled."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from weft.engine.grammar import Grammars
from weft.engine.grammar_check import check_regex, check_schema
from weft.messages import Grammar
from weft.vocabulary import Vocabulary

# all bytes and two control tokens
VOCABULARY = Vocabulary(
    (*(bytes([i]) for i in range(256)), b"<|start|>", b"<|end|>"), frozenset({256, 257}), True
)


@pytest.fixture
def grammars() -> Grammars:
    """For ids of VOCABULARY and some that only the model has."""
    return Grammars(lambda: VOCABULARY, 300, frozenset({257}))


def schema_of(schema: object) -> Grammar:
    return Grammar("json_schema", json.dumps(schema))


def allowed(grammars: Grammars, grammar: Grammar, text: str) -> bool:
    """Whether the answer may be exactly `text`."""
    state = grammars.create_state(grammar)
    return all(map(state.accept, text.encode())) and state.accept(257) and state.is_terminated


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        (Grammar("json_object"), ['{"a": [1, {}]}', "{}"], ["[1]", "{", "", '{"a": 1}}']),
        (schema_of({"type": "integer"}), ["5", "-12"], ["5.5", '"5"', ""]),
        (schema_of({"type": "string"}), ['"é\\n"', '"<|end|>"'], ['"\n"', '"']),
        (Grammar("regex", "a.c"), ["abc", "aéc"], ["a\nc", "ac"]),
        (Grammar("regex", r"[.]\."), [".."], ["x.", ".x"]),
        (Grammar("regex", "^a|bc$"), ["a", "bc"], ["ac", "abc"]),
    ],
)
def test_a_text_is_allowed_exactly_when_it_matches(
    grammars: Grammars, grammar: Grammar, good: list[str], bad: list[str]
) -> None:
    assert all(allowed(grammars, grammar, text) for text in good)
    assert not any(allowed(grammars, grammar, text) for text in bad)


def test_a_patterns_classes_stay_inside_the_string(grammars: Grammars) -> None:
    for pattern in (r"^.$", r"^[^a]$", r"^\W$", r"^[!-~]$", r"^[\s\S]$", r"^\s$", r"^\.$"):
        grammar = schema_of({"type": "string", "pattern": pattern})
        assert not any(allowed(grammars, grammar, f'"{char}"') for char in '"\\\n\t\0')


def test_names_of_properties_may_have_a_pattern(grammars: Grammars) -> None:
    grammar = schema_of({"type": "object", "propertyNames": {"pattern": "^x$"}})
    assert allowed(grammars, grammar, '{"x": 1}')
    assert not allowed(grammars, grammar, '{"y": 1}')


def test_control_tokens_and_ids_without_a_token_never_match(grammars: Grammars) -> None:
    for token in (256, 258, 299):
        assert not grammars.create_state(Grammar("regex", ".*")).accept(token)
    assert not grammars.create_state(Grammar("regex", "a")).accept(257), "the end came too early"


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("3", "must be an object"),
        ('{"type": "nope"}', "Unsupported type"),
        ('{"enum": []}', "must not be empty"),
        ('{"not": {}}', "'not' where it is not supported"),
        ('{"type": "array", "uniqueItems": true}', "'uniqueItems'"),
        ('{"type": "array", "contains": {"const": 1}}', "'contains'"),
        ('{"type": "number", "multipleOf": 2}', "'multipleOf'"),
        ('{"type": "string", "pattern": "a", "minLength": 3}', "'minLength'"),
        ('{"properties": {"a": {"type": "integer"}}}', "'properties'"),
        ('{"$ref": "https://example.com/schema"}', "outside it"),
        ('{"$ref": "#/$defs/x"}', "Cannot find"),
        ('{"$ref": "#here"}', "outside it"),
        ('{"const": 1, "enum": [2]}', "'const'"),
        ('{"type": "object", "required": ["a"]}', "requires 'a'"),
        ('{"type": "string", "pattern": "a$b"}', "'$' at 1"),
        (json.dumps({"type": "string", "pattern": 'a"b'}), "spells a quote"),
        (json.dumps({"type": "string", "pattern": r"[\\x22]"}), "spells a quote"),
        (json.dumps({"type": "string", "pattern": r"a\\b"}), "spells a quote"),
        (json.dumps({"type": "string", "pattern": r"a\nb"}), "spells a quote"),
        (json.dumps({"type": "object", "patternProperties": {'"': {}}}), "spells a quote"),
        ('{"type": "string", "pattern": "a", "format": "date"}', "'format'"),
        ('{"allOf": [{"type": "integer"}, {"minimum": 3}]}', "'allOf' of several"),
        ('{"anyOf": [{"required": ["b"]}], "type": "object"}', "'type'"),
        ('{"type": "array", "items": 3}', "no schema where one belongs"),
        ('{"items":' * 65 + "{}" + "}" * 65, "where it is not supported"),
        ('{"type": "array", "items":' * 65 + "{}" + "}" * 65, "nested more than 64"),
        (json.dumps({"description": "x" * 100_001}), "longer than"),
        ('{"type": "integer", "minimum": 5, "maximum": 1}', "minimum greater than maximum"),
    ],
)
def test_a_schema_that_would_not_be_held_to_is_refused(
    grammars: Grammars, schema: str, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        grammars.compile(Grammar("json_schema", schema))
    assert "/project/" not in str(caught.value)


def test_what_pydantic_writes_is_accepted(grammars: Grammars) -> None:
    class Inner(BaseModel):
        kind: Literal["a", "b"] = "a"
        values: dict[str, int] = Field(default_factory=dict, description="by name")

    class Outer(BaseModel):
        inner: Inner
        others: list[Inner] | None = None
        ratio: Annotated[float, Field(ge=0, lt=1)]
        pair: tuple[int, str]

    check_schema(json.dumps(Outer.model_json_schema()))
    grammars.compile(schema_of(Outer.model_json_schema()))


@pytest.mark.parametrize(
    ("regex", "message"),
    [
        ("(", "not closed"),
        ("(?=a)b", "Lookahead"),
        (r"\bfoo", "Word boundary"),
        (r"(a)\1", "Backreference"),
        ("a{5,2}", "Lower bound"),
        ("a$b", "'$' at 1"),
        ("(a$|b)c", "'$' at 2"),
        ("a^b", "'^' at 1"),
        ("a" * 10_001, "longer than"),
    ],
)
def test_a_regex_that_would_not_be_held_to_is_refused(
    grammars: Grammars, regex: str, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        grammars.compile(Grammar("regex", regex))


def test_anchors_and_dots_are_told_from_their_escapes() -> None:
    same = [r"\.\^\$", "[.^$]", "^a$|^b$", r"[\]^]", r"\\"]
    assert [check_regex(text) for text in same] == same
    assert check_regex(r"a.\.[.]") == r"a[^\n]\.[.]"


# ---- compiling ----


def test_compiled_grammars_are_kept_and_the_oldest_dropped(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft.engine.grammar.MAX_GRAMMARS", 2)
    first, second, third = (Grammar("regex", text) for text in "abc")
    kept = grammars.compile(first)
    grammars.compile(second)
    assert grammars.compile(first) is kept
    grammars.compile(third)  # `second` was used least recently
    assert grammars.compile(first) is kept
    assert len(grammars._compiled) == 2
    monkeypatch.setattr("weft.engine.grammar.MAX_GRAMMAR_BYTES", 0)
    grammars.compile(second)
    assert (len(grammars._compiled), grammars._num_bytes) == (0, 0)


async def test_preparing_does_not_block_the_event_loop(grammars: Grammars) -> None:
    fields = {f"field {i}": {"enum": [f"{i} {k}" for k in range(60)]} for i in range(40)}
    grammar = schema_of({"type": "object", "properties": fields})
    grammars.compile(Grammar("json_object"))  # imports xgrammar
    longest, last = 0.0, time.monotonic()
    task = asyncio.create_task(grammars.prepare(grammar))
    while not task.done():
        await asyncio.sleep(0.001)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    await task
    assert longest < 0.2
    assert grammar in grammars._compiled
    with pytest.raises(ValueError, match="not closed"):
        await grammars.prepare(Grammar("regex", "("))
    grammars.close()


async def test_reading_the_vocabulary_keeps_nobody_from_asking_for_a_grammar() -> None:
    is_reading, may_end, num_read = threading.Event(), threading.Event(), 0

    def read() -> Vocabulary:
        nonlocal num_read
        num_read += 1
        is_reading.set()
        assert may_end.wait(timeout=10), "the event loop waited for the vocabulary"
        return VOCABULARY

    grammars = Grammars(read, 300, frozenset({257}))
    first, second = Grammar("regex", "a"), Grammar("regex", "b")
    preparing = asyncio.create_task(grammars.prepare(first))
    assert await asyncio.to_thread(is_reading.wait, 10)
    # looks it up on the event loop, where it must not wait
    asking = asyncio.create_task(grammars.prepare(second))
    await asyncio.sleep(0)
    may_end.set()
    await asyncio.gather(preparing, asking)
    assert num_read == 1
    assert allowed(grammars, first, "a")
    assert allowed(grammars, second, "b")
    grammars.close()


def test_without_xgrammar_the_refusal_says_so(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "xgrammar", None)
    with pytest.raises(ValueError, match="needs the package xgrammar"):
        grammars.compile(Grammar("json_object"))


def test_a_tokenizer_whose_bytes_are_unknown_is_refused() -> None:
    inexact = Grammars(lambda: Vocabulary((b"a",), frozenset(), False), 1, frozenset({0}))
    with pytest.raises(ValueError, match="byte-level or SentencePiece"):
        inexact.compile(Grammar("json_object"))


def test_the_engine_starts_without_xgrammar(tmp_path: Path) -> None:
    import subprocess

    code = "import sys, weft.engine.worker; sys.exit('xgrammar' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
