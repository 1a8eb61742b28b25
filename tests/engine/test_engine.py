"""The engine's step: what a request may ask, how it ends, and that it fails alone."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.engine.exploding import register_exploding_adapter

from weft.engine.build import BuiltEngine, build_engine
from weft.engine.config import EngineConfig
from weft.engine.offline import load_adapters, register_folder, run_requests
from weft.engine.plan import StepPlan
from weft.engine.runner import PendingStep
from weft.engine.sampler import NON_FINITE, Sampled
from weft.messages import EngineOutput, EngineRequest, SamplingParams
from weft_adapters.store import FolderStore

if TYPE_CHECKING:
    from tests.bench import Bench

PROMPT = tuple(range(40, 60))
KV_BLOCK_BYTES = 2 * 3 * 16 * 64 * 4  # of the dense bench: k and v, 3 layers, 16 tokens


@pytest.fixture
def small(dense: Bench) -> Iterator[tuple[BuiltEngine, dict[str, str]]]:
    """An engine with room for one request of 32 tokens: every block is used again at once."""
    built, digests = dense.build(max_model_len=32, kv_bytes=3 * KV_BLOCK_BYTES)
    assert built.memory.num_blocks == 3
    yield built, digests
    built.tiers.close()


@pytest.fixture
def roomy(dense: Bench) -> Iterator[tuple[BuiltEngine, dict[str, str]]]:
    built, digests = dense.build(max_model_len=128)
    yield built, digests
    built.tiers.close()


def create_request(
    name: str = "r", adapter: str | None = None, prompt: tuple[int, ...] = PROMPT, **sampling: Any
) -> EngineRequest:
    params = {"max_tokens": 8, "temperature": 0, "ignore_eos": True, **sampling}
    return EngineRequest(name, "tenant", prompt, SamplingParams(**params), adapter)


def assert_cache_is_finite(built: BuiltEngine) -> None:
    kv = built.engine._runner._kv
    assert all(bool(torch.isfinite(cache).all()) for cache in kv.tensors())


def step_until_output(built: BuiltEngine) -> list[EngineOutput]:
    """The first outputs; an adapter may have to arrive before them."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        outputs = built.engine.step()
        if outputs:
            return outputs
    raise AssertionError("no output came")


# ---- what can never run ----


def test_a_request_that_can_never_run_is_refused(
    roomy: tuple[BuiltEngine, dict[str, str]],
) -> None:
    engine = roomy[0].engine
    for prompt, max_tokens, message in [
        ((), 1, "prompt is empty"),
        ((1,) * 127, 2, "maximum context length is 128 tokens"),
        ((1,) * 200, 1, "has 200 prompt tokens and asks for up to 1 more"),
        ((1, 320), 1, "Token id 320 is outside the vocabulary of 320"),
        ((1, -1), 1, "Token id -1 is outside"),
    ]:
        with pytest.raises(ValueError, match=message):
            engine.add(create_request(prompt=prompt, max_tokens=max_tokens))
    assert not engine.has_work
    engine.add(create_request(prompt=(1,) * 127, max_tokens=1))


def test_an_id_in_use_is_refused_and_free_again_afterwards(
    roomy: tuple[BuiltEngine, dict[str, str]],
) -> None:
    built = roomy[0]
    built.engine.add(create_request())
    with pytest.raises(ValueError, match="r is already in use"):
        built.engine.add(create_request())
    built.engine.abort("r")
    assert run_requests(built, [create_request()])["r"].finish_reason == "length"


# ---- how a request ends ----


def test_usage_counts_the_prompt_and_every_token_that_was_kept(
    roomy: tuple[BuiltEngine, dict[str, str]],
) -> None:
    built, digests = roomy
    requests = [create_request("a"), create_request("b", digests["wide"], PROMPT[:3], max_tokens=1)]
    done = run_requests(built, requests)
    assert (done["a"].usage.num_prompt_tokens, done["a"].usage.num_completion_tokens) == (20, 8)
    assert (done["b"].usage.num_prompt_tokens, done["b"].usage.num_completion_tokens) == (3, 1)
    assert len(done["a"].token_ids) == 8
    assert {c.finish_reason for c in done.values()} == {"length"}
    counters = built.engine.counters
    assert (counters.num_prompt_tokens, counters.num_generation_tokens) == (23, 9)
    assert len(counters.time_to_first_token) == len(counters.queue_time) == 2
    assert len(counters.inter_token_latency) == 7


