"""The sides of `benchmarks.peers`: Weft, transformers + PEFT, and vLLM in a process of its own.

A side runs one batch of greedy requests, all there at once, each to its full length, and says how
long that took. Request i uses adapter `i % num_adapters`; with 0 adapters the base alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import torch
from benchmarks.peft_mixed_batch import load_peft

from weft.engine.build import BuiltEngine
from weft.engine.offline import run_requests
from weft.messages import EngineRequest, SamplingParams

Prompts = Sequence[Sequence[int]]
Tokens = list[list[int]]


class Side(Protocol):
    name: str

    def run(self, prompts: Prompts, num_adapters: int, output_len: int) -> tuple[float, Tokens]:
        """Seconds, and the new tokens by request."""

    def describe(self) -> dict[str, object]:
        """Version and settings."""

    def close(self) -> None: ...


class WeftSide:
    """Our engine, adapters on the device before the start."""

    name = "weft"

    def __init__(self, built: BuiltEngine, digests: Sequence[str]) -> None:
        self._built, self._digests = built, digests
        self._num_runs = 0

    def run(self, prompts: Prompts, num_adapters: int, output_len: int) -> tuple[float, Tokens]:
        self._num_runs += 1
        # the salt keeps a run from finding the prompts of the one before in a prefix cache
        salt = str(self._num_runs)
        sampling = SamplingParams(output_len, temperature=0, ignore_eos=True)
        requests = [
            EngineRequest(
                f"{salt}-{i}", "bench", tuple(prompt), sampling,
                self._digests[i % num_adapters] if num_adapters else None, cache_salt=salt,
            )
            for i, prompt in enumerate(prompts)
        ]  # fmt: skip
        started = time.monotonic()
        completions = run_requests(self._built, requests)
        wall_s = time.monotonic() - started
        return wall_s, [completions[request.request_id].token_ids for request in requests]

    def describe(self) -> dict[str, object]:
        return {"threads": torch.get_num_threads()}

    def close(self) -> None:
        self._built.tiers.close()


class PeftSide:
    """PEFT's own way to serve several adapters in one batch: `generate(adapter_names=[...])`; the
    base alone with its adapters disabled."""

    name = "peft"

    def __init__(self, base_dir: Path, folders: list[Path]) -> None:
        self._model = load_peft(base_dir, folders)

    def run(self, prompts: Prompts, num_adapters: int, output_len: int) -> tuple[float, Tokens]:
        input_ids = torch.tensor([list(prompt) for prompt in prompts])
        options: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "max_new_tokens": output_len,
            "min_new_tokens": output_len,
            "do_sample": False,
            "pad_token_id": 0,
        }
        if num_adapters:
            options["adapter_names"] = [str(i % num_adapters) for i in range(len(prompts))]
        generate: Any = self._model.generate  # PEFT's has no annotations
        no_adapter = contextlib.nullcontext() if num_adapters else self._model.disable_adapter()
        with torch.inference_mode(), no_adapter:
            started = time.monotonic()
            out = generate(**options)
            wall_s = time.monotonic() - started
        return wall_s, out[:, input_ids.shape[1] :].tolist()

    def describe(self) -> dict[str, object]:
        return {"threads": torch.get_num_threads()}

    def close(self) -> None:
        pass


class _VllmProcess:
    """One `vllm_side.py`; its log goes to a file, which is shown when it ends too early."""

    def __init__(self, python: str, arguments: list[str], env: dict[str, str], log: Path) -> None:
        self._log = log
        read_fd, write_fd = os.pipe()
        command = [python, str(Path(__file__).with_name("vllm_side.py"))]
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [*command, "--reply-fd", str(write_fd), *arguments], env=env, text=True,
                pass_fds=[write_fd], stdin=subprocess.PIPE, stdout=output, stderr=output,
            )  # fmt: skip
        os.close(write_fd)
        self._replies = os.fdopen(read_fd)
        self.settings: dict[str, object] = self._receive()["settings"]

    @property
    def _commands(self) -> IO[str]:
        assert self._process.stdin is not None
        return self._process.stdin

    def ask(self, message: dict[str, object]) -> dict[str, Any]:
        self._commands.write(json.dumps(message) + "\n")
        self._commands.flush()
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        line = self._replies.readline()
        if not line:
            end = "\n".join(self._log.read_text(errors="replace").splitlines()[-30:])
            raise RuntimeError(f"vLLM ended with status {self._process.wait()}:\n{end}")
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        self._commands.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()


class VllmSide:
    """vLLM twice: an engine with LoRA, and one without for the base alone, as nobody who serves no
    adapters would turn LoRA on."""

    name = "vllm"

    def __init__(
        self, base_dir: Path, folders: list[Path], python: str, log_dir: Path, env: dict[str, str]
    ) -> None:
        self._folders = [str(folder) for folder in folders]
        arguments = ["--base", str(base_dir)]
        offline = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        env = {**os.environ, **offline, **env}
        self._plain = _VllmProcess(python, arguments, env, log_dir / "vllm-plain.log")
        self._lora = _VllmProcess(python, [*arguments, "--lora"], env, log_dir / "vllm-lora.log")

    def run(self, prompts: Prompts, num_adapters: int, output_len: int) -> tuple[float, Tokens]:
        folders = [
            self._folders[i % num_adapters] if num_adapters else None for i in range(len(prompts))
        ]
        process = self._lora if num_adapters else self._plain
        prompts = [list(prompt) for prompt in prompts]
        reply = process.ask({"prompts": prompts, "adapters": folders, "output_len": output_len})
        return reply["wall_s"], reply["tokens"]

    def describe(self) -> dict[str, object]:
        return {"without_lora": self._plain.settings, "with_lora": self._lora.settings}

    def close(self) -> None:
        self._plain.close()
        self._lora.close()
