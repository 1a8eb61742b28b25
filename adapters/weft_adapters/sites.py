"""Which weights of a base model an adapter may change, and how large each one is.

Knows the Hugging Face `config.json` of Qwen3 and Qwen3-MoE; knows neither tensors nor PEFT names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
PROJECTIONS = ATTENTION_PROJECTIONS + MLP_PROJECTIONS
MODEL_TYPES = ("qwen3", "qwen3_moe")

_PROJECTION_ORDER = {projection: index for index, projection in enumerate(PROJECTIONS)}


@dataclass(frozen=True, slots=True)
class Site:
    """One base weight that an adapter may change; `expert` is None outside expert layers.

    Sites sort in canonical order: by layer, then attention, then expert by expert.
    """

    layer: int
    projection: str
    expert: int | None = None

    def __lt__(self, other: Site) -> bool:
        return self._key < other._key

    def __str__(self) -> str:
        expert = "" if self.expert is None else f" expert {self.expert}"
        return f"layer {self.layer}{expert} {self.projection}"

    @property
    def _key(self) -> tuple[int, int, int]:
        expert = -1 if self.expert is None else self.expert
        return self.layer, expert, _PROJECTION_ORDER[self.projection]


@dataclass(frozen=True, slots=True)
class BaseSpec:
    """The sites of one base model and their shapes; `digest` names the base's exact weights."""

    digest: str
    num_layers: int
    hidden_size: int
    query_size: int
    key_value_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_experts: int
    moe_layers: frozenset[int]

    @classmethod
    def from_config(cls, config: Mapping[str, object], digest: str) -> BaseSpec:
        """The spec of the model that `config` (a parsed `config.json`) describes.

        Raises ValueError naming the key for an unknown model type or a bad or missing size.
        """
        model_type = config.get("model_type")
        if model_type not in MODEL_TYPES:
            known = ", ".join(MODEL_TYPES)
            raise ValueError(f"model_type {model_type!r} is not supported; supported are {known}.")
        num_layers = _size(config, "num_hidden_layers")
        num_heads = _size(config, "num_attention_heads")
        hidden_size = _size(config, "hidden_size")
        has_head_dim = config.get("head_dim") is not None
        head_dim = _size(config, "head_dim") if has_head_dim else hidden_size // num_heads
        sparse = moe_layers(config, num_layers) if model_type == "qwen3_moe" else frozenset()
        return cls(
            digest=digest,
            num_layers=num_layers,
            hidden_size=hidden_size,
            query_size=num_heads * head_dim,
            key_value_size=_size(config, "num_key_value_heads") * head_dim,
            intermediate_size=_size(config, "intermediate_size"),
            moe_intermediate_size=_size(config, "moe_intermediate_size") if sparse else 0,
            num_experts=_num_experts(config) if sparse else 0,
            moe_layers=sparse,
        )

    def is_moe(self, layer: int) -> bool:
        """True when the MLP of `layer` is a set of experts."""
        return layer in self.moe_layers

    def has(self, site: Site) -> bool:
        """True when this base has a weight at `site`."""
        if not 0 <= site.layer < self.num_layers or site.projection not in PROJECTIONS:
            return False
        if site.projection in ATTENTION_PROJECTIONS or not self.is_moe(site.layer):
            return site.expert is None
        return site.expert is not None and 0 <= site.expert < self.num_experts

    def shape(self, site: Site) -> tuple[int, int]:
        """`(in_features, out_features)` of the weight at `site`; KeyError for no such site."""
        if not self.has(site):
            raise KeyError(f"The base has no {site}.")
        inner = self.intermediate_size if site.expert is None else self.moe_intermediate_size
        if site.projection == "q_proj":
            return self.hidden_size, self.query_size
        if site.projection in ("k_proj", "v_proj"):
            return self.hidden_size, self.key_value_size
        if site.projection == "o_proj":
            return self.query_size, self.hidden_size
        if site.projection == "down_proj":
            return inner, self.hidden_size
        return self.hidden_size, inner

    def sites(self) -> Iterator[Site]:
        """Every site, in canonical order."""
        for layer in range(self.num_layers):
            for projection in ATTENTION_PROJECTIONS:
                yield Site(layer, projection)
            experts = range(self.num_experts) if self.is_moe(layer) else (None,)
            for expert in experts:
                for projection in MLP_PROJECTIONS:
                    yield Site(layer, projection, expert)

    def shapes(self) -> frozenset[tuple[int, int]]:
        """The distinct `(in_features, out_features)` over all sites."""
        found: set[tuple[int, int]] = set()
        for layer in range(self.num_layers):
            found.update(self.shape(Site(layer, name)) for name in ATTENTION_PROJECTIONS)
            expert = 0 if self.is_moe(layer) else None
            found.update(self.shape(Site(layer, name, expert)) for name in MLP_PROJECTIONS)
        return frozenset(found)


def _size(config: Mapping[str, object], key: str, *, minimum: int = 1) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"{key} must be an integer of at least {minimum}, not {value!r}.")
    return value


def _num_experts(config: Mapping[str, object]) -> int:
    # transformers 5 writes `num_local_experts` where the Hub's files have `num_experts`
    key = "num_experts" if config.get("num_experts") is not None else "num_local_experts"
    return _size(config, key, minimum=0)


def moe_layers(config: Mapping[str, object], num_layers: int) -> frozenset[int]:
    """The sparse layers of a Qwen3-MoE `config.json`: every `decoder_sparse_step`-th one, except
    `mlp_only_layers`. Raises ValueError naming the key that is wrong."""
    if _num_experts(config) == 0:
        return frozenset()
    has_step = config.get("decoder_sparse_step") is not None
    step = _size(config, "decoder_sparse_step") if has_step else 1
    dense = config.get("mlp_only_layers") or []
    if not isinstance(dense, list | tuple):
        raise ValueError(f"mlp_only_layers must be a list of layers, not {dense!r}.")
    layers = range(num_layers)
    return frozenset(layer for layer in layers if layer not in dense and (layer + 1) % step == 0)
