"""From tensor names to sites: what each tensor of a PEFT export is for.

`resolve` reads no tensor data and reports every fault it finds; `load` then reads the factors.
Every tensor must be used: one that maps to nothing is a fault, never ignored.

    W_served = W + scale * B A        per site, A [rank, in], B [out, rank]
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from weft_adapters.config import AdapterConfig
from weft_adapters.faults import Fault, FaultList
from weft_adapters.fused import FusedFactors, load_fused, resolve_fused
from weft_adapters.header import Header
from weft_adapters.site_weights import SiteWeights
from weft_adapters.sites import ATTENTION_PROJECTIONS, MLP_PROJECTIONS, BaseSpec, Site
from weft_adapters.tensors import TensorFile
from weft_adapters.uses import TensorUse

_PREFIX = "base_model.model."
_NUMBER = r"(?:0|[1-9][0-9]{0,4})"
_ROLE = re.compile(r"(?P<module>.+)\.lora_(?P<role>[AB])\.weight\Z")
_MODULE = re.compile(
    rf"model\.layers\.(?P<layer>{_NUMBER})\.(?P<block>self_attn|mlp|block_sparse_moe)"
    rf"(?:\.experts\.(?P<expert>{_NUMBER})|\.(?P<shared>shared_expert))?\.(?P<name>[a-z0-9_]+)\Z"
)
_FUSED = re.compile(rf"model\.layers\.(?P<layer>{_NUMBER})\.mlp\.experts(?P<inner>\.base_layer)?\Z")


@dataclass(frozen=True, slots=True)
class PlainFactors:
    """The two tensors of one site."""

    site: Site
    a_name: str
    b_name: str
    rank: int
    scale: float

    def uses(self) -> Iterator[tuple[str, TensorUse]]:
        """Each tensor's name and what it is for."""
        yield self.a_name, TensorUse("lora_A", str(self.site))
        yield self.b_name, TensorUse("lora_B", str(self.site))


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """What each tensor is for. Only a plan without faults can be loaded.

    `faults` are the first ones; `num_more_faults` were found after them.
    """

    plain: tuple[PlainFactors, ...]
    fused: tuple[FusedFactors, ...]
    faults: tuple[Fault, ...]
    num_more_faults: int = 0

    @property
    def pairs(self) -> tuple[PlainFactors | FusedFactors, ...]:
        """All pairs of lora_A and lora_B."""
        return (*self.plain, *self.fused)

    def uses(self) -> dict[str, TensorUse]:
        """What each tensor is for, by name; in a plan without faults, every tensor of the file."""
        return {name: use for pair in self.pairs for name, use in pair.uses()}

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted({f.rank for f in self.plain} | {f.rank for f in self.fused}))

    def sites(self, base: BaseSpec) -> dict[Site, int]:
        """The rank at every site that is touched."""
        ranks = {factors.site: factors.rank for factors in self.plain}
        for fused in self.fused:
            ranks |= dict.fromkeys(fused.sites(base), fused.rank)
        return ranks


def resolve(config: AdapterConfig, header: Header, base: BaseSpec) -> AdapterPlan:
    """Map every tensor of the file; nothing is read and nothing raised."""
    faults = FaultList()
    modules = _group_by_module(header, faults)
    plain: list[PlainFactors] = []
    experts: dict[int, dict[str, dict[str, str]]] = {}
    for module, names in modules.items():
        if (match := _FUSED.match(module)) is not None:
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
    _check_each_site_once(plain, fused, base, faults)
    if not header.tensors:
        faults.append(Fault("no_tensors", "the adapter holds no tensors"))
    return AdapterPlan(tuple(plain), tuple(fused), tuple(faults), faults.num_more)


