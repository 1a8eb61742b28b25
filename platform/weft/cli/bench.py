"""`weft bench`: speed of the engine on a fixed load, with adapters and without, in one run."""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from weft.cli.base import check_base
from weft.cli.generate import parse_adapters
from weft.cli.output import JsonOption, fail, out, print_json
from weft.cli.progress import progress_bars


def bench(
    base: Annotated[Path, typer.Option(help="Hugging Face folder of the base model.")],
    adapter: Annotated[list[str] | None, typer.Option(help="NAME=DIR; repeatable.")] = None,
    num_requests: Annotated[int, typer.Option(min=1, help="Requests, all at once.")] = 32,
    input_len: Annotated[int, typer.Option(min=1, help="Prompt tokens of each.")] = 64,
    output_len: Annotated[int, typer.Option(min=2, help="Answer tokens of each.")] = 64,
    adapters_in_batch: Annotated[
        int | None, typer.Option(min=0, help="Distinct adapters. Default: all that are given.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    quantization: Annotated[
        str | None, typer.Option(help="Round the weights to int8 or int4. Default: neither.")
    ] = None,
    kv_dtype: Annotated[str, typer.Option(help="auto or int8: keys and values.")] = "auto",
    kernels: Annotated[
        str,
        typer.Option(help="auto, torch, native (C++ for float32 on a CPU) or triton (CUDA)."),
    ] = "auto",
    async_scheduling: Annotated[
        bool | None,
        typer.Option(help="Schedule a step while the one before it runs. Default: on CUDA."),
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 is torch's choice.")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each; the best counts.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Measure tokens/s, latencies, and what adapters cost against the base alone."""
    from weft.engine.bench import Load, measure
    from weft.engine.build import build_engine
    from weft.engine.config import EngineConfig
    from weft.engine.offline import register_folder
    from weft_adapters.store import FolderStore

    check_base(base)
    try:
        folders = parse_adapters(adapter or [])
        wanted = len(folders) if adapters_in_batch is None else adapters_in_batch
        if wanted > min(len(folders), num_requests):
            raise ValueError(
                f"{wanted} adapters in the batch need as many --adapter options and requests; "
                f"there are {len(folders)} and {num_requests}"
            )
        with tempfile.TemporaryDirectory(prefix="weft-") as store_dir, progress_bars() as report:
            config = EngineConfig(
                base,
                Path(store_dir),
                dtype=dtype,
                device=device,
                quantization=quantization,
                kv_dtype=kv_dtype,
                kernels=kernels,
                async_scheduling=async_scheduling,
                num_threads=threads,
                max_running=num_requests,
                max_step_tokens=max(512, num_requests),
                max_adapters_in_batch=max(1, wanted),
            )
            built = build_engine(config, report)
            try:
                store = FolderStore(config.adapters_dir)
                digests = [register_folder(built, store, d) for d in folders.values()][:wanted]
                load = Load(num_requests, input_len, output_len, tuple(digests))
                figures = measure(built, load, repeats, report)
                settings = {
                    "base": built.info.base_name,
                    "num_requests": num_requests,
                    "input_len": input_len,
                    "output_len": output_len,
                    "adapters_in_batch": wanted,
                    "dtype": built.info.dtype,
                    "quantization": built.info.quantization,
                    "kv_dtype": built.info.kv_dtype or built.info.dtype,
                    "memory_bytes": dict(built.info.memory_bytes),
                    "device": built.info.device,
                    "kernels": built.info.kernels,
                    "torch": version("torch"),
                    "weft": version("weft"),
                }
            finally:
                built.tiers.close()
    except (ValueError, OSError, RuntimeError) as error:
        raise fail(str(error)) from error
    result = {**figures, "settings": settings}
    if as_json:
        print_json(result)
    else:
        _print_table(result)


def _print_table(result: dict[str, object]) -> None:
    table = Table("figure", "value")
    for key, value in result.items():
        if isinstance(value, dict):
            cells = (
                f"{name} {part:.4g}" if isinstance(part, float) else f"{name} {part}"
                for name, part in value.items()
            )
            table.add_row(key, "  ".join(cells))
        else:
            table.add_row(key, f"{value:.4g}")
    out.print(table)
