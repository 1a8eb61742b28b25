"""Answers under a grammar match it, whatever the model would rather say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
import torch
from pydantic import BaseModel, ConfigDict, Field

from weft.engine.build import BuiltEngine
from weft.engine.offline import Completion, load_adapters, run_requests
from weft.engine.plan import StepPlan
from weft.engine.runner import PendingStep
from weft.engine.sampler import NON_FINITE, Sampled
from weft.messages import EngineRequest, Grammar, SamplingParams
from weft_adapters.pool import PooledAdapter

if TYPE_CHECKING:
    from tests.bench import Bench

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


ANSWER_GRAMMAR = Grammar("json_schema", json.dumps(SCHEMA))


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


def create_request(name: str, grammar: Grammar | None, **changes: Any) -> EngineRequest:
    adapter = changes.pop("adapter", None)
    sampling = SamplingParams(**{"max_tokens": 400, "temperature": 1.5, "seed": 1, **changes})
    prompt = tuple(b"Tell me: ")
    return EngineRequest(name, "t", prompt, replace(sampling, grammar=grammar), adapter)


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
            ("schema", ANSWER_GRAMMAR),
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
    beside = [create_request(f"g {i}", ANSWER_GRAMMAR, seed=i) for i in range(4)]
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


@pytest.mark.parametrize("dead", [0, 1, 2])
def test_choices_that_fail_in_one_step_leave_clean_blocks_whichever_fails_first(
    built: tuple[BuiltEngine, dict[str, str]], monkeypatch: pytest.MonkeyPatch, dead: int
) -> None:
    engine, digests = built[0].engine, built[1]
    digest = next(iter(digests.values()))
    load_adapters(built[0], [digest])
    engine.add(create_request("r", Grammar("regex", "[a-z]{50}"), n=3, adapter=digest))
    while len(engine.scheduler.running) < 3:
        engine.step()
    choices = sorted(engine.scheduler.running, key=lambda req: req.index)
    launch = engine._runner.launch

    def run_badly(plan: StepPlan, adapters: Mapping[str, PooledAdapter]) -> PendingStep:
        """One choice gets a token that its grammar forbids, the others turn non-finite."""
        items = launch(plan, adapters).items
        bad = [req for req in choices if req.index != dead]
        blocks = [b for req in bad for b in engine.scheduler.blocks.private(req.blocks)]
        assert len(blocks) >= 2
        for cache in engine._runner._kv.tensors():
            cache[blocks] = torch.nan
        outcome = dict.fromkeys(bad, Sampled(None, NON_FINITE))
        outcome[choices[dead]] = Sampled(ord("1"))
        return PendingStep(items, lambda: [outcome[item.req] for item in items])

    monkeypatch.setattr(engine._runner, "launch", run_badly)
    outputs = engine.step()
    assert [output.finish_reason for output in outputs] == ["error"] * 3
    assert outputs[-1].is_last
    assert outputs[-1].usage.num_completion_tokens == sum(r.num_output_tokens for r in choices)
    assert all(bool(torch.isfinite(cache).all()) for cache in engine._runner._kv.tensors())
    assert not engine.has_work
    assert not engine.adapters.held
    assert engine.scheduler.blocks.num_free == engine.scheduler.blocks.num_usable


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