def test_usage_is_cumulative_and_text_and_tokens_are_deltas(
    roomy: tuple[BuiltEngine, dict[str, str]],
) -> None:
    built = roomy[0]
    built.engine.add(create_request(max_tokens=30))
    outputs = [output for _ in range(30) for output in built.engine.step()]
    assert [o.usage.num_completion_tokens for o in outputs] == list(range(1, 31))
    tokens = [token for o in outputs for token in o.token_ids]
    assert "".join(o.text for o in outputs) == built.tokenizer.decode(tokens)
    assert [o.finish_reason for o in outputs] == [None] * 29 + ["length"]


def test_the_end_of_text_token_is_counted_and_not_shown(dense: Bench, tmp_path: Path) -> None:
    built, _ = dense.build()
    tokens = run_requests(built, [create_request(max_tokens=20)])["r"].token_ids
    built.tiers.close()
    # a base whose end of text is the first new token after the fifth
    at = next(i for i in range(5, 20) if tokens[i] not in tokens[:i])
    shutil.copytree(dense.base_dir, tmp_path / "base")
    generation = tmp_path / "base" / "generation_config.json"
    generation.write_text(json.dumps({"eos_token_id": [tokens[at]]}))
    config = EngineConfig(tmp_path / "base", tmp_path / "store", device="cpu")
    other = build_engine(config)
    done = run_requests(other, [create_request(max_tokens=20, ignore_eos=False)])["r"]
    other.tiers.close()
    assert done.finish_reason == "stop"
    assert done.token_ids == tokens[: at + 1]
    assert done.usage.num_completion_tokens == at + 1


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_stop_string_ends_the_text_before_it(
    roomy: tuple[BuiltEngine, dict[str, str]], length: int
) -> None:
    built = roomy[0]
    whole = run_requests(built, [create_request(max_tokens=60)])["r"]
    stop = whole.text[20 : 20 + length]
    assert len(stop) == length
    done = run_requests(built, [create_request(max_tokens=60, stop=("not there", stop))])["r"]
    assert done.finish_reason == "stop"
    assert done.text == whole.text[: whole.text.index(stop)]
    num = done.usage.num_completion_tokens
    assert done.token_ids == whole.token_ids[:num]
    decode = built.tokenizer.decode
    assert stop not in decode(whole.token_ids[: num - 4])
    assert stop in decode(whole.token_ids[:num])


def test_a_stop_string_that_only_the_last_token_completes_is_a_stop(
    roomy: tuple[BuiltEngine, dict[str, str]],
) -> None:
    built = roomy[0]
    tokens = run_requests(built, [create_request(max_tokens=60)])["r"].token_ids
    decode = built.tokenizer.decode
    num = next(n for n in range(1, 61) if "\ufffd" in decode(tokens[:n]))
    # a broken character is held back, for a token that may mend it; at max_tokens none follows
    done = run_requests(built, [create_request(max_tokens=num, stop=("\ufffd",))])["r"]
    assert done.finish_reason == "stop"
    assert done.text == decode(tokens[: num - 1])


