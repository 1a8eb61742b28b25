"""Judges an upload: a report that lists every fault, or the digest of what is accepted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from weft_adapters.config import AdapterConfig, parse_config
from weft_adapters.digest import adapter_digest
from weft_adapters.expressions import ExpressionError
from weft_adapters.faults import AdapterFaultError, Fault, FaultList, shown
from weft_adapters.format import AdapterPlan, resolve
from weft_adapters.header import Header, read_header_path
from weft_adapters.judgement import warnings_of
from weft_adapters.patterned import patterns_of
from weft_adapters.report import ValidationReport, listed, tensor_rows
from weft_adapters.sites import BaseSpec, Site
from weft_adapters.sizes import tier_bytes
from weft_adapters.targets import Differences, compare
from weft_adapters.tensors import TensorFile, TensorStats
from weft_adapters.vocabulary import check_twins

__all__ = ["ValidationReport", "validate"]

# what a server may keep adapters in: bytes of a value, and from where on values are refused: in
# float16 they round to infinity; others are no weights, and products of a few would be infinite
_VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_TOO_LARGE = {"float32": 1e9, "bfloat16": 1e9, "float16": 65520.0}


def validate(
    config_bytes: bytes,
    tensors_path: Path,
    base: BaseSpec,
    *,
    max_rank: int,
    declared_base: str | None = None,
    dtype: str = "float32",
) -> ValidationReport:
    """Never raises for bad input. `declared_base`: the base's name, to warn of another one;
    `dtype`: what the server keeps adapters in on the device. Where `base.digest` is empty, the
    base's weights being elsewhere, an accepted adapter has no digest either."""
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
        return _refused(faults, header, None, {})
    plan = resolve(config, header, base)
    faults += plan.faults
    faults.num_more += plan.num_more_faults
    faults += _ranks_too_large(plan, max_rank)
    differences = Differences()
    if not plan.faults:
        try:
            differences = compare(config.targets, _with_factors(plan, base), base)
        except ExpressionError as error:
            message = f"adapter_config.json: target_modules or exclude_modules is refused. {error}"
            faults.append(Fault("invalid_config", message, "target_modules"))
        faults += _tokens_without_rows(config, plan, base)
        faults += _unused(plan, header)
        faults += _other_reading(tensors_path, header)
    if faults:
        return _refused(faults, header, plan, {})
    with TensorFile(tensors_path, header) as file:
        stats = {name: file.stats(name) for name in header.tensors}
        faults += _bad_values(stats, dtype)
        faults += _large_products(plan, stats, dtype)
        faults += check_twins(plan.vocabulary, file)
        if faults:
            return _refused(faults, header, plan, stats)
        digest = adapter_digest(config, plan, header, file, base.digest) if base.digest else None
    warnings = (
        *_base_warnings(config, declared_base),
        *config.warnings,
        *_difference_warnings(differences),
        *warnings_of(plan, stats),
    )
    report = _accepted(digest, warnings, plan, header, stats, base, _VALUE_BYTES[dtype])
    report = replace(report, has_tokenizer=config.own_tokens is not None)
    missing = patterns_of(str(site) for site in differences.missing)
    return replace(report, missing=tuple(map(str, missing)))


def _ranks_too_large(plan: AdapterPlan, max_rank: int) -> Iterator[Fault]:
    for rank in plan.ranks:
        if rank > max_rank:
            message = f"the adapter has rank {rank}; this server takes at most {max_rank}"
            yield Fault("rank_too_large", message)


def _with_factors(plan: AdapterPlan, base: BaseSpec) -> Iterator[Site]:
    """A bias may have been trained anywhere."""
    return (site for site, rank in plan.sites(base).items() if rank)


def _tokens_without_rows(
    config: AdapterConfig, plan: AdapterPlan, base: BaseSpec
) -> Iterator[Fault]:
    num_tokens = base.vocab_size if plan.vocabulary is None else plan.vocabulary.num_tokens
    for token in () if config.own_tokens is None else config.own_tokens.tokens:
        if token.token_id >= num_tokens:
            message = (
                f"the tokenizer's added token {shown(token.content)} has the id {token.token_id}, "
                f"and the embedding only {num_tokens} rows"
            )
            yield Fault("token_without_row", message)


