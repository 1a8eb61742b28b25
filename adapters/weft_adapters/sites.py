"""Which weights of a base model an adapter may change, and how large each one is.

Sizes come from a Hugging Face `config.json`, read as `families.py` says; knows neither tensors nor
PEFT names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from weft_adapters.base_config import read_shape
from weft_adapters.families import ExpertNames, family_of

ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
# the expert that every token passes (Qwen2-MoE), and the gate on its output, one column wide
SHARED_MLP_PROJECTIONS = ("shared_gate_proj", "shared_up_proj", "shared_down_proj")
SHARED_PROJECTIONS = (*SHARED_MLP_PROJECTIONS, "shared_expert_gate")
# of a layer's experts: from a row to a logit for each
ROUTER = "router"
PROJECTIONS = (*ATTENTION_PROJECTIONS, *MLP_PROJECTIONS, *SHARED_PROJECTIONS, ROUTER)
# before the first layer and behind the last one: sites of their own kind, which no step's adapted
# linears run over
EMBEDDING, HEAD = "embed_tokens", "lm_head"
VOCABULARY_PROJECTIONS = (EMBEDDING, HEAD)
VOCABULARY_MODULES = {EMBEDDING: "model.embed_tokens", HEAD: "lm_head"}
# those that read the same rows stand together
INPUTS = (
    ("q_proj", "k_proj", "v_proj"),
    ("o_proj",),
    ("gate_proj", "up_proj"),
    ("down_proj",),
    ("shared_gate_proj", "shared_up_proj"),
    ("shared_down_proj",),
    ("shared_expert_gate",),
    (ROUTER,),
)

_PROJECTION_ORDER = {
    projection: index for index, projection in enumerate(PROJECTIONS + VOCABULARY_PROJECTIONS)
}


@dataclass(frozen=True, slots=True)
class Site:
    """One base weight that an adapter may change; `expert` is None where it is not one of several.

    Sites sort in canonical order: by layer, then attention, shared expert and router, expert by
    expert. The embedding's layer is -1, the head's the number of layers (see `BaseSpec`).
    """

    layer: int
    projection: str
    expert: int | None = None

    def __lt__(self, other: Site) -> bool:
        return self._key < other._key

    def __str__(self) -> str:
        if self.is_vocabulary:
            return self.projection
        expert = "" if self.expert is None else f" expert {self.expert}"
        return f"layer {self.layer}{expert} {self.projection}"

    @property
    def is_vocabulary(self) -> bool:
        """The embedding or the head, whose one side is the vocabulary."""
        return self.projection in VOCABULARY_PROJECTIONS

    @property
    def _key(self) -> tuple[int, int, int]:
        expert = -1 if self.expert is None else self.expert
        return self.layer, expert, _PROJECTION_ORDER[self.projection]


@dataclass(frozen=True, slots=True)
class BaseSpec:
    """The sites of one base model and their shapes; `digest` names the base's exact weights.

    A `vocab_size` of 0: nobody said how large it is, and neither embedding nor head is a site.
    `is_tied`: the head is the embedding.
    """

    digest: str
    num_layers: int
    hidden_size: int
    query_size: int
    key_value_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_experts: int
    moe_layers: frozenset[int]
    shared_intermediate_size: int = 0
    expert_names: ExpertNames = ExpertNames()
    vocab_size: int = 0
    is_tied: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, object], digest: str) -> BaseSpec:
        """The spec of the model that `config` (a parsed `config.json`) describes.

        Raises ValueError naming the key for an unknown model type or a bad or missing size.
        """
        shape = read_shape(config)
        return cls(
            digest=digest,
            num_layers=shape.num_layers,
            hidden_size=shape.hidden_size,
            query_size=shape.num_heads * shape.head_dim,
            key_value_size=shape.num_kv_heads * shape.head_dim,
            intermediate_size=shape.intermediate_size,
            moe_intermediate_size=shape.moe_intermediate_size,
            num_experts=shape.num_experts,
            moe_layers=shape.moe_layers,
            shared_intermediate_size=shape.shared_intermediate_size,
            expert_names=family_of(config).experts,
            vocab_size=shape.vocab_size,
            is_tied=shape.is_tied,
        )

    @property
    def embedding(self) -> Site:
        """The site of the embedding, a row for each token."""
        return Site(-1, EMBEDDING)

    @property
    def head(self) -> Site:
        """The site of the head, a column for each token."""
        return Site(self.num_layers, HEAD)

    def is_moe(self, layer: int) -> bool:
        """True when the MLP of `layer` is a set of experts."""
        return layer in self.moe_layers

    def has(self, site: Site) -> bool:
        """True when this base has a weight at `site`."""
        if site.is_vocabulary:
            return self.vocab_size > 0 and site in (self.embedding, self.head)
        if not 0 <= site.layer < self.num_layers or site.projection not in PROJECTIONS:
            return False
        if site.projection in SHARED_PROJECTIONS:
            is_there = self.is_moe(site.layer) and self.shared_intermediate_size > 0
            return is_there and site.expert is None
        if site.projection == ROUTER:
            return self.is_moe(site.layer) and site.expert is None
        if site.projection in ATTENTION_PROJECTIONS or not self.is_moe(site.layer):
            return site.expert is None
        return site.expert is not None and 0 <= site.expert < self.num_experts

    def shape(self, site: Site) -> tuple[int, int]:
        """`(in_features, out_features)` of the weight at `site`; KeyError for no such site."""
        if not self.has(site):
            raise KeyError(f"The base has no {site}.")
        if site.is_vocabulary:
            is_head = site.projection == HEAD
            sizes = (self.vocab_size, self.hidden_size)
            return (sizes[1], sizes[0]) if is_head else sizes
        inner = self.intermediate_size if site.expert is None else self.moe_intermediate_size
        hidden, shared = self.hidden_size, self.shared_intermediate_size
        return {
            "q_proj": (hidden, self.query_size),
            "k_proj": (hidden, self.key_value_size),
            "v_proj": (hidden, self.key_value_size),
            "o_proj": (self.query_size, hidden),
            "gate_proj": (hidden, inner),
            "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
            "shared_gate_proj": (hidden, shared),
            "shared_up_proj": (hidden, shared),
            "shared_down_proj": (shared, hidden),
            "shared_expert_gate": (hidden, 1),
            ROUTER: (hidden, self.num_experts),
        }[site.projection]

    def sites(self) -> Iterator[Site]:
        """Every site of the layers, in canonical order."""
        for layer in range(self.num_layers):
            for projection in self._single_projections(layer):
                yield Site(layer, projection)
            experts = range(self.num_experts) if self.is_moe(layer) else (None,)
            for expert in experts:
                for projection in MLP_PROJECTIONS:
                    yield Site(layer, projection, expert)

    def _single_projections(self, layer: int) -> tuple[str, ...]:
        """Those of attention, of the shared expert, and the router."""
        others = (*SHARED_PROJECTIONS, ROUTER)
        return ATTENTION_PROJECTIONS + tuple(p for p in others if self.has(Site(layer, p)))

    def shapes(self) -> frozenset[tuple[int, int]]:
        """The distinct `(in_features, out_features)` over all sites of the layers."""
        found: set[tuple[int, int]] = set()
        for layer in range(self.num_layers):
            found.update(self.shape(Site(layer, name)) for name in self._single_projections(layer))
            expert = 0 if self.is_moe(layer) else None
            found.update(self.shape(Site(layer, name, expert)) for name in MLP_PROJECTIONS)
        return frozenset(found)
