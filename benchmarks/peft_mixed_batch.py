"""Weft against PEFT's mixed batches: the same model, adapters, prompts and threads, in one run.

PEFT runs `generate(adapter_names=[...])`, its own way to serve several adapters in one batch. Both
sides decode greedily without an end-of-text; each runs `--repeats` times in turn, the best counts.

    python benchmarks/peft_mixed_batch.py [--json-dir benchmarks/results]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from benchmarks.models import VOCAB_SIZE, create_adapters, create_dense_base, quiet_libraries
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from weft.engine.bench import Load, Run, create_requests, measure, run_load
from weft.engine.build import BuiltEngine, build_engine
from weft.engine.config import EngineConfig
from weft.engine.offline import load_adapters, register_folder
from weft_adapters.store import FolderStore

NUM_REQUESTS, INPUT_LEN, OUTPUT_LEN, NUM_ADAPTERS = 32, 64, 64, 16


def load_peft(base_dir: Path, folders: list[Path]) -> PeftModel:
    model = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
    peft_model = PeftModel.from_pretrained(model, str(folders[0]), adapter_name="0")
    for i, folder in enumerate(folders[1:], start=1):
        peft_model.load_adapter(str(folder), adapter_name=str(i))
    return peft_model.eval()


def run_peft(model: PeftModel, prompts: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Seconds and the new tokens `[requests, OUTPUT_LEN]` of one mixed batch."""
    names = [str(i % NUM_ADAPTERS) for i in range(len(prompts))]
    started = time.monotonic()
    with torch.inference_mode():
        generate: Any = model.generate  # PEFT's has no annotations
        out = generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            adapter_names=names,
            max_new_tokens=OUTPUT_LEN,
            min_new_tokens=OUTPUT_LEN,
            do_sample=False,
            pad_token_id=0,
        )
    return time.monotonic() - started, out[:, prompts.shape[1] :]


def create_engine(
    base_dir: Path, store_dir: Path, folders: list[Path], num_requests: int = NUM_REQUESTS
) -> tuple[BuiltEngine, Load]:
    config = EngineConfig(
        base_dir,
        store_dir,
        dtype="float32",
        device="cpu",
        max_running=num_requests,
        max_adapters_in_batch=NUM_ADAPTERS,
    )
    built = build_engine(config)
    store = FolderStore(store_dir)
    digests = tuple(register_folder(built, store, folder) for folder in folders)
    load_adapters(built, digests)
    return built, Load(num_requests, INPUT_LEN, OUTPUT_LEN, digests)


def num_equal_tokens(run: Run, peft_tokens: torch.Tensor) -> int:
    """How many requests give PEFT's tokens to the end (near-ties may part two of them)."""
    ours = [c.token_ids for _, c in sorted(run.completions.items(), key=_request_number)]
    return sum(o == p.tolist() for o, p in zip(ours, peft_tokens, strict=True))


def _request_number(item: tuple[str, object]) -> int:
    return int(item[0].rpartition("-")[2])


def compare(root: Path, repeats: int) -> dict[str, object]:
    base_dir = root / "base"
    create_dense_base(base_dir)
    folders = create_adapters(base_dir, root, NUM_ADAPTERS)
    built, load = create_engine(base_dir, root / "store", folders)
    peft_model = load_peft(base_dir, folders)
    requests = create_requests(load, VOCAB_SIZE, "r")
    prompts = torch.tensor([request.prompt_token_ids for request in requests])
    run_load(built, Load(NUM_REQUESTS, INPUT_LEN, 2, load.digests), VOCAB_SIZE, "warm-up")
    run_peft(peft_model, prompts[:2])
    peft_s, weft_runs = [], []
    for i in range(repeats):
        weft_runs.append(run_load(built, load, VOCAB_SIZE, f"run{i}"))
        seconds, peft_tokens = run_peft(peft_model, prompts)
        peft_s.append(seconds)
    figures = measure(built, load, repeats)
    built.tiers.close()
    ours = max(run.output_tokens_per_s for run in weft_runs)
    theirs = NUM_REQUESTS * OUTPUT_LEN / min(peft_s)
    return {
        "weft_output_tokens_per_s": ours,
        "peft_output_tokens_per_s": theirs,
        "ratio": ours / theirs,
        "requests_with_equal_tokens": num_equal_tokens(weft_runs[-1], peft_tokens),
        "weft": figures,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json-dir", type=Path)
    options = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as root:
        result = compare(Path(root), options.repeats)
    now = datetime.now(UTC)
    result["settings"] = {
        "date": now.isoformat(timespec="seconds"),
        "model": "qwen3 dense, hidden 512, 8 layers, random weights, float32",
        "load": f"{NUM_REQUESTS} requests, {INPUT_LEN} in, {OUTPUT_LEN} out, {NUM_ADAPTERS} "
        "adapters of ranks 8/16/32 on all linear layers",
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "weft")},
    }
    table = Table("figure", "value", title="Weft against PEFT's mixed batch")
    for key, value in result.items():
        table.add_row(key, f"{value:.4g}" if isinstance(value, float) else json.dumps(value))
    Console().print(table)
    if options.json_dir is not None:
        options.json_dir.mkdir(parents=True, exist_ok=True)
        path = options.json_dir / f"peft_mixed_batch-{now:%Y-%m-%d}.json"
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