def _unused(plan: AdapterPlan, header: Header) -> Iterator[Fault]:
    """A form that forgot one of its tensors: rather refused than served in part."""
    uses = plan.uses()
    for name in header.tensors:
        if name not in uses:
            message = f"the tensor {name[:200]!r} would not be used"
            yield Fault("unmapped_tensor", message, name[:200])


def _other_reading(path: Path, header: Header) -> Iterator[Fault]:
    """Our reader and the safetensors library have to see the same tensors in the file."""
    try:
        with safe_open(path, framework="numpy") as file:
            found = set(file.keys())
            for name in found ^ set(header.tensors):
                message = f"only one of two readers finds the tensor {shown(name)}"
                yield Fault("readers_disagree", message, name)
            for name in found & set(header.tensors):
                info, view = header.tensors[name], file.get_slice(name)
                if (view.get_dtype(), tuple(view.get_shape())) != (info.dtype, info.shape):
                    message = f"two readers do not agree on the tensor {shown(name)}"
                    yield Fault("readers_disagree", message, name)
    except SafetensorError as error:
        yield Fault("readers_disagree", f"the safetensors library refuses the file: {error}")


def _bad_values(stats: Mapping[str, TensorStats], dtype: str) -> Iterator[Fault]:
    for name, found in stats.items():
        if not found.is_finite:
            yield Fault("non_finite", f"{name!r} holds NaN or infinite values", name)
        elif found.max_abs >= _TOO_LARGE[dtype]:
            message = f"{name!r} holds {found.max_abs:.3g}, which is too large for {dtype}"
            yield Fault("value_too_large", message, name)


def _large_products(
    plan: AdapterPlan, stats: Mapping[str, TensorStats], dtype: str
) -> Iterator[Fault]:
    """AdaLoRA's singular values go into A when it is loaded."""
    for own in plan.plain:
        if own.e_name is None:
            continue
        product = stats[own.a_name].max_abs * stats[own.e_name].max_abs
        if product >= _TOO_LARGE[dtype]:
            message = f"{own.a_name!r} times {own.e_name!r} may be too large for {dtype}"
            yield Fault("value_too_large", message, own.e_name)


def _base_warnings(config: AdapterConfig, declared_base: str | None) -> Iterator[str]:
    named = config.base_model_name
    if declared_base is not None and named and named.rstrip("/").split("/")[-1] != declared_base:
        yield (
            f"the adapter's config names the base {named[:200]!r}; it will be served on "
            f"{declared_base!r}"
        )


def _difference_warnings(differences: Differences) -> Iterator[str]:
    if differences.missing:
        sites = listed(str(site) for site in differences.missing)
        yield f"the adapter's config names what its file does not change: {sites}"
    if differences.unnamed:
        sites = listed(str(site) for site in differences.unnamed)
        yield f"the adapter's file changes what its config does not name: {sites}"


def _refused(
    faults: FaultList,
    header: Header | None,
    plan: AdapterPlan | None,
    stats: Mapping[str, TensorStats],
) -> ValidationReport:
    if header is None:
        return ValidationReport(ok=False, faults=faults.listed())
    rows, num_left_out = tensor_rows(header, plan.uses() if plan else {}, stats)
    return ValidationReport(
        ok=False,
        faults=faults.listed(),
        num_tensors=len(header.tensors),
        num_bytes=header.num_bytes,
        tensors=rows,
        num_rows_left_out=num_left_out,
    )


def _accepted(
    digest: str | None,
    warnings: tuple[str, ...],
    plan: AdapterPlan,
    header: Header,
    stats: Mapping[str, TensorStats],
    base: BaseSpec,
    value_bytes: int,
) -> ValidationReport:
    ranks = plan.sites(base)
    sites: dict[str, int] = {}
    for site in ranks:
        sites[site.projection] = sites.get(site.projection, 0) + 1
    vocabulary = plan.vocabulary
    rows, num_left_out = tensor_rows(header, plan.uses(), stats)
    return ValidationReport(
        ok=True,
        digest=digest,
        warnings=warnings,
        num_tensors=len(header.tensors),
        num_parameters=sum(info.num_elements for info in header.tensors.values()),
        num_bytes=header.num_bytes,
        ranks=plan.ranks,
        uses_experts=any(site.expert is not None for site in ranks),
        sites=sites,
        tensors=rows,
        num_rows_left_out=num_left_out,
        tier_bytes=tier_bytes(plan, header, base, value_bytes),
        vocab_size=None if vocabulary is None else vocabulary.num_tokens,
    )
