"""From tensor names to sites: what each tensor of a PEFT export is for.

`resolve` reads no tensor data and reports every fault it finds; `load` then reads the factors.
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
from weft_adapters.expressions import ExpressionError
from weft_adapters.faults import Fault, FaultList
from weft_adapters.fused import FusedFactors, load_fused, resolve_fused
from weft_adapters.header import Header
from weft_adapters.names import FUSED, site_of
from weft_adapters.site_weights import SiteWeights
from weft_adapters.sites import ROUTER, BaseSpec, Site
from weft_adapters.stacked import Modules, StackedFactors, load_stacked, take_stacked
from weft_adapters.tensors import TensorFile
from weft_adapters.uses import Pair, TensorUse
from weft_adapters.vocabulary import (
    VocabularyPlan,
    is_vocabulary_tensor,
    load_vocabulary,
    resolve_vocabulary,
)

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
        return {name: use for part in parts for name, use in part.uses()}

    def sites(self, base: BaseSpec) -> dict[Site, int]:
        """The rank at every site that is touched."""
        ranks = {site: factors.rank for factors in self.factors for site in factors.sites(base)}
        if self.vocabulary is not None:
            ends = {site.projection: site for site in (base.embedding, base.head)}
            ranks |= {ends[name]: rank for name, rank in self.vocabulary.ranks.items()}
        return ranks

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
    modules = _group_by_module(config, header, faults)
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
    return AdapterPlan(tuple(plain), tuple(fused), tuple(stacked))


def _group_by_module(config: AdapterConfig, header: Header, faults: list[Fault]) -> Modules:
    """Module name -> role ("A", "B") -> tensor name."""
    modules: Modules = {}
    pattern = _ADALORA if config.is_adalora else _LORA
    for name in header.tensors:
        if is_vocabulary_tensor(name):
            continue
        match = pattern.match(name.removeprefix(_PREFIX))
        if match is None or not name.startswith(_PREFIX):
            message = f"the tensor {name[:200]!r} maps to no site of the base"
            faults.append(Fault("unmapped_tensor", message, name[:200]))
        else:
            modules.setdefault(match["module"], {})[match["role"]] = name
    return modules


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
    plan: AdapterPlan, file: TensorFile, base: BaseSpec, base_weights: BaseWeights | None = None
) -> dict[Site, SiteWeights]:
    """Read the factors of every site that is touched, as float32; `base_weights`:
    see `load_vocabulary`."""
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
    if plan.vocabulary is not None:
        for m in load_vocabulary(plan.vocabulary, file, base, base_weights):
            weights[m.site] = SiteWeights(m.a, m.b, m.scale, rows=m.rows)
    return weights
