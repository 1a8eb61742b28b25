"""`adapter_config.json`, read against an allow-list.

Many PEFT variants look like plain LoRA in their tensors. So a key is either served, known to change
nothing at inference, or refused by name unless it has the value that turns it off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from weft_adapters.faults import AdapterFaultError, Fault
from weft_adapters.patterns import PatternSet
from weft_adapters.strict_json import parse_strict

MAX_CONFIG_BYTES = 1024 * 1024
_MAX_DEPTH = 16
MAX_RANK = 256

# do not change what the adapter computes: training-time, bookkeeping, or told by the tensors
_HARMLESS = frozenset(
    {
        "task_type",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "lora_dropout",
        "target_modules",
        "target_parameters",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "peft_version",
        "qalora_group_size",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "megatron_core",
        "runtime_config",
        "ensure_weight_tying",
        "auto_mapping",
    }
)
# names of initialisations after which the saved factors are plain LoRA on the saved base
_PLAIN_INITS = (None, True, False, "gaussian", "orthogonal", "eva")
_SERVED = frozenset(
    {
        "peft_type",
        "r",
        "lora_alpha",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "bias",
        "fan_in_fan_out",
        "init_lora_weights",
    }
)


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What of the file decides the result. Scales: `alpha / r`, or `alpha / sqrt(r)` (rsLoRA)."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    use_rslora: bool
    peft_version: str | None
    base_model_name: str | None
    target_parameters: tuple[str, ...]
    _rank_keys: PatternSet = field(init=False, repr=False, compare=False)
    _alpha_keys: PatternSet = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rank_keys", PatternSet(self.rank_pattern))
        object.__setattr__(self, "_alpha_keys", PatternSet(self.alpha_pattern))

    def rank_of(self, module: str) -> int:
        """The rank at a module, given its name below the model (`model.layers...`)."""
        key = self._rank_keys.first_match(module)
        return self.rank if key is None else self.rank_pattern[key]

    def scale_of(self, module: str) -> float:
        """The factor on B A at a module, given its name below the model, as PEFT computes it."""
        key = self._alpha_keys.first_match(module)
        alpha = self.alpha if key is None else self.alpha_pattern[key]
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def canonical(self) -> dict[str, object]:
        """The part that enters the digest; the first matching pattern wins, so order counts."""
        return {
            "r": self.rank,
            "lora_alpha": self.alpha,
            "rank_pattern": [[key, rank] for key, rank in self.rank_pattern.items()],
            "alpha_pattern": [[key, alpha] for key, alpha in self.alpha_pattern.items()],
            "use_rslora": self.use_rslora,
        }


def parse_config(data: bytes) -> AdapterConfig:
    """Read and check; AdapterFaultError carries every fault found."""
    if len(data) > MAX_CONFIG_BYTES:
        raise AdapterFaultError(
            [Fault("config_too_large", f"adapter_config.json is over {MAX_CONFIG_BYTES} bytes")]
        )
    try:
        raw = parse_strict(data, max_depth=_MAX_DEPTH)
    except ValueError as error:
        message = f"adapter_config.json could not be read. {error}"
        raise AdapterFaultError([Fault("invalid_json", message)]) from None
    if not isinstance(raw, dict):
        raise AdapterFaultError([Fault("invalid_json", "adapter_config.json must be an object")])
    checker = _Checker(raw)
    config = checker.read()
    if checker.faults:
        raise AdapterFaultError(checker.faults)
    return config


class _Checker:
    """Reads the keys one by one and collects faults."""

    def __init__(self, raw: Mapping[str, object]) -> None:
        self.raw = raw
        self.faults: list[Fault] = []

    def _refuse(self, key: str, message: str, code: str = "invalid_config") -> None:
        self.faults.append(Fault(code, f"adapter_config.json: {message}", key))

    def read(self) -> AdapterConfig:
        if self.raw.get("peft_type") != "LORA":
            self._refuse(
                "peft_type", f"peft_type must be 'LORA', not {self.raw.get('peft_type')!r}"
            )
        self._check_unserved()
        return AdapterConfig(
            rank=self._rank("r", self.raw.get("r")),
            alpha=self._alpha("lora_alpha", self.raw.get("lora_alpha")),
            rank_pattern={k: self._rank(k, v) for k, v in self._pattern("rank_pattern").items()},
            alpha_pattern={k: self._alpha(k, v) for k, v in self._pattern("alpha_pattern").items()},
            use_rslora=self._flag("use_rslora"),
            peft_version=self._text("peft_version"),
            base_model_name=self._text("base_model_name_or_path"),
            target_parameters=self._names("target_parameters"),
        )

    def _check_unserved(self) -> None:
        if self.raw.get("bias", "none") != "none":
            self._refuse("bias", f"bias={self.raw['bias']!r} is not served; only 'none' is",
                         "unsupported_config")  # fmt: skip
        if self._flag("fan_in_fan_out"):
            self._refuse(
                "fan_in_fan_out", "fan_in_fan_out=true is not served", "unsupported_config"
            )
        init = self.raw.get("init_lora_weights")
        if not isinstance(init, bool | str | None) or init not in _PLAIN_INITS:
            self._refuse("init_lora_weights", f"init_lora_weights={init!r} changes the base's "
                         "weights and is not served", "unsupported_config")  # fmt: skip
        for key, value in self.raw.items():
            if key in _SERVED or key in _HARMLESS:
                continue
            if value not in (None, False) and value != [] and value != {}:
                self._refuse(
                    key[:100],
                    f"{key[:100]}={str(value)[:100]!r} is not served",
                    "unsupported_config",
                )

    def _rank(self, key: str, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_RANK:
            self._refuse(key, f"the rank {key}={str(value)[:40]} must be a whole number from 1 to "
                         f"{MAX_RANK}", "invalid_rank")  # fmt: skip
            return 1
        return value

    def _alpha(self, key: str, value: object) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(float(str(value))) or abs(float(str(value))) > 1e6:
            self._refuse(key, f"{key}={str(value)[:40]} must be a number of at most 1e6")
            return 1.0
        return float(str(value))

    def _flag(self, key: str) -> bool:
        value = self.raw.get(key, False)
        if value is not None and not isinstance(value, bool):
            self._refuse(key, f"{key} must be true or false")
        return value is True

    def _text(self, key: str) -> str | None:
        value = self.raw.get(key)
        if value is None:
            return None
        if not isinstance(value, str) or len(value) > 1000:
            self._refuse(key, f"{key} must be a string of at most 1000 characters")
            return None
        return value

    def _names(self, key: str) -> tuple[str, ...]:
        value = self.raw.get(key) or []
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            self._refuse(key, f"{key} must be a list of strings")
            return ()
        return tuple(value)

    def _pattern(self, key: str) -> Mapping[str, object]:
        """Patterns are regular expressions of strangers: plain names and simple ones only."""
        value = {} if self.raw.get(key) is None else self.raw[key]
        if not isinstance(value, dict):
            self._refuse(key, f"{key} must be an object")
            return {}
        try:
            PatternSet(value)
        except ValueError as error:
            self._refuse(key, f"{key} is refused. {error}")
            return {}
        return value
