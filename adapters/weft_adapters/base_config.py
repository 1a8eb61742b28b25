"""The sizes of a base model, read from its `config.json`; every error names the key.

Adapters' sites and the engine's decoder share these reads, so that they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from weft_adapters.families import NUM_EXPERTS_KEYS, Family, Flag, family_of


class Keys:
    """Typed reads of a JSON object; absent keys have their family's default, if there is one.

    `prefix` says in messages where the object lies.
    """

    def __init__(self, raw: Mapping[str, object], family: Family, prefix: str = "") -> None:
        self.raw, self.family, self._prefix = raw, family, prefix

    def refusal(self, name: str, what: str) -> ValueError:
        return ValueError(f"config.json: {self._prefix + name!r} {what}")

    def value(self, name: str) -> object:
        return self.raw[name] if name in self.raw else self.family.default(name)

    def integer(self, name: str, *, minimum: int = 1) -> int:
        value = self.value(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            what = f"must be a whole number of at least {minimum}, not {value!r}"
            raise self.refusal(name, what)
        return value

    def integer_or(self, name: str, otherwise: int) -> int:
        """As `integer`; `otherwise` where the value is null."""
        return otherwise if self.value(name) is None else self.integer(name)

    def number(self, name: str) -> float:
        value = self.value(name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.refusal(name, f"must be a number, not {value!r}")
        return float(value)

    def boolean(self, name: str) -> bool:
        value = self.value(name)
        if not isinstance(value, bool):
            raise self.refusal(name, f"must be true or false, not {value!r}")
        return value

    def flag(self, flag: Flag) -> bool:
        return self.boolean(flag) if isinstance(flag, str) else flag


@dataclass(frozen=True, slots=True)
class BaseShape:
    """Sizes; those of experts are 0 where no layer has any, that of the vocabulary where the config
    does not say it. `is_tied`: the head is the embedding."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    num_experts: int
    moe_intermediate_size: int
    shared_intermediate_size: int
    moe_layers: frozenset[int]
    vocab_size: int
    is_tied: bool


def read_shape(config: Mapping[str, object]) -> BaseShape:
    """Raises ValueError naming the key for an unknown model type or a bad or missing size."""
    family = family_of(config)
    keys = Keys(config, family)
    num_layers, hidden_size = keys.integer("num_hidden_layers"), keys.integer("hidden_size")
    num_heads = keys.integer("num_attention_heads")
    num_kv_heads = keys.integer_or("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise ValueError(
            f"config.json: num_attention_heads={num_heads} is no multiple of "
            f"num_key_value_heads={num_kv_heads}"
        )
    head_dim = keys.integer_or("head_dim", hidden_size // num_heads)
    if head_dim == 0 or head_dim % 2:
        raise ValueError(f"config.json: 'head_dim' must be even, not {head_dim}")
    if family.qk_norm == "whole" and head_dim * num_heads != hidden_size:
        raise ValueError(f"config.json: head_dim={head_dim} times the heads must be hidden_size")
    num_experts = 0 if family.sparse == "none" else _num_experts(keys)
    sparse = _moe_layers(keys, num_layers) if num_experts else frozenset()
    shared_key = family.shared_size_key
    return BaseShape(
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=keys.integer("intermediate_size"),
        num_experts=num_experts if sparse else 0,
        moe_intermediate_size=keys.integer(family.expert_size_key) if sparse else 0,
        shared_intermediate_size=keys.integer(shared_key) if sparse and shared_key else 0,
        moe_layers=sparse,
        vocab_size=keys.integer_or("vocab_size", 0),
        is_tied=keys.boolean("tie_word_embeddings"),
    )


def _num_experts(keys: Keys) -> int:
    # transformers 5 writes `num_local_experts` where the Hub's files of Qwen have `num_experts`
    given = [key for key in NUM_EXPERTS_KEYS if keys.raw.get(key) is not None]
    if len({keys.raw[key] for key in given}) > 1:
        raise ValueError("config.json: 'num_experts' and 'num_local_experts' differ")
    minimum = 0 if keys.family.sparse == "step" else 1
    return keys.integer(given[0] if given else NUM_EXPERTS_KEYS[1], minimum=minimum)


def _moe_layers(keys: Keys, num_layers: int) -> frozenset[int]:
    """Every layer; or every `decoder_sparse_step`-th one, except `mlp_only_layers`."""
    layers = range(num_layers)
    if keys.family.sparse == "every":
        return frozenset(layers)
    step, dense = keys.integer("decoder_sparse_step"), keys.value("mlp_only_layers") or []
    if not isinstance(dense, list | tuple):
        raise ValueError(f"config.json: 'mlp_only_layers' must be a list, not {dense!r}")
    return frozenset(layer for layer in layers if layer not in dense and (layer + 1) % step == 0)
