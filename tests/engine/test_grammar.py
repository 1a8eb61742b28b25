"""Answers under a grammar match it, whatever the model would rather say."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
import torch
from pydantic import BaseModel, ConfigDict, Field

from weft.engine.build import BuiltEngine
from weft.engine.grammar import Grammars
from weft.engine.grammar_check import check_regex, check_schema
from weft.engine.offline import Completion, run_requests
from weft.messages import EngineRequest, Grammar, SamplingParams
from weft.vocabulary import Vocabulary

if TYPE_CHECKING:
    from tests.conftest import Bench

SCHEMA = {
    "type": "object",
    "properties": {
        "color": {"enum": ["red", "green", "blue"]},
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {
            "type": "array",
            "items": {"type": "array", "items": {"enum": [1, 2.5, None]}, "maxItems": 3},
            "minItems": 1,
            "maxItems": 2,
        },
    },
    "required": ["color", "size", "tags"],
    "additionalProperties": False,
}
REGEX = r"(Mon|Tues|Wednes)day, [0-3][0-9]\.[01][0-9]\.(19|20)\d{2}"


class Answer(BaseModel):
    """What SCHEMA describes, judged by another library."""

    model_config = ConfigDict(extra="forbid", strict=True)
    color: Literal["red", "green", "blue"]
    size: Annotated[int, Field(ge=0, le=99)]
    tags: Annotated[
        list[Annotated[list[Literal[1] | float | None], Field(max_length=3)]],
        Field(min_length=1, max_length=2),
    ]


@pytest.fixture
def built(demo: Bench) -> Iterator[tuple[BuiltEngine, dict[str, str]]]:
    built, digests = demo.build(check_integrity=True)
    yield built, digests
    built.tiers.close()


@pytest.fixture
def grammars() -> Grammars:
    """For a vocabulary of all bytes, two control tokens and ids that only the model has."""
    names = (b"<|start|>", b"<|end|>")
    table = tuple(bytes([i]) for i in range(256)) + names
    return Grammars(lambda: Vocabulary(table, frozenset({256, 257}), True), 300, frozenset({257}))


def create_request(name: str, grammar: Grammar | None, **changes: Any) -> EngineRequest:
    adapter = changes.pop("adapter", None)
    sampling = SamplingParams(**{"max_tokens": 400, "temperature": 1.5, "seed": 1, **changes})
    prompt = tuple(b"Tell me: ")
    return EngineRequest(name, "t", prompt, replace(sampling, grammar=grammar), adapter)


def schema_of(schema: object) -> Grammar:
    return Grammar("json_schema", json.dumps(schema))


def allowed(grammars: Grammars, grammar: Grammar, text: str) -> bool:
    """Whether the answer may be exactly `text`."""
    state = grammars.create_state(grammar)
    return all(map(state.accept, text.encode())) and state.accept(257) and state.is_terminated


@pytest.mark.slow
def test_thirty_seeds_at_a_high_temperature_all_match_in_one_mixed_batch(
    built: tuple[BuiltEngine, dict[str, str]],
) -> None:
    engine, digests = built
    adapters = [None, *digests.values()]
    requests = []
    for seed in range(30):
        adapter = adapters[seed % len(adapters)]
        for kind, grammar in (
            ("schema", schema_of(SCHEMA)),
            ("regex", Grammar("regex", REGEX)),
            ("free", None),
        ):
            limit = {"max_tokens": 20} if grammar is None else {}
            requests.append(
                create_request(f"{kind} {seed}", grammar, seed=seed, adapter=adapter, **limit)
            )
    done = run_requests(engine, requests)
    for name, completion in done.items():
        if name.startswith("schema"):
            assert_answer(completion)
        elif name.startswith("regex"):
            assert completion.finish_reason == "stop"
            assert re.fullmatch(REGEX, completion.text), completion.text
        else:
            assert completion.error is None
    assert len({completion.text for completion in done.values()}) > 60, "nothing was random"


def assert_answer(completion: Completion) -> None:
    assert completion.finish_reason == "stop", completion.error
    Answer.model_validate(json.loads(completion.text))


@pytest.mark.slow
def test_the_other_rows_of_a_batch_keep_their_tokens(
    built: tuple[BuiltEngine, dict[str, str]],
) -> None:
    engine, _ = built
    free = [create_request(f"free {i}", None, seed=i, max_tokens=24) for i in range(4)]
    alone = run_requests(engine, free)
    beside = [create_request(f"g {i}", schema_of(SCHEMA), seed=i) for i in range(4)]
    mixed = [request for pair in zip(free, beside, strict=True) for request in pair]
    together = run_requests(engine, mixed)
    for request in free:
        name = request.request_id
        assert together[name].token_ids == alone[name].token_ids
    for request in beside:
        again = run_requests(engine, [request])[request.request_id]
        assert again.token_ids == together[request.request_id].token_ids


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_json_object_is_an_object(
    built: tuple[BuiltEngine, dict[str, str]], temperature: float
) -> None:
    request = create_request("r", Grammar("json_object"), temperature=temperature, max_tokens=200)
    done = run_requests(built[0], [request])["r"]
    assert done.text.startswith("{")
    if done.finish_reason == "stop":
        assert isinstance(json.loads(done.text), dict)


@pytest.mark.slow
def test_a_grammar_ends_the_answer_also_under_ignore_eos(
    built: tuple[BuiltEngine, dict[str, str]],
) -> None:
    request = create_request("r", Grammar("regex", "abc"), ignore_eos=True)
    done = run_requests(built[0], [request])["r"]
    assert (done.text, done.finish_reason) == ("abc", "stop")


@pytest.mark.slow
def test_preemption_keeps_the_place_in_the_grammar(demo: Bench) -> None:
    block_bytes = demo.build()[0].memory.kv_bytes // demo.build()[0].memory.num_blocks
    built, _ = demo.build(max_model_len=512, kv_bytes=36 * block_bytes)
    requests = [
        create_request(f"r{i}", Grammar("regex", "[a-z ]{100}[0-9]{60}"), seed=i) for i in range(6)
    ]
    done = run_requests(built, requests)
    assert built.engine.scheduler.num_preemptions > 0
    for completion in done.values():
        assert re.fullmatch("[a-z ]{100}[0-9]{60}", completion.text), completion.error
    built.tiers.close()


@pytest.mark.slow
def test_a_dead_end_fails_that_request_alone(built: tuple[BuiltEngine, dict[str, str]]) -> None:
    requests = [
        create_request("good", Grammar("regex", "abc")),
        # after "abc" only the end may follow, and min_tokens forbids it
        create_request("dead", Grammar("regex", "abc"), min_tokens=10),
    ]
    done = run_requests(built[0], requests)
    assert (done["good"].text, done["good"].finish_reason) == ("abc", "stop")
    assert (done["dead"].text, done["dead"].finish_reason) == ("abc", "error")
    assert done["dead"].error is not None
    assert "No next token satisfies" in done["dead"].error


@pytest.mark.slow
def test_a_bad_grammar_is_refused_at_admission(built: tuple[BuiltEngine, dict[str, str]]) -> None:
    engine = built[0].engine
    with pytest.raises(ValueError, match=r"regular expression cannot be used.*not closed"):
        engine.add(create_request("r", Grammar("regex", "(")))
    assert not engine.has_work


def test_logprobs_under_a_grammar_are_the_models_own(demo: Bench) -> None:
    built, _ = demo.build()
    request = create_request("r", Grammar("regex", "Z{3}"), logprobs=2)
    done = run_requests(built, [request])["r"]
    prompt = list(request.prompt_token_ids)
    for i, entry in enumerate(done.logprobs):
        logits = demo.oracle.logits(None, [*prompt, *done.token_ids[:i]])[-1]
        want = torch.as_tensor(logits).double().log_softmax(dim=0)
        assert entry.token_id == done.token_ids[i]
        assert entry.logprob == pytest.approx(float(want[entry.token_id]), abs=1e-4)
        values, _ = want.topk(2)
        assert [value for _, value in entry.top] == pytest.approx(values.tolist(), abs=1e-4)
    assert len(done.logprobs) == len(done.token_ids) == 4
    built.tiers.close()


# ---- which texts a grammar allows ----


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
