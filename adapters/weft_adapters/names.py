"""From the name of a module, as PEFT writes it, to the site that it is.

Where an adapter's tensors are for all experts of a layer at once, it is to the layer.
"""

from __future__ import annotations

import re

from weft_adapters.sites import ATTENTION_PROJECTIONS, MLP_PROJECTIONS, ROUTER, BaseSpec, Site

_NUMBER = r"(?:0|[1-9][0-9]{0,4})"
_MODULE = re.compile(
    rf"model\.layers\.(?P<layer>{_NUMBER})\.(?P<block>self_attn|mlp|block_sparse_moe)"
    rf"(?:\.experts\.(?P<expert>{_NUMBER})|\.(?P<shared>shared_expert))?\.(?P<name>[a-z0-9_]+)\Z"
)
FUSED = re.compile(rf"model\.layers\.(?P<layer>{_NUMBER})\.mlp\.experts(?P<inner>\.base_layer)?\Z")
STACKED = re.compile(
    rf"(?P<experts>model\.layers\.(?P<layer>{_NUMBER})\.(?P<block>mlp|block_sparse_moe)\.experts)"
    r"\.(?P<name>(?:gate|up|gate_up|down)_proj|w[123])\Z"
)


def site_of(module: str, base: BaseSpec) -> Site | None:
    """None for a module that this base does not have or that cannot be adapted."""
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
        spelled = {names.spell(projection): projection for projection in MLP_PROJECTIONS}
        return spelled.get(name) if block == names.block else None
    if block == "self_attn":
        return name if name in ATTENTION_PROJECTIONS and shared is None else None
    if name == "gate" and shared is None:
        return ROUTER if block in ("mlp", base.expert_names.block) else None
    if block != "mlp":
        return None
    if shared is not None:
        return f"shared_{name}" if name in MLP_PROJECTIONS else None
    return name if name in (*MLP_PROJECTIONS, "shared_expert_gate") else None
