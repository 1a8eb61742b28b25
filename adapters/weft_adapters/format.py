"""From tensor names to sites: what each tensor of a PEFT export is for.

`resolve` reads no tensor data and reports every fault it finds; `load` then reads the tensors.
Every tensor must be used: one that maps to nothing is a fault, never ignored.

    W_served = W + scale * B A        per site, A [rank, in], B [out, rank]

AdaLoRA has singular values between the two: B diag(E) A, E [rank, 1].
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from weft_adapters.base_weights import BaseWeights
from weft_adapters.config import AdapterConfig
from weft_adapters.dora import add_vectors
from weft_adapters.expressions import ExpressionError
from weft_adapters.faults import Fault, FaultList
from weft_adapters.fused import FusedFactors, load_fused, resolve_fused
from weft_adapters.header import Header
from weft_adapters.names import FUSED, site_of
from weft_adapters.site_weights import SiteWeights
from weft_adapters.sites import ROUTER, BaseSpec, Site
from weft_adapters.stacked import Modules, StackedFactors, load_stacked, take_stacked
from weft_adapters.tensors import Float32, TensorFile
from weft_adapters.uses import Pair, TensorUse
from weft_adapters.vectors import VectorNames, is_vector, resolve_vectors
from weft_adapters.vocabulary import VocabularyPlan, is_vocabulary_tensor, resolve_vocabulary
from weft_adapters.vocabulary_loading import load_vocabulary

_PREFIX = "base_model.model."
_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<role>[AB])\.weight\Z")
_ADALORA = re.compile(r"(?P<module>.+)\.lora_(?P<role>[ABE])\Z")


@dataclass(frozen=True, slots=True)
class PlainFactors:
    """The tensors of one site; `e_name`: AdaLoRA's, which may leave a site no rank at all."""

    site: Site
    a_name: str
    b_name: str
    rank: int
    scale: float
    e_name: str | None = None

    @property
    def pairs(self) -> tuple[Pair, ...]:
        return (Pair(self.a_name, self.b_name, self.rank, self.scale),) if self.rank else ()

    def uses(self) -> Iterator[tuple[str, TensorUse]]:
        """Each tensor's name and what it is for."""
        yield self.a_name, TensorUse("lora_A", str(self.site))
        yield self.b_name, TensorUse("lora_B", str(self.site))
        if self.e_name is not None:
            yield self.e_name, TensorUse("lora_E", str(self.site))

    def sites(self, base: BaseSpec) -> Iterator[Site]:
        if self.rank:
            yield self.site


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """What each tensor is for. Only a plan without faults can be loaded.

    `faults` are the first ones; `num_more_faults` were found after them.
    """

    plain: tuple[PlainFactors, ...]
    fused: tuple[FusedFactors, ...]
    stacked: tuple[StackedFactors, ...]
    faults: tuple[Fault, ...] = ()
    num_more_faults: int = 0
    vocabulary: VocabularyPlan | None = None
    vectors: VectorNames = VectorNames()

    @property
    def factors(self) -> tuple[PlainFactors | FusedFactors | StackedFactors, ...]:
        return (*self.plain, *self.fused, *self.stacked)

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """All pairs of lora_A and lora_B."""
        own = () if self.vocabulary is None else self.vocabulary.pairs
        return (*(pair for factors in self.factors for pair in factors.pairs), *own)

    @property
    def ranks(self) -> tuple[int, ...]:
        ranks = {factors.rank for factors in self.factors}
        if self.vocabulary is not None:
            ranks.update(self.vocabulary.ranks.values())
        return tuple(sorted(ranks - {0}))

    def uses(self) -> dict[str, TensorUse]:
        """What each tensor is for, by name; in a plan without faults, every tensor of the file."""
        parts = (*self.factors, *([self.vocabulary] if self.vocabulary is not None else ()))
        own = {name: use for part in parts for name, use in part.uses()}
        return own | dict(self.vectors.uses())

    def sites(self, base: BaseSpec) -> dict[Site, int]:
        """The rank at every site that is touched; 0 where there is only a bias, or a matrix."""
        ranks = dict.fromkeys(self.vectors.biases, 0)
        ranks |= {site: factors.rank for factors in self.factors for site in factors.sites(base)}
        if self.vocabulary is not None:
            ends = {site.projection: site for site in (base.embedding, base.head)}
            ranks |= {ends[name]: rank for name, rank in self.vocabulary.ranks.items()}
        return ranks

    def module_sites(self, base: BaseSpec) -> set[Site]:
        """Those of modules with factors of their own, which alone can have DoRA."""
        return {site for factors in self.plain for site in factors.sites(base)}

    def duplicates(self, base: BaseSpec) -> Iterator[Fault]:
        """A site may be adapted by itself or together with others, not both."""
        first: dict[Site, str] = {}
        for factors in self.factors:
            name = next(iter(factors.uses()))[0]
            for site in factors.sites(base):
                if first.setdefault(site, name) != name:
                    message = f"{name[:200]!r} adapts {site}, as {first[site][:200]!r} does"
                    yield Fault("duplicate_site", message, name)


