"""What a version answers when nothing else runs, and how much its answers may be departed from.

Tokens are equal when they are identical up to a position where the oracle (transformers + PEFT) has
two best logits, or the last chosen and the next router score, closer than 1e-4. Such positions are
counted and may be 0.5 % at most.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from weft.engine.build import build_engine
from weft.engine.config import EngineConfig
from weft.engine.offline import run_requests
from weft.messages import EngineRequest, SamplingParams
from weft_adapters.store import FolderStore

NEAR_TIE = 1e-4
MAX_NEAR_TIES = 0.005  # of all positions


@dataclass(slots=True)
class Verdicts:
    """The outcome over many requests; `mismatches` are sentences."""

    num_positions: int = 0
    num_near_ties: int = 0
    mismatches: list[str] = field(default_factory=list)

    @property
    def are_near_ties_rare(self) -> bool:
        return self.num_near_ties <= MAX_NEAR_TIES * self.num_positions

    def figures(self) -> dict[str, object]:
        return {
            "tokens_compared": self.num_positions,
            "near_ties": self.num_near_ties,
            "mismatches": len(self.mismatches),
            "first_mismatches": self.mismatches[:5],
        }


class Isolated:
    """An engine that runs one request at a time, with a store that forgets nothing."""

    def __init__(self, base_dir: Path, store_dir: Path, max_tokens: int) -> None:
        self._base_dir = base_dir
        self.store = FolderStore(store_dir)
        self._max_tokens = max_tokens
        config = EngineConfig(
            base_dir, store_dir, dtype="float32", device="cpu", max_running=1, max_model_len=128
        )
        self._built = build_engine(config)
        self._answers: dict[tuple[str | None, tuple[int, ...]], list[int]] = {}

    def answer(self, digest: str | None, prompt: tuple[int, ...]) -> list[int]:
        """The greedy answer of `max_tokens` tokens."""
        key = (digest, prompt)
        if key not in self._answers:
            number = str(len(self._answers))
            sampling = SamplingParams(self._max_tokens, temperature=0, ignore_eos=True)
            # a salt of its own: not even its own prefixes come from a cache
            request = EngineRequest(number, "t", prompt, sampling, digest, cache_salt=number)
            completion = run_requests(self._built, [request])[number]
            if completion.error is not None:
                raise RuntimeError(completion.error)
            self._answers[key] = completion.token_ids
        return self._answers[key]

    def judge(
        self, verdicts: Verdicts, label: str, digest: str | None, prompt: tuple[int, ...],
        got: Sequence[int],
    ) -> None:  # fmt: skip
        """Compare `got`, which may be a prefix, with the isolated answer."""
        want = self.answer(digest, prompt)
        same = next((i for i, (g, w) in enumerate(zip(got, want, strict=False)) if g != w), None)
        verdicts.num_positions += len(got) if same is None else same + 1
        if same is None:
            return
        margin = self._margin(digest, [*prompt, *want[:same]])
        if margin < NEAR_TIE:
            verdicts.num_near_ties += 1
            return
        verdicts.mismatches.append(
            f"token {same} of request {label} for {digest} is {got[same]}, alone it is "
            f"{want[same]}; the oracle's margin is {margin:.2e}"
        )

    @torch.inference_mode()
    def _margin(self, digest: str | None, token_ids: list[int]) -> float:
        """How close the oracle is to another choice after `token_ids`: of token, or of expert."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: Any = AutoModelForCausalLM.from_pretrained(self._base_dir, dtype=torch.float32)
            if digest is not None:
                folder = self.store.open(digest).config_path.parent
                model = PeftModel.from_pretrained(model, str(folder))
        is_moe = getattr(model.config, "num_experts", None) is not None
        options = {"output_router_logits": True} if is_moe else {}
        out = model.eval()(torch.tensor([token_ids]), **options)
        best, second = out.logits[0, -1].topk(2).values.tolist()
        margins = [best - second]
        for scores in out.router_logits if is_moe else ():
            top = scores.topk(model.config.num_experts_per_tok + 1, dim=-1).values
            margins.append(float((top[:, -2] - top[:, -1]).min()))
        return float(min(margins))

    def close(self) -> None:
        self._built.tiers.close()