def _group_by_module(header: Header, faults: list[Fault]) -> dict[str, dict[str, str]]:
    """Module name -> role ("A", "B") -> tensor name, for all complete pairs."""
    modules: dict[str, dict[str, str]] = {}
    for name in header.tensors:
        match = _ROLE.match(name.removeprefix(_PREFIX))
        if match is None or not name.startswith(_PREFIX):
            message = f"the tensor {name[:200]!r} maps to no site of the base"
            faults.append(Fault("unmapped_tensor", message, name[:200]))
        else:
            modules.setdefault(match["module"], {})[match["role"]] = name
    for module in [module for module, names in modules.items() if len(names) < 2]:
        (name,) = modules.pop(module).values()
        faults.append(
            Fault("missing_factor", f"{name[:200]!r} lacks its counterpart lora_A or lora_B", name)
        )
    return modules


def _check_each_site_once(
    plain: list[PlainFactors], fused: list[FusedFactors], base: BaseSpec, faults: list[Fault]
) -> None:
    """An expert may be adapted by itself or through its fused parameter, not both."""
    in_fused = {site for factors in fused for site in factors.sites(base)}
    for factors in plain:
        if factors.site in in_fused:
            message = f"{factors.a_name!r} adapts {factors.site}, which fused factors adapt too"
            faults.append(Fault("duplicate_site", message, factors.a_name))


def _resolve_plain(
    module: str,
    names: Mapping[str, str],
    config: AdapterConfig,
    header: Header,
    base: BaseSpec,
    faults: list[Fault],
) -> PlainFactors | None:
    site = _site_of(module, base)
    if site is None:
        for name in names.values():
            message = _describe_unmapped(module, name)
            faults.append(Fault("unmapped_tensor", message, name[:200]))
        return None
    rank = config.rank_of(module)
    num_in, num_out = base.shape(site)
    fits = True
    for role, wanted in (("A", (rank, num_in)), ("B", (num_out, rank))):
        shape = header.tensors[names[role]].shape
        if shape != wanted:
            fits = False
            rank_only = (shape[1:] == wanted[1:]) if role == "A" else (shape[:1] == wanted[:1])
            code = "wrong_rank" if rank_only and len(shape) == 2 else "wrong_shape"
            message = (
                f"{names[role]!r} has shape {list(shape)}; this base and rank need {list(wanted)}"
            )
            faults.append(Fault(code, message, names[role]))
    if not fits:
        return None
    return PlainFactors(site, names["A"], names["B"], rank, config.scale_of(module))


def _describe_unmapped(module: str, name: str) -> str:
    match = _MODULE.match(module)
    if match is not None and match["block"] != "self_attn" and match["name"] == "gate":
        return f"the tensor {name[:200]!r} adapts the router, which is not served"
    return f"the tensor {name[:200]!r} maps to no site of the base"


def _site_of(module: str, base: BaseSpec) -> Site | None:
    match = _MODULE.match(module)
    if match is None:
        return None
    expert = None if match["expert"] is None else int(match["expert"])
    projection = _projection_of(match["block"], expert, match["shared"], match["name"], base)
    if projection is None:
        return None
    site = Site(int(match["layer"]), projection, expert)
    return site if base.has(site) else None


def _projection_of(
    block: str, expert: int | None, shared: str | None, name: str, base: BaseSpec
) -> str | None:
    """Our word for what a family calls a module; None for one that no base has there."""
    if expert is not None:
        names = base.expert_names
        spelled = {names.gate: "gate_proj", names.up: "up_proj", names.down: "down_proj"}
        return spelled.get(name) if block == names.block else None
    if block == "self_attn":
        return name if name in ATTENTION_PROJECTIONS and shared is None else None
    if block != "mlp":
        return None
    if shared is not None:
        return f"shared_{name}" if name in MLP_PROJECTIONS else None
    return name if name in (*MLP_PROJECTIONS, "shared_expert_gate") else None


def load(plan: AdapterPlan, file: TensorFile, base: BaseSpec) -> dict[Site, SiteWeights]:
    """Read the factors of every site that is touched, as float32."""
    assert not plan.faults, "a plan with faults is not loaded"
    weights = {}
    for f in plan.plain:
        b = file.read(f.b_name).T.copy()
        weights[f.site] = SiteWeights(file.read(f.a_name), b, f.scale)
    for fused in plan.fused:
        for site, a, b in load_fused(fused, file, base):
            weights[site] = SiteWeights(a, b, fused.scale)
    return weights
