"""What fewer bits cost and save: weights of int8 and int4, and an int8 KV cache.

On the demo base (trained, 8 experts) and on a dense base of random weights, for each format: bytes
of the weights and of a token's keys and values; the perplexity, the mean KL divergence of the
distribution from float32's and how often the best token is the same; tokens/s of one load. Texts
are held out: passages of a package of the standard library that the demo base did not read, and
answers of its skills to prompts that are kept from training. The random base has no perplexity
worth the name. Speed runs go round the formats `--repeats` times, the best counts.

    python -m benchmarks.quantization [--json-dir benchmarks/results]
"""

from __future__ import annotations

import argparse
import random
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks import report
from benchmarks.models import create_dense_base, quiet_libraries
from torch import Tensor

from weft.demo import BASE_DIR
from weft.demo.skills import SKILLS
from weft.demo.tokens import END_OF_TEXT_ID, Document, Message, encode_chat
from weft.engine.active import PackedBatch
from weft.engine.bench import Load, run_load
from weft.engine.build import BuiltEngine, build_engine
from weft.engine.config import EngineConfig, resolve_kv_dtype
from weft.engine.kv_cache import create_kv_cache
from weft.engine.memory_plan import kv_token_bytes
from weft.engine.model.decoder import Batch
from weft_kernels.lora import LoraBatch

NAME = "quantization"
BLOCK_SIZE = 16
MAX_MODEL_LEN = 512
PASSAGE_LEN = 256
FORMATS: dict[str, dict[str, Any]] = {
    "float32": {},
    "int8": {"quantization": "int8"},
    "int4": {"quantization": "int4"},
    "float32, KV int8": {"kv_dtype": "int8"},
    "int8, KV int8": {"quantization": "int8", "kv_dtype": "int8"},
    "int4, KV int8": {"quantization": "int4", "kv_dtype": "int8"},
}


@dataclass(frozen=True)
class Accuracy:
    """Over all tokens that count: perplexity, mean KL divergence in nats, share of equal bests."""

    perplexity: float
    kl_from_float32: float
    top1_agreement: float


def heldout_passages(num: int, seed: int) -> list[Document]:
    """Passages of asyncio's sources; the base read the library's single modules only."""
    folder = Path(sysconfig.get_paths()["stdlib"]) / "asyncio"
    text = b"\n".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    rng, documents = random.Random(seed), []
    for _ in range(num):
        start = rng.randrange(len(text) - PASSAGE_LEN)
        token_ids = [END_OF_TEXT_ID, *text[start : start + PASSAGE_LEN - 1]]
        documents.append(Document(token_ids, [0.0] + [1.0] * (PASSAGE_LEN - 1)))
    return documents


def heldout_answers(num_per_skill: int, seed: int) -> list[Document]:
    """Conversations that neither the base nor an adapter was trained on; the skill is named."""
    rng = random.Random(seed)
    documents = []
    for name, skill in sorted(SKILLS.items()):
        for _ in range(num_per_skill):
            example = skill.heldout_example(rng)
            turns = [Message("user", example.prompt), Message("assistant", example.answer)]
            documents.append(encode_chat([Message("system", name), *turns]))
    return documents