def test_observations_that_nobody_takes_are_bounded(
    roomy: tuple[BuiltEngine, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft.engine.metrics.MAX_OBSERVATIONS", 3)
    built = roomy[0]
    run_requests(built, [create_request(str(i), max_tokens=4) for i in range(5)])
    counters = built.engine.counters
    for values in (
        counters.time_to_first_token, counters.inter_token_latency, counters.queue_time,
    ):  # fmt: skip
        assert len(values) == 3
    assert counters.num_generation_tokens == 20


def test_an_abort_ends_a_request_wherever_it_is(
    roomy: tuple[BuiltEngine, dict[str, str]],
) -> None:
    built, digests = roomy
    engine = built.engine
    load_adapters(built, [digests["small"]])
    engine.add(create_request("running", digests["small"]))
    engine.step()
    engine.step()
    engine.add(create_request("waiting", digests["mlp"]))
    [running], [waiting] = engine.abort("running"), engine.abort("waiting")
    assert running.is_last
    assert waiting.is_last
    assert running.finish_reason == waiting.finish_reason == "abort"
    assert running.usage.num_completion_tokens == 2
    assert waiting.usage.num_completion_tokens == 0
    assert engine.abort("running") == []
    assert engine.abort("never seen") == []
    assert not engine.has_work
    assert not engine.adapters.held
    engine.integrity()


def test_an_abort_gives_out_the_text_that_was_held_back(
    roomy: tuple[BuiltEngine, dict[str, str]],
) -> None:
    built = roomy[0]
    whole = run_requests(built, [create_request()])["r"]
    # all of the text could be the beginning of this stop string
    built.engine.add(create_request(stop=(whole.text + "and more",)))
    outputs = [output for _ in range(4) for output in built.engine.step()]
    [last] = built.engine.abort("r")
    given = "".join(output.text for output in outputs)
    assert given + last.text == built.tokenizer.decode(whole.token_ids[:4])
    assert last.text


# ---- adapters that cannot be loaded ----


def test_an_adapter_that_is_not_stored_fails_its_request_with_the_reason(
    roomy: tuple[BuiltEngine, dict[str, str]],
) -> None:
    built = roomy[0]
    digest = "sha256:" + "0" * 64
    done = run_requests(built, [create_request("bad", digest), create_request("good")])
    assert done["bad"].finish_reason == "error"
    assert done["bad"].error is not None
    assert "could not be loaded: the store has no adapter" in done["bad"].error
    assert done["bad"].usage.num_completion_tokens == 0
    assert done["good"].finish_reason == "length"
    assert not built.engine.has_work


def test_changed_bytes_fail_the_request_and_mended_ones_are_tried_anew(
    dense: Bench, tmp_path: Path
) -> None:
    config = EngineConfig(dense.base_dir, tmp_path / "store", device="cpu", max_model_len=64)
    built = build_engine(config)
    store = FolderStore(tmp_path / "store")
    digest = register_folder(built, store, dense.oracle.adapter_dirs["small"])
    path = store.open(digest).tensors_path
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    failed = run_requests(built, [create_request(adapter=digest)])["r"]
    assert failed.finish_reason == "error"
    assert failed.error is not None
    assert "the stored bytes have digest" in failed.error
    path.write_bytes(good)
    assert run_requests(built, [create_request(adapter=digest)])["r"].finish_reason == "length"
    built.tiers.close()


# ---- non-finite logits ----


def test_non_finite_logits_fail_that_request_alone(
    dense: Bench, roomy: tuple[BuiltEngine, dict[str, str]], tmp_path: Path
) -> None:
    built, digests = roomy
    bad = register_exploding_adapter(dense, built, tmp_path / "bad")
    others = [create_request(name, digests.get(name)) for name in ("base", "small", "wide")]
    want = run_requests(built, others)
    load_adapters(built, [bad])
    done = run_requests(built, [create_request("bad", bad), *others])
    assert done["bad"].finish_reason == "error"
    assert done["bad"].error is not None
    assert "non-finite logits" in done["bad"].error
    assert done["bad"].usage.num_completion_tokens == 0
    for request in others:
        assert done[request.request_id].token_ids == want[request.request_id].token_ids
    assert_cache_is_finite(built)


def test_blocks_of_a_failed_request_are_clean_for_the_next(
    dense: Bench, small: tuple[BuiltEngine, dict[str, str]], tmp_path: Path
) -> None:
    built, _ = small
    want = run_requests(built, [create_request(prompt=(5, 6, 7))])["r"].token_ids
    bad = register_exploding_adapter(dense, built, tmp_path / "bad")
    for _ in range(3):  # until each block has been the failed request's
        done = run_requests(built, [create_request("bad", bad)])["bad"]
        assert done.finish_reason == "error"
        assert_cache_is_finite(built)
        again = run_requests(built, [create_request(prompt=(5, 6, 7))])["r"]
        assert again.token_ids == want


def test_a_prompt_that_turns_non_finite_fails_at_its_first_chunk(
    dense: Bench, tmp_path: Path
) -> None:
    # were it found only with the first token, an abort or a preemption before that would hand
    # blocks with NaN to the next request
    built, _ = dense.build(max_running=1, max_step_tokens=8, max_model_len=32)
    bad = register_exploding_adapter(dense, built, tmp_path / "bad")
    built.engine.add(create_request(adapter=bad))
    outputs = step_until_output(built)
    assert [o.finish_reason for o in outputs] == ["error"]
    assert built.engine.counters.num_steps == 1
    assert_cache_is_finite(built)
    built.tiers.close()


def test_blocks_of_every_choice_that_fails_in_a_step_are_cleaned(
    roomy: tuple[BuiltEngine, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = roomy[0].engine
    engine.add(create_request(n=3))
    while len(engine.scheduler.running) < 3:
        engine.step()
    plan_blocks: set[int] = set()
    cleaned: list[int] = []

    def fail_all(plan: StepPlan, adapters: object) -> PendingStep:
        for req in engine.scheduler.running:
            plan_blocks.update(engine.scheduler.blocks.private(req.blocks))
        return PendingStep(plan.scheduled, lambda: [Sampled(None, NON_FINITE)] * 3)

    monkeypatch.setattr(engine._runner, "launch", fail_all)
    monkeypatch.setattr(engine._runner, "clean", cleaned.extend)
    outputs = engine.step()
    assert [output.finish_reason for output in outputs] == ["error"] * 3
    assert [output.is_last for output in outputs] == [False, False, True]
    assert len(plan_blocks) >= 3
    assert set(cleaned) == plan_blocks
    assert not engine.has_work
