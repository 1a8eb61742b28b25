"""Several adapters as one: what a merge is, and whether given adapters can be merged.

    W_merged = W + B A,    A = merge(c_1 A_1, c_2 A_2, ...),    B = merge(|c_1| B_1, |c_2| B_2, ...)

over the adapters that change the site, c_i = sign(w_i s_i) sqrt(|w_i s_i|) of their weights w and
scales s: what PEFT's `add_weighted_adapter` computes. The computation itself is in
`weft_adapters.merge_worker`; this module needs neither torch nor PEFT.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from weft_adapters.config import MAX_CONFIG_BYTES, parse_config
from weft_adapters.digest import adapter_digest
from weft_adapters.faults import AdapterFaultError
from weft_adapters.format import AdapterPlan, PlainFactors, resolve
from weft_adapters.header import read_header_path
from weft_adapters.sites import BaseSpec, Site
from weft_adapters.store import StoredAdapter
from weft_adapters.targets import Names, Targets, compare
from weft_adapters.tensors import TensorFile

MergeStrategy = Literal["linear", "ties", "dare_linear", "dare_ties"]
MajoritySignMethod = Literal["total", "frequency"]
STRATEGIES: tuple[MergeStrategy, ...] = get_args(MergeStrategy)
MAX_PARENTS = 16

_PREFIX = "base_model.model."


class MergeRefusedError(ValueError):
    """These adapters cannot be merged; the message says why, and names them as the caller did."""


@dataclass(frozen=True, slots=True)
class MergeRecipe:
    """What determines a merged adapter: its parents' digests, in order, and how they are merged.

    `density` is the part of each parent's values that is kept, above 0 and at most 1; "linear"
    keeps all and has none. `majority_sign_method` is of the two "ties" strategies. Of one parent
    every strategy is "linear", as in PEFT. ValueError for values that make no merge.
    """

    parents: tuple[str, ...]
    weights: tuple[float, ...]
    strategy: MergeStrategy = "linear"
    density: float | None = None
    majority_sign_method: MajoritySignMethod = "total"

    def __post_init__(self) -> None:
        if not 1 <= len(self.parents) <= MAX_PARENTS:
            raise ValueError(f"1 to {MAX_PARENTS} adapters are merged, not {len(self.parents)}")
        if len(self.weights) != len(self.parents):
            raise ValueError(
                f"there are {len(self.weights)} weights for {len(self.parents)} adapters"
            )
        if not all(math.isfinite(weight) for weight in self.weights):
            raise ValueError("a weight is not finite")
        if self.strategy == "linear":
            if self.density is not None:
                raise ValueError("'linear' has no density")
        elif self.density is None or not 0 < self.density <= 1:
            raise ValueError(f"{self.strategy!r} needs a density above 0 and at most 1")

    @classmethod
    def create(
        cls,
        parents: Sequence[str],
        weights: Sequence[float],
        strategy: MergeStrategy = "linear",
        density: float | None = None,
        majority_sign_method: MajoritySignMethod = "total",
    ) -> MergeRecipe:
        """The recipe without what its strategy does not use, so that equal merges are equal."""
        if len(parents) == 1:
            strategy = "linear"
        return cls(
            tuple(parents),
            tuple(float(weight) for weight in weights),
            strategy,
            None if strategy == "linear" else density,
            majority_sign_method if strategy.endswith("ties") else "total",
        )

    @property
    def digest(self) -> str:
        """The derived digest: it names the merge before it is made, and seeds its random masks.

        The parents' digests name the base; the order of the parents is part of it.
        """
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return f"sha256:{hashlib.sha256(b'weft-merge-v1' + text.encode()).hexdigest()}"

    def seed(self, site: Site) -> int:
        """Of the random masks at one site, 63 bits: those of A are drawn first, as PEFT does."""
        text = f"{self.digest}/{site}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True, slots=True)
class Parent:
    """An adapter to be merged; `name` is what the caller calls it."""

    name: str
    digest: str
    stored: StoredAdapter
    plan: AdapterPlan

    def open(self) -> TensorFile:
        return TensorFile(self.stored.tensors_path, read_header_path(self.stored.tensors_path))


def read_parent(name: str, digest: str, stored: StoredAdapter, base: BaseSpec) -> Parent:
    """Read what a stored adapter's tensors are for; MergeRefusedError where some are no LoRA
    factors, since those have no merge."""
    try:
        config = parse_config(stored.config_path.read_bytes())
        header = read_header_path(stored.tensors_path)
    except AdapterFaultError as error:
        raise MergeRefusedError(f"'{name}' could not be read. {error.faults[0].message}") from None
    plan = resolve(config, header, base)
    if plan.faults:
        raise MergeRefusedError(f"'{name}' could not be read. {plan.faults[0].message}")
    if config.own_tokens is not None:
        raise MergeRefusedError(
            f"'{name}' cannot be merged: it has tokens or a template of its own"
        )
    mergeable = {tensor for f in plan.plain for tensor in (f.a_name, f.b_name)}
    other = next((tensor for tensor in header.tensors if tensor not in mergeable), None)
    if other is not None:
        raise MergeRefusedError(
            f"'{name}' cannot be merged: it holds {other[:200]!r}, and only pairs of lora_A and "
            "lora_B of single modules in the layers can be"
        )
    return Parent(name, digest, stored, plan)


def verify_parent(parent: Parent, base: BaseSpec) -> None:
    """MergeRefusedError where the stored bytes are not those of the digest."""
    config = parse_config(parent.stored.config_path.read_bytes())
    header = read_header_path(parent.stored.tensors_path)
    with TensorFile(parent.stored.tensors_path, header) as file:
        found = adapter_digest(config, parent.plan, header, file, base.digest)
    if found != parent.digest:
        raise MergeRefusedError(f"'{parent.name}' is damaged in the store")


@dataclass(frozen=True, slots=True)
class SiteMerge:
    """The factors that become one: (number of the parent, its factors), of one rank."""

    site: Site
    factors: tuple[tuple[int, PlainFactors], ...]

    @property
    def module(self) -> str:
        """The name below the model that the merged adapter gives the site."""
        name = self.factors[0][1].a_name
        return name.removeprefix(_PREFIX).removesuffix(".lora_A.weight")

    @property
    def rank(self) -> int:
        return self.factors[0][1].rank

    def num_bytes(self, base: BaseSpec) -> int:
        """Of its merged factors, which are float32."""
        return 4 * self.rank * sum(base.shape(self.site))


def plan_merge(parents: Sequence[Parent]) -> tuple[SiteMerge, ...]:
    """Every site that some parent changes, in canonical order; MergeRefusedError where two have
    different ranks at one."""
    found: dict[Site, list[tuple[int, PlainFactors]]] = {}
    for number, parent in enumerate(parents):
        for factors in parent.plan.plain:
            found.setdefault(factors.site, []).append((number, factors))
    merges = tuple(SiteMerge(site, tuple(found[site])) for site in sorted(found))
    for merge in merges:
        first_number, first = merge.factors[0]
        for number, factors in merge.factors:
            if factors.rank != first.rank:
                raise MergeRefusedError(
                    f"adapters of different ranks cannot be merged: at {merge.site}, "
                    f"'{parents[first_number].name}' has rank {first.rank} and "
                    f"'{parents[number].name}' rank {factors.rank}"
                )
    return merges


def merged_config(merges: Sequence[SiteMerge], base_name: str, base: BaseSpec) -> bytes:
    """`adapter_config.json` of the merged adapter: every scale is 1, as the weights are in the
    factors. MergeRefusedError where it would be larger than a config may be."""
    ranks = {merge.module: merge.rank for merge in merges}
    ((rank, _),) = Counter(ranks.values()).most_common(1)
    others = {module: own for module, own in ranks.items() if own != rank}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": _target_modules(merges, base),
        "inference_mode": True,
    }
    data = json.dumps(config, separators=(",", ":")).encode()
    if len(data) > MAX_CONFIG_BYTES:
        raise MergeRefusedError("these adapters differ in their ranks or sites at too many modules")
    return data


def _target_modules(merges: Sequence[SiteMerge], base: BaseSpec) -> list[str]:
    """The last names of the modules where these name no other, else the modules one by one."""
    names = sorted({merge.module.rpartition(".")[2] for merge in merges})
    found = compare(Targets(Names(names)), (merge.site for merge in merges), base)
    return [merge.module for merge in merges] if found.missing else names


@dataclass(frozen=True, slots=True)
class MergeJob:
    """`parents` are (name, config path, tensors path) in the order of the recipe; the two files of
    the merged adapter are written to `output_dir`."""

    recipe: MergeRecipe
    parents: tuple[tuple[str, str, str], ...]
    hf_config: Mapping[str, Any]
    base_name: str
    base_digest: str
    output_dir: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> MergeJob:
        raw = json.loads(text)
        recipe = raw.pop("recipe")
        for key in ("parents", "weights"):
            recipe[key] = tuple(recipe[key])
        raw["parents"] = tuple(tuple(parent) for parent in raw["parents"])
        return cls(recipe=MergeRecipe(**recipe), **raw)
