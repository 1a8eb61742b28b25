"""Rotary positions as a `config.json` asks for them: transformers 5's `rope_parameters`, or the
`rope_theta` and `rope_scaling` of transformers 4. What is not understood is refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from weft_adapters.base_config import Keys
from weft_kernels.rotary import Rope

_COMMON = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
_LLAMA3 = ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
_YARN = (
    "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
    "mscale", "mscale_all_dim", "truncate",
)  # fmt: skip


class _RopeKeys(Keys):
    """Reads of the object that holds the rotary parameters; null counts as absent."""

    def __init__(self, outer: Keys, name: str, raw: Mapping[str, object]) -> None:
        given = {key: value for key, value in raw.items() if value is not None}
        super().__init__(given, outer.family, prefix=f"{name}.")
        self.max_len = outer.integer("max_position_embeddings")

    def value(self, name: str) -> object:
        return self.raw.get(name)

    def positive(self, name: str, default: float | None = None) -> float:
        if default is not None and name not in self.raw:
            return default
        value = self.number(name)
        if value <= 0 or not math.isfinite(value):
            raise self.refusal(name, f"must be above 0, not {value}")
        return value

    @property
    def original_max_len(self) -> int:
        return self.integer_or("original_max_position_embeddings", self.max_len)

    @property
    def kind(self) -> str:
        kind = self.raw.get("rope_type", self.raw.get("type", "default"))
        if self.raw.get("type", kind) != kind:
            raise self.refusal("type", f"must be the rope_type, {kind!r}")
        if not isinstance(kind, str) or kind not in _READERS:
            raise self.refusal("rope_type", f"{kind!r} is not supported")
        return kind

    def check(self, known: tuple[str, ...]) -> None:
        for name in self.raw:
            if name not in _COMMON and name not in known:
                raise self.refusal(name, f"is not known for the rope_type {self.kind!r}")
        if self.raw.get("partial_rotary_factor", 1) != 1:
            raise self.refusal("partial_rotary_factor", "must be 1")


def read_rope(keys: Keys) -> Rope:
    """ValueError naming the key for what is missing, unknown or not served."""
    given = [n for n in ("rope_parameters", "rope_scaling") if keys.value(n) not in (None, {})]
    if len(given) == 2:
        raise ValueError("config.json: 'rope_parameters' and 'rope_scaling' are both given")
    name = given[0] if given else "rope_parameters"
    raw = keys.value(name) or {}
    if not isinstance(raw, dict):
        raise keys.refusal(name, f"must be an object, not {raw!r}")
    inner = _RopeKeys(keys, name, raw)
    known, read = _READERS[inner.kind]
    inner.check(known)
    return read(inner, _theta(keys, inner))


def _theta(keys: Keys, inner: _RopeKeys) -> float:
    outer = keys.number("rope_theta")
    theta = inner.positive("rope_theta", outer)
    if "rope_theta" in keys.raw and theta != outer:
        raise keys.refusal("rope_theta", f"is {outer}, but the rotary parameters say {theta}")
    if not 1 < theta < math.inf:
        raise keys.refusal("rope_theta", f"must be above 1, not {theta}")
    return theta


def _default(keys: _RopeKeys, theta: float) -> Rope:
    return Rope(theta)


def _linear(keys: _RopeKeys, theta: float) -> Rope:
    return Rope(theta, "linear", factor=keys.positive("factor"))


def _llama3(keys: _RopeKeys, theta: float) -> Rope:
    low, high = keys.positive("low_freq_factor"), keys.positive("high_freq_factor")
    if low >= high:
        raise keys.refusal("low_freq_factor", f"must be below high_freq_factor, {high}, not {low}")
    return Rope(
        theta,
        "llama3",
        factor=keys.positive("factor"),
        original_max_len=keys.original_max_len,
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _yarn(keys: _RopeKeys, theta: float) -> Rope:
    factor = keys.positive("factor", keys.max_len / keys.original_max_len)
    attention = _mscale(factor, 1.0)
    if "mscale" in keys.raw and "mscale_all_dim" in keys.raw:
        all_dim = keys.positive("mscale_all_dim")
        attention = _mscale(factor, keys.positive("mscale")) / _mscale(factor, all_dim)
    return Rope(
        theta,
        "yarn",
        factor=factor,
        original_max_len=keys.original_max_len,
        beta_slow=keys.positive("beta_slow", 1.0),
        beta_fast=keys.positive("beta_fast", 32.0),
        truncate=keys.boolean("truncate") if "truncate" in keys.raw else True,
        attention_factor=keys.positive("attention_factor", attention),
    )


def _mscale(factor: float, weight: float) -> float:
    """YaRN's correction of the attention's temperature (Peng et al. 2023, section 3.4)."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


_READERS: Mapping[str, tuple[tuple[str, ...], Callable[[_RopeKeys, float], Rope]]] = {
    "default": ((), _default),
    "linear": (("factor",), _linear),
    "llama3": (_LLAMA3, _llama3),
    "yarn": (_YARN, _yarn),
}
