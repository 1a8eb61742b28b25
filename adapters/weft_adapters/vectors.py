"""The `[out]` tensors of a PEFT export: DoRA's magnitudes, and biases.

    <module>.lora_magnitude_vector             with `use_dora`, for every adapted module
    <module>.base_layer.bias, <module>.bias    with `bias` "lora_only" or "all"

A saved bias is the base's own as it was trained on, and replaces it. Both spellings of it are
PEFT's: for a module that has factors beside it, and for one that has none.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from weft_adapters.config import AdapterConfig
from weft_adapters.faults import Fault
from weft_adapters.header import Header
from weft_adapters.names import site_of
from weft_adapters.sites import BaseSpec, Site
from weft_adapters.uses import TensorUse

_MAGNITUDE = re.compile(r"(?P<module>.+)\.lora_magnitude_vector(?:\.weight)?\Z")
_BIAS = re.compile(r"(?P<module>.+?)(?:\.base_layer)?\.bias\Z")


@dataclass(frozen=True, slots=True)
class VectorNames:
    """Tensor names by site."""

    magnitudes: Mapping[Site, str] = field(default_factory=dict)
    biases: Mapping[Site, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.magnitudes or self.biases)

    def uses(self) -> Iterator[tuple[str, TensorUse]]:
        """Each tensor's name and what it is for."""
        for site, name in self.magnitudes.items():
            yield name, TensorUse("lora_magnitude_vector", str(site))
        for site, name in self.biases.items():
            yield name, TensorUse("bias", str(site))


def is_vector(name: str) -> bool:
    """True for a tensor that `resolve_vectors` sees to."""
    return _MAGNITUDE.match(name) is not None or _BIAS.match(name) is not None


def resolve_vectors(
    names: Mapping[str, str],
    with_factors: Collection[Site],
    config: AdapterConfig,
    header: Header,
    base: BaseSpec,
    faults: list[Fault],
) -> VectorNames:
    """`names`: vectors by their name below the model, to their tensors. `with_factors`: the sites
    of modules that have factors of their own."""
    magnitudes: dict[Site, str] = {}
    biases: dict[Site, str] = {}
    for short, name in names.items():
        is_magnitude = _MAGNITUDE.match(short) is not None
        match = (_MAGNITUDE if is_magnitude else _BIAS).match(short)
        assert match is not None, "the caller asks for vectors"
        site = site_of(match["module"], base)
        if site is None:
            message = f"the tensor {name[:200]!r} maps to no site of the base"
            faults.append(Fault("unmapped_tensor", message, name[:200]))
            continue
        contradiction = _contradiction(name, is_magnitude, config)
        if contradiction is not None:
            faults.append(Fault("config_mismatch", contradiction, name))
            continue
        shape, wanted = header.tensors[name].shape, (base.shape(site)[1],)
        if shape != wanted:
            message = f"{name!r} has shape {list(shape)}; this base needs {list(wanted)}"
            faults.append(Fault("wrong_shape", message, name))
        elif site in (own := magnitudes if is_magnitude else biases):
            message = f"{name!r} and {own[site]!r} are for one site"
            faults.append(Fault("duplicate_site", message, name))
        else:
            own[site] = name
    _check_magnitudes(magnitudes, with_factors, config, faults)
    return VectorNames(magnitudes, biases)


def _contradiction(name: str, is_magnitude: bool, config: AdapterConfig) -> str | None:
    if is_magnitude and not config.use_dora:
        return f"{name!r} is a magnitude of DoRA, and adapter_config.json lacks use_dora=true"
    if not is_magnitude and config.bias == "none":
        return f"{name!r} is a bias, and adapter_config.json says bias='none'"
    return None


def _check_magnitudes(
    magnitudes: Mapping[Site, str],
    with_factors: Collection[Site],
    config: AdapterConfig,
    faults: list[Fault],
) -> None:
    """Each has factors beside it, and with DoRA all factors have one."""
    for site, name in magnitudes.items():
        if site not in with_factors:
            message = f"{name!r} has no lora_A and lora_B beside it"
            faults.append(Fault("missing_factor", message, name))
    if config.use_dora:
        for site in sorted(set(with_factors) - magnitudes.keys()):
            message = f"use_dora=true, and {site} has no lora_magnitude_vector"
            faults.append(Fault("missing_factor", message))
