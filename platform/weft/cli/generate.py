"""`weft generate`: an offline batch of requests from a JSON-lines file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weft.cli.base import check_base
from weft.cli.output import JsonOption, fail, print_json
from weft.cli.output import out as console
from weft.cli.progress import progress_bars

if TYPE_CHECKING:
    from weft.engine.config import EngineConfig
    from weft.engine.offline import Completion


def parse_adapters(values: list[str]) -> dict[str, Path]:
    """`NAME=DIR` options to folders by name; ValueError names the bad one."""
    adapters: dict[str, Path] = {}
    for value in values:
        name, separator, folder = value.partition("=")
        if not separator or not name or not folder:
            raise ValueError(f"--adapter takes NAME=DIR, not {value!r}")
        if name in adapters:
            raise ValueError(f"--adapter {name} is given twice")
        adapters[name] = Path(folder)
    return adapters


def generate(
    base: Annotated[Path, typer.Option(help="Hugging Face folder of the base model.")],
    requests: Annotated[Path, typer.Option(help="JSON lines, one request each; see above.")],
    out: Annotated[Path, typer.Option(help="Where the result lines go, as they finish.")],
    adapter: Annotated[list[str] | None, typer.Option(help="NAME=DIR; repeatable.")] = None,
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
    as_json: JsonOption = False,
) -> None:
    """Run requests of many adapters as one mixed batch, without a server.

    A request is {"id": "1", "adapter": NAME or null, "prompt": "..."}; instead of prompt,
    "prompt_token_ids" or chat "messages"; and as wanted: max_tokens, temperature, top_p, top_k,
    min_p, seed, n, stop, stop_token_ids, ignore_eos, min_tokens, repetition_penalty,
    presence_penalty, frequency_penalty, logit_bias, logprobs (a number), priority, and
    response_format or guided_json or guided_regex as in the API. A result is {"id", "adapter",
    "token_ids", "text", "finish_reason", "usage"}, with "logprobs" where asked for; with n above 1
    the answers are in its "choices". Results are in the order of the requests.
    """
    from weft.engine.config import EngineConfig

    check_base(base)
    if not requests.is_file():
        raise fail(f"there is no file {requests}")
    if not out.absolute().parent.is_dir() or out.is_dir():
        raise fail(f"--out {out} is not a file in a folder that is there")
    try:
        adapters = parse_adapters(adapter or [])
        with tempfile.TemporaryDirectory(prefix="weft-") as store_dir:
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
            )
            summary = _run(config, adapters, requests, out)
    except (ValueError, OSError) as error:
        raise fail(str(error)) from error
    if as_json:
        print_json(summary)
    else:
        console.print(
            f"{summary['requests']} requests, {summary['output_tokens']} tokens, "
            f"{summary['errors']} errors: {summary['out']}",
            markup=False,
        )


def _run(
    config: EngineConfig, adapters: Mapping[str, Path], requests_path: Path, out_path: Path
) -> dict[str, object]:
    from weft.cli.requests_file import read_requests, result_line
    from weft.engine.build import build_engine
    from weft.engine.offline import register_folder, run_requests
    from weft_adapters.store import FolderStore

    with progress_bars() as report:
        built = build_engine(config, report)
        try:
            store = FolderStore(config.adapters_dir)
            digests = {name: register_folder(built, store, d) for name, d in adapters.items()}
            parsed = read_requests(requests_path, built, digests)
            finished: dict[str, Completion] = {}
            with out_path.open("w", encoding="utf-8") as file:
                num_written = 0

                def on_finish(completion: Completion) -> None:
                    nonlocal num_written
                    finished[completion.request_id] = completion
                    report("generate", len(finished), len(parsed))
                    while num_written < len(parsed):
                        request, name = parsed[num_written]
                        if request.request_id not in finished:
                            break
                        line = result_line(finished[request.request_id], name)
                        file.write(json.dumps(line) + "\n")
                        num_written += 1
                    file.flush()

                run_requests(built, [request for request, _ in parsed], on_finish)
        finally:
            built.tiers.close()
    return {
        "requests": len(finished),
        "errors": sum(any(x.error for x in c.choices) for c in finished.values()),
        "output_tokens": sum(c.usage.num_completion_tokens for c in finished.values()),
        "out": str(out_path),
    }
