"""The vLLM side of `benchmarks.peers`, run by the Python of an environment that has vLLM.

It uses vLLM's offline LLM API and nothing of Weft. The parent writes one JSON object a line to
standard input and reads one a line from the descriptor `--reply-fd` (vLLM itself logs to standard
output):

    -> {"prompts": [[token id, ...], ...], "adapters": [folder or null, ...], "output_len": 64}
    <- {"wall_s": 1.23, "tokens": [[token id, ...], ...]}

The first line out is {"settings": {...}}: what was passed to vLLM and its version.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO


def engine_settings(options: argparse.Namespace) -> dict[str, object]:
    """Arguments of `vllm.LLM`. Prefix caching is off: runs repeat their prompts."""
    settings: dict[str, object] = {
        "model": options.base,
        "dtype": "float32",
        "max_model_len": options.max_model_len,
        "max_num_seqs": options.max_num_seqs,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "enable_prefix_caching": False,
        "disable_log_stats": True,
        "seed": 0,
    }
    if options.lora:
        lora = {"enable_lora": True, "max_loras": options.max_loras}
        settings |= lora | {"max_lora_rank": options.max_lora_rank}
    return settings


def run(llm: Any, request: dict[str, Any], numbers: dict[str, int]) -> dict[str, object]:
    """One timed batch, greedy and to its full length. `numbers` are vLLM's ids of the adapters by
    folder; an id once given stays."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    sampling = SamplingParams(
        temperature=0.0, max_tokens=request["output_len"], ignore_eos=True, detokenize=False
    )
    prompts = [{"prompt_token_ids": ids} for ids in request["prompts"]]
    lora = [
        folder and LoRARequest(folder, numbers.setdefault(folder, len(numbers) + 1), folder)
        for folder in request["adapters"]
    ]
    started = time.monotonic()
    outputs = llm.generate(
        prompts, sampling, use_tqdm=False, lora_request=lora if any(lora) else None
    )
    wall_s = time.monotonic() - started
    return {"wall_s": wall_s, "tokens": [list(o.outputs[0].token_ids) for o in outputs]}


def environment() -> dict[str, str]:
    wanted = ("VLLM_", "OMP_", "KMP_", "LD_PRELOAD", "TORCHINDUCTOR_")
    chosen = {k: v for k, v in sorted(os.environ.items()) if k.startswith(wanted)}
    # of files only the names, which say what was loaded; their folders are the machine's business
    return {
        key: ":".join(Path(part).name for part in value.split(":")) for key, value in chosen.items()
    }


def reply(stream: TextIO, message: dict[str, object]) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--reply-fd", type=int, required=True)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--max-loras", type=int, default=16)
    parser.add_argument("--max-lora-rank", type=int, default=32)
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--max-num-seqs", type=int, default=32)
    parser.add_argument("--max-num-batched-tokens", type=int, default=2048)
    options = parser.parse_args()
    import torch
    import vllm

    settings = engine_settings(options)
    llm = vllm.LLM(**settings)
    out = os.fdopen(options.reply_fd, "w")
    described: dict[str, object] = {
        "versions": {"vllm": vllm.__version__, "torch": torch.__version__},
        "engine": {key: value for key, value in settings.items() if key != "model"},
        "environment": environment(),
        "threads": torch.get_num_threads(),
    }
    reply(out, {"settings": described})
    numbers: dict[str, int] = {}
    for line in sys.stdin:
        reply(out, run(llm, json.loads(line), numbers))


if __name__ == "__main__":
    main()
