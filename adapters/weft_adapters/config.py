"""`adapter_config.json`, read against an allow-list.

Many PEFT variants look like plain LoRA in their tensors. So a key is either served, known to change
nothing at inference, or refused by name unless it has the value that turns it off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from weft_adapters.adalora import ADALORA_KEYS, adalora_scale, read_kept_ranks
from weft_adapters.config_keys import BIASES, CHANGE_BASE, HARMLESS, PLAIN_INITS, SERVED
from weft_adapters.faults import AdapterFaultError, Fault
from weft_adapters.own_tokens import CONFIG_KEY as OWN_TOKENS_KEY
from weft_adapters.own_tokens import OwnTokens, read_own_tokens
from weft_adapters.patterns import PatternSet
from weft_adapters.sites import VOCABULARY_MODULES
from weft_adapters.strict_json import parse_strict
from weft_adapters.targets import Targets, read_targets

MAX_CONFIG_BYTES = 1024 * 1024
_MAX_DEPTH = 16
MAX_RANK = 256


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What of the file decides the result. Scales: `alpha / r`, or `alpha / sqrt(r)` (rsLoRA).

    `is_adalora`: `rank_pattern` has whole names of modules, and scales are as in `adalora.py`;
    `targets`: what should be adapted, which decides nothing. `warnings` are sentences. `use_dora`
    and `bias`: what the file holds beside factors, see `vectors.py`.
    """

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    use_rslora: bool
    peft_version: str | None
    base_model_name: str | None
    target_parameters: tuple[str, ...]
    is_adalora: bool = False
    targets: Targets = Targets()
    warnings: tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    ensure_weight_tying: bool = False
    use_dora: bool = False
    bias: str = "none"
    own_tokens: OwnTokens | None = None
    _rank_keys: PatternSet = field(init=False, repr=False, compare=False)
    _alpha_keys: PatternSet = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        patterns = () if self.is_adalora else self.rank_pattern
        object.__setattr__(self, "_rank_keys", PatternSet(patterns))
        object.__setattr__(self, "_alpha_keys", PatternSet(self.alpha_pattern))

    def rank_of(self, module: str) -> int:
        """The rank at a module, given its name below the model (`model.layers...`)."""
        if self.is_adalora:
            return self.rank_pattern.get(module, self.rank)
        key = self._rank_keys.first_match(module)
        return self.rank if key is None else self.rank_pattern[key]

    def scale_of(self, module: str) -> float:
        """The factor on B A at a module, given its name below the model, as PEFT computes it."""
        if self.is_adalora:
            return adalora_scale(self.alpha, self.rank, self.rank_of(module))
        key = self._alpha_keys.first_match(module)
        alpha = self.alpha if key is None else self.alpha_pattern[key]
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def canonical(self) -> dict[str, object]:
        """The part that enters the digest; the first matching pattern wins, so order counts."""
        return {
            **({"peft_type": "ADALORA"} if self.is_adalora else {}),
            "r": self.rank,
            "lora_alpha": self.alpha,
            "rank_pattern": [[key, rank] for key, rank in self.rank_pattern.items()],
            "alpha_pattern": [[key, alpha] for key, alpha in self.alpha_pattern.items()],
            "use_rslora": self.use_rslora,
            **({"use_dora": True} if self.use_dora else {}),
            **({"bias": self.bias} if self.bias != "none" else {}),
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
        kind = self.raw.get("peft_type")
        if kind not in ("LORA", "ADALORA"):
            self._refuse("peft_type", f"peft_type must be 'LORA' or 'ADALORA', not {kind!r}")
        is_adalora = kind == "ADALORA"
        self._check_unserved(ADALORA_KEYS if is_adalora else frozenset())
        # AdaLoRA takes neither the rank r nor patterns of alpha into account
        rank_key = "init_r" if is_adalora else "r"
        rank = self._rank(rank_key, self.raw.get(rank_key))
        alphas = {} if is_adalora else self._pattern("alpha_pattern")
        return AdapterConfig(
            rank=rank,
            alpha=self._alpha("lora_alpha", self.raw.get("lora_alpha")),
            rank_pattern=self._kept_ranks(rank) if is_adalora else self._ranks(),
            alpha_pattern={key: self._alpha(key, alpha) for key, alpha in alphas.items()},
            use_rslora=self._flag("use_rslora"),
            peft_version=self._text("peft_version"),
            base_model_name=self._text("base_model_name_or_path"),
            target_parameters=self._names("target_parameters"),
            is_adalora=is_adalora,
            targets=self._targets(),
            warnings=self._warnings(),
            modules_to_save=self._saved_modules(),
            ensure_weight_tying=self._flag("ensure_weight_tying"),
            use_dora=self._use_dora(is_adalora),
            bias=self._bias(),
            own_tokens=self._own_tokens(),
        )

    def _use_dora(self, is_adalora: bool) -> bool:
        use_dora = self._flag("use_dora")
        if use_dora and (is_adalora or self.raw.get("target_parameters")):
            what = "AdaLoRA" if is_adalora else "target_parameters"
            self._refuse("use_dora", f"use_dora=true does not go with {what}",
                         "unsupported_config")  # fmt: skip
        return use_dora

    def _bias(self) -> str:
        bias = "none" if self.raw.get("bias") is None else self.raw["bias"]
        if not isinstance(bias, str) or bias not in BIASES:
            self._refuse("bias", f"bias must be one of {', '.join(BIASES)}, not "
                         f"{str(bias)[:40]!r}")  # fmt: skip
            return "none"
        return bias

    def _own_tokens(self) -> OwnTokens | None:
        if self.raw.get(OWN_TOKENS_KEY) is None:
            return None
        try:
            return read_own_tokens(self.raw[OWN_TOKENS_KEY])
        except ValueError as error:
            self._refuse(OWN_TOKENS_KEY, f"{OWN_TOKENS_KEY} is refused. {error}")
            return None

    def _ranks(self) -> dict[str, int]:
        return {key: self._rank(key, rank) for key, rank in self._pattern("rank_pattern").items()}

    def _kept_ranks(self, init_rank: int) -> dict[str, int]:
        try:
            return read_kept_ranks(self.raw.get("rank_pattern"), init_rank)
        except ValueError as error:
            self._refuse("rank_pattern", f"rank_pattern is refused. {error}")
            return {}

    def _targets(self) -> Targets:
        try:
            return read_targets(self.raw)
        except ValueError as error:
            self._refuse("target_modules", str(error))
            return Targets()

    def _warnings(self) -> tuple[str, ...]:
        """PEFT says the same of linear layers, and serves them so."""
        if not self._flag("fan_in_fan_out"):
            return ()
        return ("fan_in_fan_out is not true of this base's layers and changes nothing",)

    def _saved_modules(self) -> tuple[str, ...]:
        """Whole modules that were trained: embedding and head, by any end of their names."""
        names = self._names("modules_to_save")
        for name in names:
            if not any(module.endswith(name) for module in VOCABULARY_MODULES.values()) or not name:
                self._refuse(
                    "modules_to_save",
                    f"modules_to_save of {name[:100]!r} is not served; only that of embed_tokens "
                    "and lm_head is",
                    "unsupported_config",
                )
        return names

    def _check_unserved(self, more_keys: frozenset[str]) -> None:
        if self._flag("fan_in_fan_out") and self.raw.get("target_parameters"):
            self._refuse("fan_in_fan_out", "fan_in_fan_out=true does not go with "
                         "target_parameters", "unsupported_config")  # fmt: skip
        self._check_init(self.raw.get("init_lora_weights"))
        for key, value in self.raw.items():
            if key in SERVED or key in HARMLESS or key in more_keys:
                continue
            if value not in (None, False) and value != [] and value != {}:
                self._refuse(
                    key[:100],
                    f"{key[:100]}={str(value)[:100]!r} is not served",
                    "unsupported_config",
                )

    def _check_init(self, init: object) -> None:
        if isinstance(init, bool | str | None) and init in PLAIN_INITS:
            return
        what = f"init_lora_weights={str(init)[:100]!r} is not served"
        if isinstance(init, str) and init.startswith(CHANGE_BASE):
            what += (
                ": its factors go with a base whose weights were changed at the start. PEFT's "
                "save_pretrained writes plain LoRA given path_initial_model_for_weight_conversion"
            )
        self._refuse("init_lora_weights", what, "unsupported_config")

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
