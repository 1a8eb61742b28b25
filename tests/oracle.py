"""The oracle, transformers + PEFT, one request at a time, and what equal tokens are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from benchmarks.models import third_party_warnings_ignored
from torch import Tensor
from transformers import AutoModelForCausalLM

# these models are tiny: a second thread costs more than it brings, above all beside other work
torch.set_num_threads(1)

NEAR_TIE = 1e-4


@dataclass
class Oracle:
    """transformers + PEFT for one base; adapters by name, None is the base itself."""

    base_dir: Path
    adapter_dirs: Mapping[str, Path]
    _models: dict[str | None, Any] = field(default_factory=dict)
    _greedy: dict[tuple[str | None, tuple[int, ...], int], list[int]] = field(default_factory=dict)
    _behind: dict[tuple[str | None, tuple[int, ...], tuple[int, ...]], Tensor] = field(
        default_factory=dict
    )

    def model(self, adapter: str | None) -> Any:
        from peft import PeftModel

        if adapter not in self._models:
            with third_party_warnings_ignored():
                model: Any = AutoModelForCausalLM.from_pretrained(
                    self.base_dir, dtype=torch.float32
                )
                if adapter is not None:
                    model = PeftModel.from_pretrained(model, str(self.adapter_dirs[adapter]))
            model.generation_config.eos_token_id = None  # our requests ignore the end of text
            self._models[adapter] = model.eval()
        return self._models[adapter]

    @torch.inference_mode()
    def logits(self, adapter: str | None, token_ids: Sequence[int]) -> Tensor:
        """float32 `[len(token_ids), V]`."""
        out: Tensor = self.model(adapter)(torch.tensor([list(token_ids)])).logits[0]
        return out

    def behind(self, adapter: str | None, prompt: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """By how much each token's logit is behind the best one after all before it, float32
        `[len(tokens)]`: zeros say that these are the greedy tokens, in one pass instead of one for
        each. Remembered: the same request is run in many ways."""
        key = (adapter, tuple(prompt), tuple(tokens))
        if key not in self._behind:
            self._behind[key] = behind_best(self.logits(adapter, [*prompt, *tokens]), tokens)
        return self._behind[key]

    def greedy(self, adapter: str | None, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """The tokens that follow, remembered: the same request is asked for by many tests."""
        key = (adapter, tuple(prompt), num_tokens)
        if key not in self._greedy:
            self._greedy[key] = self._generate(*key)
        return self._greedy[key]

    def _generate(self, adapter: str | None, prompt: Sequence[int], num_tokens: int) -> list[int]:
        with third_party_warnings_ignored(), torch.inference_mode():
            out = self.model(adapter).generate(
                input_ids=torch.tensor([list(prompt)]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                max_new_tokens=num_tokens,
                do_sample=False,
                pad_token_id=0,
            )
        return [int(t) for t in out[0, len(prompt) :]]


def behind_best(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """Of the logits after each token of a prompt and of `tokens`, `[num tokens of both, V]`, those
    that `tokens` were chosen by: their largest less the chosen one's, `[len(tokens)]`."""
    chosen_by = logits[-len(tokens) - 1 : -1]
    return chosen_by.max(dim=1).values - chosen_by[torch.arange(len(tokens)), list(tokens)]


@dataclass
class NearTies:
    """Positions where the oracle itself could have gone either way; at most 0.5 % are allowed."""

    num_positions: int = 0
    num_ties: int = 0

    def assert_equal_tokens(
        self, oracle: Oracle, adapter: str | None, prompt: Sequence[int], got: Sequence[int],
        want: Sequence[int],
    ) -> None:  # fmt: skip
        """Identical up to a position where the oracle's two best logits nearly tie."""
        same = next((i for i, (g, w) in enumerate(zip(got, want, strict=True)) if g != w), None)
        self.num_positions += len(want) if same is None else same + 1
        if same is None:
            return
        logits = oracle.logits(adapter, [*prompt, *want[:same]])[-1]
        best, second = logits.topk(2).values.tolist()
        assert best - second < NEAR_TIE, (
            f"token {same} of adapter {adapter} is {got[same]}, the oracle says {want[same]} by a "
            f"margin of {best - second:.2e}"
        )
        self.num_ties += 1

    def assert_greedy(
        self, oracle: Oracle, adapter: str | None, prompt: Sequence[int], got: Sequence[int]
    ) -> None:
        """Each token is the oracle's best after those before it, or nearly ties with that."""
        behind = oracle.behind(adapter, prompt, got)
        worst = int(behind.argmax())
        assert float(behind[worst]) < NEAR_TIE, (
            f"token {worst} of adapter {adapter} is {got[worst]}, which the oracle says is behind "
            f"the best by {float(behind[worst]):.2e}"
        )
        self.num_positions += len(got)
        self.num_ties += int((behind > 0).sum())

    def assert_rare(self) -> None:
        assert self.num_ties <= 0.005 * self.num_positions, (
            f"{self.num_ties} near-ties in {self.num_positions} positions"
        )
