"""Adapters of fused expert parameters (`target_parameters`): PEFT's ParamWrapper on disk.

transformers 5 keeps the experts of a layer in two parameters, `gate_up_proj [E, 2 F, H]` and
`down_proj [E, H, F]`. PEFT wraps each in one pair of matrices that holds a factor pair per expert:

    peft >= 0.19:  A [E r, in], B [out, r E], delta[e] = B_e A_e      (`in`, `out` as the weight's)
    peft <= 0.18:  `in` and `out` are swapped, delta[e] = (B_e A_e)^T

with A_e = A.reshape(E, r, .)[e] and B_e = B.reshape(., r, E)[..., e]. With both parameters wrapped,
`experts.base_layer` is gate_up and `experts` is down; one alone is `experts`, told by its shapes.

Legend: E experts, F expert width, H hidden, r rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from weft_adapters.config import AdapterConfig
from weft_adapters.faults import Fault
from weft_adapters.header import Header
from weft_adapters.sites import BaseSpec, Site
from weft_adapters.tensors import Float32, TensorFile
from weft_adapters.uses import Pair, TensorUse


@dataclass(frozen=True, slots=True)
class FusedFactors:
    """The two tensors of one wrapped parameter; `swapped` is the layout of peft <= 0.18."""

    layer: int
    parameter: str
    a_name: str
    b_name: str
    rank: int
    scale: float
    swapped: bool

    @property
    def projections(self) -> tuple[str, ...]:
        return ("gate_proj", "up_proj") if self.parameter == "gate_up_proj" else ("down_proj",)

    @property
    def pairs(self) -> tuple[Pair, ...]:
        return (Pair(self.a_name, self.b_name, self.rank, self.scale),)

    def uses(self) -> Iterator[tuple[str, TensorUse]]:
        """Each tensor's name and what it is for."""
        target = f"layer {self.layer} all experts {self.parameter}"
        yield self.a_name, TensorUse("lora_A", target)
        yield self.b_name, TensorUse("lora_B", target)

    def sites(self, base: BaseSpec) -> Iterator[Site]:
        for expert in range(base.num_experts):
            yield from (Site(self.layer, projection, expert) for projection in self.projections)


def _parameter_shape(parameter: str, base: BaseSpec) -> tuple[int, int]:
    """(in, out) of one expert's weight."""
    hidden, inner = base.hidden_size, base.moe_intermediate_size
    return (hidden, 2 * inner) if parameter == "gate_up_proj" else (inner, hidden)


def _layouts_by_version(version: str | None) -> tuple[bool, ...]:
    """The layouts (`swapped`) that the writing PEFT can have used; a development version is either
    side of its number."""
    match = re.match(r"(\d{1,5})\.(\d{1,5})", version or "", re.ASCII)
    if match is None or "dev" in (version or ""):
        return (False, True)
    return ((int(match[1]), int(match[2])) < (0, 19),)


def resolve_fused(
    layer: int,
    wrappers: Mapping[str, Mapping[str, str]],
    config: AdapterConfig,
    header: Header,
    base: BaseSpec,
    faults: list[Fault],
) -> list[FusedFactors]:
    """The wrapped parameters of one layer; `wrappers` maps "inner" and "outer" to A and B names."""
    names = [name for wrapper in wrappers.values() for name in wrapper.values()]
    if not base.is_moe(layer):
        faults += [
            Fault("unmapped_tensor", f"the tensor {n!r} maps to no site of the base", n)
            for n in names
        ]
        return []
    if set(wrappers) == {"inner"}:
        message = f"layer {layer}: 'experts.base_layer' is there without 'experts'"
        faults.append(Fault("missing_factor", message, names[0]))
        return []
    resolved = []
    for place, wrapper in wrappers.items():
        if len(wrappers) == 2:
            candidates = ["gate_up_proj" if place == "inner" else "down_proj"]
        else:
            candidates = _named_in(config.target_parameters)
        factors = _fit(layer, wrapper, candidates, config, header, base, faults)
        if factors is not None:
            resolved.append(factors)
    return resolved


def _named_in(target_parameters: Sequence[str]) -> list[str]:
    """Which fused parameters the config speaks of; both where it says nothing."""
    both = ("gate_up_proj", "down_proj")
    named = [p for p in both if any(t.rpartition(".")[2] == p for t in target_parameters)]
    return named or list(both)


def _fit(
    layer: int,
    wrapper: Mapping[str, str],
    candidates: Sequence[str],
    config: AdapterConfig,
    header: Header,
    base: BaseSpec,
    faults: list[Fault],
) -> FusedFactors | None:
    """The one reading of the two shapes, or a fault when there is none or more than one."""
    a_shape, b_shape = (header.tensors[wrapper[role]].shape for role in "AB")
    readings = []
    for parameter in candidates:
        num_in, num_out = _parameter_shape(parameter, base)
        rank = config.rank_of(f"model.layers.{layer}.mlp.experts.{parameter}")
        for swapped in _layouts_by_version(config.peft_version):
            wide_in, wide_out = (num_out, num_in) if swapped else (num_in, num_out)
            total = rank * base.num_experts
            if a_shape == (total, wide_in) and b_shape == (wide_out, total):
                readings.append((parameter, rank, swapped))
    if len(readings) != 1:
        what = (
            "could be read in several ways" if readings else "fit no expert parameter of this base"
        )
        message = (
            f"layer {layer}: expert factors of shapes {list(a_shape)} and {list(b_shape)} {what} "
            f"(peft_version {config.peft_version!r}, rank {config.rank})"
        )
        code = "ambiguous_layout" if readings else "wrong_shape"
        faults.append(Fault(code, message, wrapper["A"]))
        return None
    parameter, rank, swapped = readings[0]
    scale = config.scale_of(f"model.layers.{layer}.mlp.experts.{parameter}")
    return FusedFactors(layer, parameter, wrapper["A"], wrapper["B"], rank, scale, swapped)


def load_fused(
    factors: FusedFactors, file: TensorFile, base: BaseSpec
) -> Iterator[tuple[Site, Float32, Float32]]:
    """(site, a [r, in], b [r, out]) of each expert; gate and up share A and split B's rows."""
    num_experts = base.num_experts
    a_ErI = file.read(factors.a_name).reshape(num_experts, factors.rank, -1)
    b_OrE = file.read(factors.b_name)
    b_ErO = b_OrE.reshape(b_OrE.shape[0], factors.rank, num_experts).transpose(2, 1, 0)
    if factors.swapped:
        # delta = (B A)^T = A^T B^T: what was B's side takes the input
        a_ErI, b_ErO = b_ErO, a_ErI
    num_parts = len(factors.projections)
    for expert in range(num_experts):
        a = np.ascontiguousarray(a_ErI[expert])
        parts = np.split(b_ErO[expert], num_parts, axis=1)
        for projection, b in zip(factors.projections, parts, strict=True):
            yield Site(factors.layer, projection, expert), a, np.ascontiguousarray(b)