def resolve(config: AdapterConfig, header: Header, base: BaseSpec) -> AdapterPlan:
    """Map every tensor of the file; nothing is read and nothing raised."""
    faults = FaultList()
    try:
        plan = _resolve(config, header, base, faults)
        vocabulary = resolve_vocabulary(config, header, base, faults)
        plan = replace(plan, vocabulary=vocabulary)
        if config.use_dora and vocabulary is not None and vocabulary.factors:
            message = "use_dora=true is not served on embed_tokens and lm_head"
            faults.append(Fault("unsupported_config", message, "use_dora"))
    except ExpressionError as error:
        plan = AdapterPlan((), (), ())
        message = f"adapter_config.json: rank_pattern or alpha_pattern is refused. {error}"
        faults.append(Fault("invalid_config", message, "rank_pattern"))
    faults += plan.duplicates(base)
    if not header.tensors:
        faults.append(Fault("no_tensors", "the adapter holds no tensors"))
    return replace(plan, faults=tuple(faults), num_more_faults=faults.num_more)


def _resolve(
    config: AdapterConfig, header: Header, base: BaseSpec, faults: list[Fault]
) -> AdapterPlan:
    modules, vectors = _group_by_module(config, header, faults)
    stacked = take_stacked(modules, config, header, base, faults)
    _drop_incomplete(config, modules, faults)
    plain: list[PlainFactors] = []
    experts: dict[int, Modules] = {}
    for module, names in modules.items():
        if not config.is_adalora and (match := FUSED.match(module)) is not None:
            inner = "inner" if match["inner"] else "outer"
            experts.setdefault(int(match["layer"]), {})[inner] = names
        else:
            factors = _resolve_plain(module, names, config, header, base, faults)
            if factors is not None:
                plain.append(factors)
    fused = [
        factors
        for layer, wrappers in experts.items()
        for factors in resolve_fused(layer, wrappers, config, header, base, faults)
    ]
    plan = AdapterPlan(tuple(plain), tuple(fused), tuple(stacked))
    if config.use_dora and (fused or stacked):
        message = "use_dora=true does not go with factors of several experts in one tensor"
        faults.append(Fault("unsupported_config", message, "use_dora"))
    resolved = resolve_vectors(vectors, plan.module_sites(base), config, header, base, faults)
    return replace(plan, vectors=resolved)


def _group_by_module(
    config: AdapterConfig, header: Header, faults: list[Fault]
) -> tuple[Modules, dict[str, str]]:
    """Module name -> role ("A", "B") -> tensor name; the `[out]` tensors by name below the
    model."""
    modules: Modules = {}
    vectors: dict[str, str] = {}
    pattern = _ADALORA if config.is_adalora else _LORA
    for name in header.tensors:
        if is_vocabulary_tensor(name):
            continue
        match = pattern.match(name.removeprefix(_PREFIX))
        if name.startswith(_PREFIX) and is_vector(short := name.removeprefix(_PREFIX)):
            vectors[short] = name
        elif match is None or not name.startswith(_PREFIX):
            message = f"the tensor {name[:200]!r} maps to no site of the base"
            faults.append(Fault("unmapped_tensor", message, name[:200]))
        else:
            modules.setdefault(match["module"], {})[match["role"]] = name
    return modules, vectors


