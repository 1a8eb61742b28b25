"""`weft adapter check`: judges an adapter on this machine, as the server would."""

from __future__ import annotations

import asyncio
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from weft.cli.base import ADAPTER_FILES
from weft.cli.output import JsonOption, fail, out, print_json, spinner

if TYPE_CHECKING:
    from weft_adapters.report import ValidationReport
    from weft_adapters.sites import BaseSpec

_DTYPES = ("float32", "bfloat16", "float16")


def check(
    folder: Annotated[Path, typer.Argument(help="Folder with the two files of a PEFT export.")],
    base: Annotated[
        Path, typer.Option(help="Folder of the base model; its config.json is enough.")
    ],
    max_rank: Annotated[int, typer.Option(help="Highest rank that the server takes.")] = 256,
    dtype: Annotated[
        str, typer.Option(help="What the server serves in: float32, bfloat16 or float16.")
    ] = "float32",
    smoke: Annotated[
        bool,
        typer.Option(
            help="Compare with the base on a fixed prompt, where the base's weights are there."
        ),
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Judge an adapter on this machine, as the server would. Exit code 1 if it is refused.

    The report says of every tensor what it changes, which are missing or map to nothing, the bytes
    on each tier, and what is odd. With the base's weights it also has the adapter's digest, and how
    far the adapter moves the answer to a fixed prompt.
    """
    if dtype not in _DTYPES:
        raise fail(f"--dtype must be one of {', '.join(_DTYPES)}, not {dtype!r}")
    _require_files(folder, *ADAPTER_FILES)
    _require_files(base, "config.json")
    try:
        with spinner("Checking..."):
            report = _validate(folder, base, max_rank, dtype)
        if smoke and report.digest is not None:
            with spinner("Asking the base and the adapter..."):
                report = _with_smoke(report, folder, base, dtype)
    except (OSError, ValueError) as error:
        raise fail(str(error)) from error
    if as_json:
        print_json(report.to_dict())
    else:
        _print(report)
    if not report.ok:
        raise typer.Exit(1)


def _require_files(folder: Path, *names: str) -> None:
    if not folder.is_dir():
        raise fail(f"there is no folder {folder}")
    for name in names:
        if not (folder / name).is_file():
            raise fail(f"{folder / name} is missing")


def _validate(folder: Path, base: Path, max_rank: int, dtype: str) -> ValidationReport:
    from weft.registry.intake import ReceivedAdapter
    from weft.registry.own_tokens import TokenizerRefusedError, take_own_tokens
    from weft_adapters.faults import Fault
    from weft_adapters.report import ValidationReport
    from weft_adapters.validation import validate

    files = ReceivedAdapter.in_folder(folder)
    can_compare = (base / "tokenizer.json").is_file()
    if can_compare:
        try:
            files = asyncio.run(take_own_tokens(files, base))
        except TokenizerRefusedError as error:
            return ValidationReport(ok=False, faults=(Fault("invalid_tokenizer", str(error)),))
    report = validate(
        files.config_bytes, files.tensors_path, _read_base(base), max_rank=max_rank, dtype=dtype
    )
    if files.tokenizer_folder is not None and not can_compare:
        warning = "the adapter's tokenizer was not looked at, since the base's is not there"
        report = replace(report, warnings=(*report.warnings, warning))
    return report


def _read_base(base: Path) -> BaseSpec:
    """Without a digest where the weights are elsewhere."""
    from weft_adapters.digest import base_digest
    from weft_adapters.sites import BaseSpec

    has_weights = any(base.glob("*.safetensors"))
    config = json.loads((base / "config.json").read_bytes())
    if not isinstance(config, dict):
        raise ValueError(f"{base / 'config.json'} is no object")
    return BaseSpec.from_config(config, base_digest(base) if has_weights else "")


def _with_smoke(report: ValidationReport, folder: Path, base: Path, dtype: str) -> ValidationReport:
    from weft.engine.config import EngineConfig
    from weft.engine.smoke import run_smoke
    from weft.smoke import SmokeFailedError, warnings_of

    with tempfile.TemporaryDirectory(prefix="weft-") as store:
        config = EngineConfig(
            base,
            Path(store),
            dtype=dtype,
            max_model_len=64,
            max_running=2,
            adapter_bytes=2 * report.tier_bytes["device"] + 2**24,
        )
        try:
            smoke = run_smoke(config, folder)
        except SmokeFailedError as error:
            return replace(report, warnings=(*report.warnings, str(error)))
    return replace(report, smoke=smoke, warnings=(*report.warnings, *warnings_of(smoke)))


def _print(report: ValidationReport) -> None:
    """For people: the tensors as a table, then what was found."""
    if report.tensors:
        table = Table("tensors", "shape", "dtype", "count", "changes", "rms")
        for row in report.tensors:
            rms = "" if row.rms is None else " to ".join(f"{x:.3g}" for x in sorted(set(row.rms)))
            target = "nothing" if row.target is None else f"{row.target} ({row.role})"
            shape = "x".join(map(str, row.shape))
            table.add_row(
                escape(row.name), shape, row.dtype, str(row.num_tensors), escape(target), rms
            )
        out.print(table)
    if report.num_rows_left_out:
        out.print(f"and {report.num_rows_left_out} more rows")
    for name in report.missing:
        out.print(f"missing: {name}", markup=False)
    for warning in report.warnings:
        out.print(f"warning: {warning}", markup=False)
    for fault in report.faults:
        out.print(f"{fault.code}: {fault.message}", markup=False)
    if not report.ok:
        out.print("refused")
        return
    sizes = ", ".join(f"{num} on {tier}" for tier, num in report.tier_bytes.items())
    out.print(f"ranks {', '.join(map(str, report.ranks))}; bytes: {sizes}", markup=False)
    if report.smoke is not None:
        change = report.smoke.max_logprob_change
        out.print(f"after a fixed prompt, log-probabilities change by up to {change:.4g}")
    digest = report.digest or "no digest, since the base's weights are not there"
    out.print(f"ok, {digest}", markup=False)
