"""Judges an upload: a report that lists every fault, or the digest of what is accepted."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from weft_adapters.config import AdapterConfig, parse_config
from weft_adapters.digest import adapter_digest
from weft_adapters.faults import AdapterFaultError, Fault, FaultList
from weft_adapters.format import AdapterPlan, resolve
from weft_adapters.header import Header, read_header_path
from weft_adapters.sites import BaseSpec
from weft_adapters.tensors import TensorFile


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """`ok` exactly when there are no faults; then `digest` is set. `warnings` are sentences.

    `sites` counts the touched sites by projection.
    """

    ok: bool
    digest: str | None = None
    faults: tuple[Fault, ...] = ()
    warnings: tuple[str, ...] = ()
    num_tensors: int = 0
    num_parameters: int = 0
    num_bytes: int = 0
    ranks: tuple[int, ...] = ()
    uses_experts: bool = False
    sites: dict[str, int] = field(default_factory=dict)

    @property
    def max_rank(self) -> int:
        return max(self.ranks, default=0)

    def to_dict(self) -> dict[str, object]:
        return {
            "ok": self.ok,
            "digest": self.digest,
            "faults": [fault.to_dict() for fault in self.faults],
            "warnings": list(self.warnings),
            "num_tensors": self.num_tensors,
            "num_parameters": self.num_parameters,
            "num_bytes": self.num_bytes,
            "ranks": list(self.ranks),
            "uses_experts": self.uses_experts,
            "sites": dict(self.sites),
        }


def validate(
    config_bytes: bytes,
    tensors_path: Path,
    base: BaseSpec,
    *,
    max_rank: int,
    declared_base: str | None = None,
) -> ValidationReport:
    """Never raises for bad input. `declared_base`: the base's name, to warn of another one."""
    faults = FaultList()
    config = header = None
    try:
        config = parse_config(config_bytes)
    except AdapterFaultError as error:
        faults += error.faults
    try:
        header = read_header_path(tensors_path)
    except AdapterFaultError as error:
        faults += error.faults
    if config is None or header is None:
        return _refused(faults, header)
    plan = resolve(config, header, base)
    faults += plan.faults
    faults.num_more += plan.num_more_faults
    faults += _unused(plan, header)
    faults += [
        Fault(
            "rank_too_large", f"the adapter has rank {rank}; this server takes at most {max_rank}"
        )
        for rank in plan.ranks
        if rank > max_rank
    ]
    if faults:
        return _refused(faults, header)
    with TensorFile(tensors_path, header) as file:
        faults += [
            Fault("non_finite", f"{name!r} holds NaN or infinite values", name)
            for name in header.tensors
            if not file.is_finite(name)
        ]
        if faults:
            return _refused(faults, header)
        return _accepted(config, plan, header, file, base, declared_base)


def _unused(plan: AdapterPlan, header: Header) -> list[Fault]:
    """A form that forgot one of its tensors: rather refused than served in part."""
    if plan.faults:
        return []
    uses = plan.uses()
    return [
        Fault("unmapped_tensor", f"the tensor {name[:200]!r} would not be used", name[:200])
        for name in header.tensors
        if name not in uses
    ]


def _refused(faults: FaultList, header: Header | None) -> ValidationReport:
    return ValidationReport(
        ok=False,
        faults=faults.listed(),
        num_tensors=len(header.tensors) if header else 0,
        num_bytes=header.num_bytes if header else 0,
    )


def _accepted(
    config: AdapterConfig,
    plan: AdapterPlan,
    header: Header,
    file: TensorFile,
    base: BaseSpec,
    declared_base: str | None,
) -> ValidationReport:
    warnings = []
    named = config.base_model_name
    if declared_base is not None and named and named.rstrip("/").split("/")[-1] != declared_base:
        warnings.append(
            f"the adapter's config names the base {named[:200]!r}; it will be served on "
            f"{declared_base!r}"
        )
    b_names = [f.b_name for f in plan.plain] + [f.b_name for f in plan.fused]
    if all(file.is_zero(name) for name in b_names):
        warnings.append("every lora_B is zero: the adapter changes nothing")
    sites: dict[str, int] = {}
    for site in plan.sites(base):
        sites[site.projection] = sites.get(site.projection, 0) + 1
    return ValidationReport(
        ok=True,
        digest=adapter_digest(config, plan, header, file, base.digest),
        warnings=tuple(warnings),
        num_tensors=len(header.tensors),
        num_parameters=sum(info.num_elements for info in header.tensors.values()),
        num_bytes=header.num_bytes,
        ranks=plan.ranks,
        uses_experts=any(site.expert is not None for site in plan.sites(base)),
        sites=sites,
    )
