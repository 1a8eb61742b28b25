"""Embeddings, heads and tokens of adapters' own beside Triton's kernels, as beside torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from benchmarks.models import third_party_warnings_ignored
from tests.engine.cuda.conftest import IS_INTERPRETED
from tests.engine.vocabulary_forms import BOTH_ENDS, NUM_ADDED, Q, Vocabulary
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from weft.engine.offline import load_adapters, register_folder, run_requests
from weft.messages import EngineRequest, RequestVocabulary, SamplingParams
from weft_adapters.store import FolderStore

if TYPE_CHECKING:
    from tests.bench import Bench

pytestmark = [] if IS_INTERPRETED else [pytest.mark.gpu]

NUM_TOKENS = 4 if IS_INTERPRETED else 32
SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
}
ADAPTERS = {
    "added": Vocabulary(NUM_ADDED, target_modules=[*BOTH_ENDS, *Q]),
    "saved": Vocabulary(target_modules=Q, modules_to_save=["lm_head"]),
    "no layer": Vocabulary(target_modules=["embed_tokens"]),
}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, create_bench: Callable[..., Bench]) -> Bench:
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM
    config = AutoConfig.for_model("qwen3", **SIZES)
    model: PreTrainedModel = auto.from_config(config)
    bench = create_bench(tmp_path_factory.mktemp("vocabulary"), model, {})
    for seed, (name, vocabulary) in enumerate(ADAPTERS.items()):
        with third_party_warnings_ignored():
            base = auto.from_pretrained(bench.base_dir, dtype=torch.float32)
            vocabulary.build(base, bench.root / name, seed)
    return bench


def run(bench: Bench, **options: Any) -> dict[str, list[int]]:
    built, _ = bench.build(max_running=6, **options)
    store = FolderStore(bench.root / "store")
    digests = {name: register_folder(built, store, bench.root / name) for name in ADAPTERS}
    load_adapters(built, digests.values())
    requests = []
    for i, name in enumerate([None, *ADAPTERS, "added", None]):
        is_added = name == "added"
        num_tokens = SIZES["vocab_size"] + NUM_ADDED
        prompt = [(7 * i + 31 * j) % 256 for j in range(3 + 2 * i)]
        # one that the host samples, and the others
        sampling = SamplingParams(
            NUM_TOKENS, temperature=0, ignore_eos=True, logprobs=2 if i % 2 else None
        )
        requests.append(
            EngineRequest(
                f"{i}:{name}",
                "t",
                (*prompt, num_tokens - 3) if is_added else tuple(prompt),
                sampling,
                None if name is None else digests[name],
                vocabulary=RequestVocabulary(num_tokens) if is_added else None,
            )
        )
    completions = run_requests(built, requests)
    built.tiers.close()
    return {key: completion.token_ids for key, completion in completions.items()}


@pytest.mark.slow
@pytest.mark.parametrize("is_async", [True, pytest.param(False, marks=pytest.mark.verify)])
def test_rows_with_vocabularies_of_their_own_get_torchs_tokens(own: Bench, is_async: bool) -> None:
    device = "cpu" if IS_INTERPRETED else "cuda"
    got = run(own, kernels="triton", device=device, async_scheduling=is_async)
    want = run(own, kernels="torch", device="cpu")
    assert got == want
    assert any(token >= SIZES["vocab_size"] for ids in got.values() for token in ids)