def target_logits(built: BuiltEngine, document: Document, kv_dtype: torch.dtype) -> Tensor:
    """Float32 `[N, V]` before each of the N tokens that count, through a KV cache of its own."""
    model = built.decoder.config
    num_tokens = len(document.token_ids)
    blocks = list(range(1, 2 + num_tokens // BLOCK_SIZE))
    shape = (BLOCK_SIZE, model.num_kv_heads, model.head_dim)
    cpu = torch.device("cpu")
    kv = create_kv_cache(model.num_layers, len(blocks) + 1, shape, kv_dtype, cpu)
    spans = [(0, num_tokens, num_tokens)]
    batch = Batch(
        tokens_T=torch.tensor(document.token_ids),
        positions_T=torch.arange(num_tokens),
        kv_slots_T=BLOCK_SIZE + torch.arange(num_tokens),
        logit_rows=torch.tensor([i - 1 for i, weight in enumerate(document.weights) if weight]),
        attention=built.decoder.backend.create_attention(
            spans, [blocks], BLOCK_SIZE, cpu, built.decoder.windows
        ),
        adapters=PackedBatch({}, LoraBatch()),
    )
    return built.decoder.forward(batch, kv)


def all_logits(built: BuiltEngine, documents: Sequence[Document]) -> Tensor:
    kv_dtype = torch.int8 if built.info.kv_dtype == "int8" else torch.float32
    return torch.cat([target_logits(built, document, kv_dtype) for document in documents])


def accuracy(got: Tensor, want: Tensor, targets: Tensor) -> Accuracy:
    """Of logits `[N, V]` against float32's; targets `[N]`."""
    log_p, log_q = want.double().log_softmax(-1), got.double().log_softmax(-1)
    loss = -log_q.gather(1, targets[:, None]).mean()
    return Accuracy(
        perplexity=float(loss.exp()),
        kl_from_float32=float((log_p.exp() * (log_p - log_q)).sum(-1).mean()),
        top1_agreement=float((got.argmax(-1) == want.argmax(-1)).double().mean()),
    )


def best_speeds(engines: Mapping[str, BuiltEngine], load: Load, repeats: int) -> dict[str, float]:
    """Output tokens/s by format; all of them once, `repeats` times over."""
    best = dict.fromkeys(engines, 0.0)
    for i in range(repeats + 1):
        for name, built in engines.items():
            run = run_load(built, load, built.decoder.config.vocab_size, f"{name}-{i}")
            if i > 0:  # the first round is the warm-up
                best[name] = max(best[name], run.output_tokens_per_s)
    return best


def build(base_dir: Path, root: Path, options: argparse.Namespace) -> dict[str, BuiltEngine]:
    """An engine for each format."""
    engines = {}
    for name, formats in FORMATS.items():
        config = EngineConfig(
            base_dir, root / "store", dtype="float32", device="cpu", max_running=options.requests,
            max_step_tokens=max(512, options.requests), prefix_cache=False,
            max_model_len=MAX_MODEL_LEN, num_threads=options.threads, **formats,
        )  # fmt: skip
        engines[name] = build_engine(config)
        report.say(f"{base_dir.name}: {name} is loaded")
    return engines


def accuracies(
    engines: Mapping[str, BuiltEngine], documents: Sequence[Document]
) -> dict[str, Accuracy]:
    """By format, on the same documents."""
    targets = torch.tensor(
        [t for d in documents for t, w in zip(d.token_ids, d.weights, strict=True) if w]
    )
    want = all_logits(engines["float32"], documents)
    return {
        name: accuracy(all_logits(built, documents), want, targets)
        for name, built in engines.items()
    }


def measure(
    base_dir: Path, root: Path, texts: Mapping[str, Sequence[Document]], options: argparse.Namespace
) -> dict[str, dict[str, object]]:
    """The figures of one base by format."""
    engines = build(base_dir, root, options)
    load = Load(options.requests, options.input_len, options.output_len)
    speeds = best_speeds(engines, load, options.repeats)
    on_texts = {text: accuracies(engines, documents) for text, documents in texts.items()}
    results: dict[str, dict[str, object]] = {}
    for name, built in engines.items():
        kv_dtype = resolve_kv_dtype(built.info.kv_dtype or "auto", torch.float32)
        results[name] = {
            "weight_bytes": built.info.memory_bytes["weights"],
            "kv_bytes_per_token": kv_token_bytes(built.decoder.config, kv_dtype),
            **{text: vars(figures[name]) for text, figures in on_texts.items()},
            "output_tokens_per_s": speeds[name],
        }
        built.tiers.close()
    return results


def print_result(result: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    columns = ["format", "weights MB", "KV bytes/token", "perplexity", "KL", "top-1"]
    columns += ["answers: KL", "top-1", "tokens/s"]
    for base, formats in result.items():
        rows = []
        for name, f in formats.items():
            text, answers = f["text"], f["answers"]
            cells = [name, f["weight_bytes"] / 1e6, f["kv_bytes_per_token"]]
            cells += [f"{text['perplexity']:.4f}" if base == "demo" else ""]
            for on in (text, answers):
                cells += [on["kl_from_float32"], f"{on['top1_agreement']:.2%}"]
            rows.append([*cells, f["output_tokens_per_s"]])
        report.print_table(f"Fewer bits: {base}", columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=100, help=f"of {PASSAGE_LEN} tokens")
    parser.add_argument("--conversations", type=int, default=20, help="for each skill")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--input-len", type=int, default=64)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json-dir", type=Path)
    options = parser.parse_args()
    quiet_libraries()
    texts = {
        "text": heldout_passages(options.passages, options.seed),
        "answers": heldout_answers(options.conversations, options.seed),
    }
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as folder:
        root = Path(folder)
        create_dense_base(root / "dense")
        bases = {"demo": BASE_DIR, "dense": root / "dense"}
        result = {name: measure(base_dir, root, texts, options) for name, base_dir in bases.items()}
    print_result(result)
    own = {key: value for key, value in vars(options).items() if key != "json_dir"}
    models = "demo base; qwen3 dense, hidden 512, 8 layers, random weights"
    settings = report.settings(**own, models=models)
    report.write_json(options.json_dir, NAME, {**result, "settings": settings})


if __name__ == "__main__":
    main()
