"""Requests whose adapter has tokens of its own, beside others that have not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
from benchmarks.models import third_party_warnings_ignored
from tests.engine.families import CASES, SIZES, create_model
from tests.engine.vocabulary_forms import NUM_ADDED, Q, Vocabulary

from weft.engine.build import BuiltEngine
from weft.engine.offline import Completion, load_adapters, register_folder, run_requests
from weft.messages import EngineRequest, Grammar, RequestVocabulary, SamplingParams
from weft_adapters.store import FolderStore

if TYPE_CHECKING:
    from tests.bench import Bench

V = SIZES["vocab_size"]
TOOL, END = V + 1, V + 2
OWN = RequestVocabulary(V + NUM_ADDED, frozenset((END,)), ((TOOL, "<tool>"), (END, "")))
PROMPT = tuple(range(40, 60))


@dataclass
class Shop:
    """An engine with an adapter of more tokens than the base, and one of fewer."""

    built: BuiltEngine
    digests: dict[str, str]

    def request(self, name: str, adapter: str | None = None, **sampling: Any) -> EngineRequest:
        chosen = SamplingParams(**{"max_tokens": 12, "temperature": 0, **sampling})
        digest = None if adapter is None else self.digests[adapter]
        own = {"more": OWN, "fewer": RequestVocabulary(V - NUM_ADDED)}
        vocabulary = None if adapter is None else own[adapter]
        return EngineRequest(name, "t", PROMPT, chosen, digest, vocabulary=vocabulary)

    def run(self, *requests: EngineRequest) -> Sequence[Completion]:
        done = run_requests(self.built, list(requests))
        return [done[request.request_id] for request in requests]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, create_bench: Callable[..., Bench]) -> Bench:
    return create_bench(
        tmp_path_factory.mktemp("own"), create_model(CASES["qwen3, biases, tied, yarn"]), {}
    )


@pytest.fixture(scope="module", params=["native", pytest.param("torch", marks=pytest.mark.verify)])
def shop(bench: Bench, request: pytest.FixtureRequest) -> Any:
    built, _ = bench.build(kernels=request.param)
    store, digests = FolderStore(bench.root / "store"), {}
    for name, num_added in (("more", NUM_ADDED), ("fewer", -NUM_ADDED)):
        folder = bench.root / name
        if not folder.exists():
            with third_party_warnings_ignored():
                model = copy.deepcopy(bench.oracle.model(None))
                Vocabulary(num_added, target_modules=Q).build(model, folder, seed=1)
        digests[name] = register_folder(built, store, folder)
    load_adapters(built, digests.values())
    yield Shop(built, digests)
    built.tiers.close()


def toward(*tokens: int) -> dict[str, Any]:
    """Sampling that prefers these tokens to all others."""
    return {"logit_bias": tuple((token, 100.0) for token in tokens)}


def test_an_adapters_tokens_are_sampled_and_shown_as_text(shop: Shop) -> None:
    (done,) = shop.run(shop.request("a", "more", max_tokens=3, **toward(TOOL)))
    assert (done.token_ids, done.text) == ([TOOL] * 3, "<tool>" * 3)


def test_an_adapters_end_of_text_ends_its_answers_alone(shop: Shop) -> None:
    own = shop.request("a", "more", **toward(END))
    long = shop.request("b", "more", min_tokens=4, **toward(END))
    for_ever = shop.request("c", "more", ignore_eos=True, **toward(END))
    ended, later, never = shop.run(own, long, for_ever)
    assert (ended.token_ids, ended.text, ended.finish_reason) == ([END], "", "stop")
    assert END not in later.token_ids[:4]
    assert len(never.token_ids) == 12


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_rows_with_fewer_tokens_never_get_others(shop: Shop, temperature: float) -> None:
    """At a high temperature every token that may be sampled is, sooner or later."""
    options = {"temperature": temperature, "ignore_eos": True, "max_tokens": 60, "seed": 4}
    requests = [
        shop.request(f"{name}{i}", name, **options)
        for i, name in enumerate((None, "more", "fewer", None, "fewer"))
    ]
    together = shop.run(*requests)
    sizes = [V, V + NUM_ADDED, V - NUM_ADDED, V, V - NUM_ADDED]
    for done, size in zip(together, sizes, strict=True):
        assert done.finish_reason == "length"
        assert max(done.token_ids) < size
    for request, done in zip(requests, together, strict=True):
        assert shop.run(request)[0].token_ids == done.token_ids, "the others change it"


def test_logprobs_are_of_a_rows_own_tokens(shop: Shop) -> None:
    options = {"logprobs": 20, "max_tokens": 4, "ignore_eos": True}
    requests = [shop.request(f"{name}", name, **options) for name in (None, "more", "fewer")]
    together = shop.run(*requests)
    for request, done in zip(requests, together, strict=True):
        (alone,) = shop.run(request)
        for entry, own in zip(done.logprobs, alone.logprobs, strict=True):
            assert [token for token, _ in entry.top] == [token for token, _ in own.top]
            for (_, got), (_, want) in zip(entry.top, own.top, strict=True):
                assert got == pytest.approx(want, abs=1e-4)


def test_penalties_count_an_adapters_tokens(shop: Shop) -> None:
    (done,) = shop.run(
        shop.request("a", "more", logit_bias=((TOOL, 1.5),), frequency_penalty=2.0, max_tokens=30)
    )
    assert done.token_ids.count(TOOL) < 30


def test_a_grammar_allows_the_bases_tokens_alone(shop: Shop) -> None:
    grammar = Grammar("regex", "[a-c]{3}")
    a, b, c = (shop.built.tokenizer.encode(letter)[0] for letter in "abc")
    own = shop.request("a", "more", grammar=grammar, **toward(TOOL, b))
    base = shop.request("b", grammar=grammar, **toward(c))
    fewer = shop.request("c", "fewer", grammar=grammar, **toward(a))
    assert [done.text for done in shop.run(own, base, fewer)] == ["bbb", "ccc", "aaa"]


@pytest.mark.parametrize("part", ["prompt", "stop_token_ids", "logit_bias", "eos_token_ids"])
def test_a_token_beyond_a_rows_vocabulary_is_refused(shop: Shop, part: str) -> None:
    beyond = {"more": V + NUM_ADDED, "fewer": V - NUM_ADDED, None: V}
    for name, token in beyond.items():
        request = shop.request("a", name)
        if part == "prompt":
            request = replace(request, prompt_token_ids=(1, token))
        elif part == "eos_token_ids":
            vocabulary = request.vocabulary or RequestVocabulary(V)
            ends = replace(vocabulary, eos_token_ids=frozenset((token,)))
            request = replace(request, vocabulary=ends)
        else:
            value: Any = (token,) if part == "stop_token_ids" else ((token, 1.0),)
            request = replace(request, sampling=replace(request.sampling, **{part: value}))
        with pytest.raises(ValueError, match=f"Token id {token}"):
            shop.built.engine.check(request)
