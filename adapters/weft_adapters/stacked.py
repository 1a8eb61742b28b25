"""Adapters of all experts of a layer in tensors with a dimension for them, as SGLang reads them.

    experts.<name>.lora_A.weight [E or 1, r, in]     experts.<name>.lora_B.weight [E or 1, out, r]

A side with a 1 is shared by all experts. "Shared outer" adapters share A of gate and up and B of
down, the sides towards the hidden state; the other side may also be a module per expert,
`experts.<e>.<name>`. `<name>` is gate_proj, up_proj, down_proj (or w1, w3, w2), or gate_up_proj,
with the rows of gate first.

Legend: E experts, N as many or 1, r rank, I in, O out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from weft_adapters.config import AdapterConfig
from weft_adapters.faults import Fault
from weft_adapters.header import Header
from weft_adapters.names import STACKED
from weft_adapters.sites import BaseSpec, Site
from weft_adapters.tensors import Float32, TensorFile
from weft_adapters.uses import Pair, TensorUse

Modules = dict[str, dict[str, str]]
Sides = dict[str, tuple[str, ...]]

_PROJECTIONS = {
    "gate_proj": ("gate_proj",), "w1": ("gate_proj",),
    "up_proj": ("up_proj",), "w3": ("up_proj",),
    "down_proj": ("down_proj",), "w2": ("down_proj",),
    "gate_up_proj": ("gate_proj", "up_proj"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StackedFactors:
    """Of one projection, or of gate and up, of all experts of a layer. A side is one tensor or one
    an expert."""

    layer: int
    projections: tuple[str, ...]
    a_names: tuple[str, ...]
    b_names: tuple[str, ...]
    rank: int
    scale: float

    @property
    def pairs(self) -> tuple[Pair, ...]:
        num = max(len(self.a_names), len(self.b_names))
        return tuple(
            Pair(self.a_names[i % len(self.a_names)], self.b_names[i % len(self.b_names)],
                 self.rank, self.scale)
            for i in range(num)
        )  # fmt: skip

    def uses(self) -> Iterator[tuple[str, TensorUse]]:
        """Each tensor's name and what it is for."""
        projection = "gate_up_proj" if len(self.projections) > 1 else self.projections[0]
        for role, names in (("lora_A", self.a_names), ("lora_B", self.b_names)):
            for expert, name in enumerate(names):
                which = "all experts" if len(names) == 1 else f"expert {expert}"
                yield name, TensorUse(role, f"layer {self.layer} {which} {projection}")

    def sites(self, base: BaseSpec) -> Iterator[Site]:
        for expert in range(base.num_experts):
            yield from (Site(self.layer, projection, expert) for projection in self.projections)


def take_stacked(
    modules: Modules, config: AdapterConfig, header: Header, base: BaseSpec, faults: list[Fault]
) -> list[StackedFactors]:
    """Take these modules, and what belongs to them of modules per expert, out of `modules`: names
    by role ("A", "B") by module."""
    found = []
    for module in [module for module in modules if STACKED.match(module)]:
        sides: Sides = {role: (name,) for role, name in modules.pop(module).items()}
        factors = _resolve(module, sides, modules, config, header, base, faults)
        if factors is not None:
            found.append(factors)
    return found


def _resolve(
    module: str,
    sides: Sides,
    modules: Modules,
    config: AdapterConfig,
    header: Header,
    base: BaseSpec,
    faults: list[Fault],
) -> StackedFactors | None:
    match = STACKED.match(module)
    assert match is not None
    layer, name = int(match["layer"]), match["name"]
    if not base.is_moe(layer) or match["block"] not in ("mlp", base.expert_names.block):
        for (tensor,) in sides.values():
            message = f"the tensor {tensor[:200]!r} maps to no site of the base"
            faults.append(Fault("unmapped_tensor", message, tensor))
        return None
    for role in {"A", "B"} - set(sides):
        numbered = [f"{match['experts']}.{expert}.{name}" for expert in range(base.num_experts)]
        halves = [modules.get(expert, {}) for expert in numbered]
        if any(set(half) != {role} for half in halves):
            (tensor,) = next(iter(sides.values()))
            message = f"{tensor[:200]!r} lacks lora_{role}, for all experts or for each"
            faults.append(Fault("missing_factor", message, tensor))
            return None
        sides[role] = tuple(modules.pop(expert)[role] for expert in numbered)
    rank, projections = config.rank_of(module), _PROJECTIONS[name]
    num_in, num_out = base.shape(Site(layer, projections[0], 0))
    shapes = {"A": (rank, num_in), "B": (len(projections) * num_out, rank)}
    wrong = [
        fault
        for role, own in sides.items()
        for fault in _misshapen(own, shapes[role], header, base)
    ]
    faults += wrong
    if wrong:
        return None
    return StackedFactors(layer, projections, sides["A"], sides["B"], rank, config.scale_of(module))


def _misshapen(
    names: tuple[str, ...], wanted: tuple[int, int], header: Header, base: BaseSpec
) -> Iterator[Fault]:
    """`names`: one tensor for all experts, or one for each."""
    for name in names:
        shape = header.tensors[name].shape
        allowed = [(1, *wanted), (base.num_experts, *wanted)] if len(names) == 1 else [wanted]
        if shape not in allowed:
            message = (
                f"{name!r} has shape {list(shape)}; this base and rank need "
                f"{' or '.join(str(list(shape)) for shape in allowed)}"
            )
            yield Fault("wrong_shape", message, name)


def load_stacked(
    factors: StackedFactors, file: TensorFile, base: BaseSpec
) -> Iterator[tuple[Site, Float32, Float32]]:
    """(site, a [r, I], b [r, O]) of each expert; what experts share is one array."""
    a_NrI = _read(factors.a_names, file)
    b_NOr = _read(factors.b_names, file)
    num_parts = len(factors.projections)
    b_parts = [
        [np.ascontiguousarray(part.T) for part in np.split(b_Or, num_parts)] for b_Or in b_NOr
    ]
    for expert in range(base.num_experts):
        a, parts = a_NrI[expert % len(a_NrI)], b_parts[expert % len(b_parts)]
        for projection, b in zip(factors.projections, parts, strict=True):
            yield Site(factors.layer, projection, expert), a, b


def _read(names: tuple[str, ...], file: TensorFile) -> list[Float32]:
    if len(names) > 1:
        return [file.read(name) for name in names]
    return list(file.read(names[0]))