def _drop_incomplete(config: AdapterConfig, modules: Modules, faults: list[Fault]) -> None:
    roles = {"A", "B", "E"} if config.is_adalora else {"A", "B"}
    for module in [module for module, names in modules.items() if set(names) != roles]:
        names = modules.pop(module)
        name = next(iter(names.values()))
        missing = " and ".join(f"lora_{role}" for role in sorted(roles - set(names)))
        message = f"{name[:200]!r} lacks its counterpart {missing}"
        faults.append(Fault("missing_factor", message, name))


def _resolve_plain(
    module: str,
    names: Mapping[str, str],
    config: AdapterConfig,
    header: Header,
    base: BaseSpec,
    faults: list[Fault],
) -> PlainFactors | None:
    site = site_of(module, base)
    if site is None:
        for name in names.values():
            message = f"the tensor {name[:200]!r} maps to no site of the base"
            faults.append(Fault("unmapped_tensor", message, name[:200]))
        return None
    module = _name_for_patterns(module, site, config)
    rank = config.rank_of(module)
    num_in, num_out = base.shape(site)
    fits = True
    for role, wanted in (("A", (rank, num_in)), ("B", (num_out, rank)), ("E", (rank, 1))):
        shape = header.tensors[names[role]].shape if role in names else wanted
        if shape != wanted:
            fits = False
            rank_only = (shape[:1] == wanted[:1]) if role == "B" else (shape[1:] == wanted[1:])
            code = "wrong_rank" if rank_only and len(shape) == 2 else "wrong_shape"
            message = (
                f"{names[role]!r} has shape {list(shape)}; this base and rank need {list(wanted)}"
            )
            faults.append(Fault(code, message, names[role]))
    if not fits:
        return None
    return PlainFactors(site, names["A"], names["B"], rank, config.scale_of(module), names.get("E"))


def _name_for_patterns(module: str, site: Site, config: AdapterConfig) -> str:
    """transformers 5 has the router as a parameter, and PEFT matches that one's name."""
    parameter = f"{module}.weight"
    is_parameter = site.projection == ROUTER and config.targets.has_parameter(parameter)
    return parameter if is_parameter else module


def load(
    plan: AdapterPlan,
    file: TensorFile,
    base: BaseSpec,
    base_weights: BaseWeights | None = None,
    row_scales: Mapping[Site, Float32] | None = None,
) -> dict[Site, SiteWeights]:
    """Read what is at every site that is touched, as float32.

    `base_weights`: see `load_vocabulary`; magnitudes and biases cannot be read without them,
    ValueError. `row_scales`: what is known of DoRA's already. ValueError as `add_vectors`, too.
    """
    weights = _load_factors(plan, file, base)
    if plan.vocabulary is not None:
        for m in load_vocabulary(plan.vocabulary, file, base, base_weights):
            weights[m.site] = SiteWeights(m.a, m.b, m.scale, rows=m.rows)
    if not plan.vectors:
        return weights
    if base_weights is None:
        raise ValueError("DoRA's magnitudes and saved biases need the base's own weights")
    return add_vectors(weights, plan.vectors, file, base, base_weights, row_scales)


def _load_factors(plan: AdapterPlan, file: TensorFile, base: BaseSpec) -> dict[Site, SiteWeights]:
    assert not plan.faults, "a plan with faults is not loaded"
    weights = {}
    for f in plan.plain:
        if not f.rank:
            continue
        a, b = file.read(f.a_name), file.read(f.b_name).T.copy()
        if f.e_name is not None:
            a = a * file.read(f.e_name)
        weights[f.site] = SiteWeights(a, b, f.scale)
    for fused in plan.fused:
        for site, a, b in load_fused(fused, file, base):
            weights[site] = SiteWeights(a, b, fused.scale)
    for stacked in plan.stacked:
        for site, a, b in load_stacked(stacked, file, base):
            weights[site] = SiteWeights(a, b, stacked.scale)
    return weights
