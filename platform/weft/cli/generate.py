"""`weft generate`: an offline batch of requests from a JSON-lines file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weft.cli.output import JsonOption, fail, print_json
from weft.cli.output import out as console
from weft.cli.progress import progress_bars
from weft.messages import EngineRequest, SamplingParams

if TYPE_CHECKING:
    from weft.engine.build import BuiltEngine
    from weft.engine.config import EngineConfig
    from weft.engine.offline import Completion
    from weft.tokenizer import BaseTokenizer

_KEYS = frozenset(
    {
        "id",
        "prompt",
        "prompt_token_ids",
        "messages",
        "adapter",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "seed",
        "stop",
        "ignore_eos",
    }
)
_DEFAULT_MAX_TOKENS = 128


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


def parse_request(
    line: str, tokenizer: BaseTokenizer, digests: Mapping[str, str]
) -> tuple[EngineRequest, str | None]:
    """One line of the input file; ValueError says what is wrong with it."""
    raw = json.loads(line)
    if not isinstance(raw, dict):
        raise ValueError("a request must be a JSON object")
    unknown = raw.keys() - _KEYS
    if unknown:
        raise ValueError(f"unknown keys: {', '.join(sorted(unknown))}")
    request_id, adapter = raw.get("id"), raw.get("adapter")
    if not isinstance(request_id, str) or not request_id:
        raise ValueError("'id' must be a non-empty string")
    if adapter is not None and adapter not in digests:
        raise ValueError(f"adapter {adapter!r} is not among the --adapter options")
    stop = raw.get("stop") or []
    sampling = SamplingParams(
        max_tokens=raw.get("max_tokens", _DEFAULT_MAX_TOKENS),
        temperature=raw.get("temperature", 1.0),
        top_p=raw.get("top_p", 1.0),
        top_k=raw.get("top_k", 0),
        seed=raw.get("seed"),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        ignore_eos=raw.get("ignore_eos", False),
    )
    token_ids = tuple(_prompt_tokens(raw, tokenizer))
    digest = None if adapter is None else digests[adapter]
    return EngineRequest(request_id, "offline", token_ids, sampling, digest), adapter


def _prompt_tokens(raw: Mapping[str, object], tokenizer: BaseTokenizer) -> list[int]:
    given = [key for key in ("prompt", "prompt_token_ids", "messages") if key in raw]
    if len(given) != 1:
        raise ValueError("exactly one of prompt, prompt_token_ids and messages must be given")
    value = raw[given[0]]
    if given[0] == "prompt" and isinstance(value, str):
        return tokenizer.encode(value)
    if not isinstance(value, list):
        raise ValueError(f"{given[0]!r} has the wrong type")
    if given[0] == "messages":
        return tokenizer.encode_chat(value)
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in value):
        raise ValueError("'prompt_token_ids' must be whole numbers")
    return value


def result_line(completion: Completion, adapter: str | None) -> dict[str, object]:
    """One line of the output file."""
    usage = completion.usage
    line: dict[str, object] = {
        "id": completion.request_id,
        "adapter": adapter,
        "token_ids": completion.token_ids,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "usage": {
            "prompt_tokens": usage.num_prompt_tokens,
            "completion_tokens": usage.num_completion_tokens,
            "total_tokens": usage.num_prompt_tokens + usage.num_completion_tokens,
        },
    }
    if completion.error is not None:
        line["error"] = completion.error
    return line


def generate(
    base: Annotated[Path, typer.Option(help="Hugging Face folder of the base model.")],
    requests: Annotated[Path, typer.Option(help="JSON lines, one request each.")],
    out: Annotated[Path, typer.Option(help="Where the result lines go, in the order of requests.")],
    adapter: Annotated[list[str] | None, typer.Option(help="NAME=DIR; repeatable.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    num_threads: Annotated[int, typer.Option(help="CPU threads; 0 is torch's choice.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Run requests of many adapters as one mixed batch, without a server."""
    from weft.engine.config import EngineConfig

    try:
        adapters = parse_adapters(adapter or [])
        with tempfile.TemporaryDirectory(prefix="weft-") as store_dir:
            config = EngineConfig(
                base, Path(store_dir), dtype=dtype, device=device, num_threads=num_threads
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
    from weft.engine.build import build_engine
    from weft.engine.offline import register_folder, run_requests
    from weft_adapters.store import FolderStore

    with progress_bars() as report:
        built = build_engine(config, report)
        try:
            store = FolderStore(config.adapters_dir)
            digests = {name: register_folder(built, store, d) for name, d in adapters.items()}
            parsed = _parse_file(requests_path, built, digests)
            num_done = 0

            def on_finish(completion: Completion) -> None:
                nonlocal num_done
                num_done += 1
                report("generate", num_done, len(parsed))

            completions = run_requests(built, [request for request, _ in parsed], on_finish)
        finally:
            built.tiers.close()
    lines = [json.dumps(result_line(completions[r.request_id], name)) for r, name in parsed]
    out_path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return {
        "requests": len(lines),
        "errors": sum(c.finish_reason == "error" for c in completions.values()),
        "output_tokens": sum(len(c.token_ids) for c in completions.values()),
        "out": str(out_path),
    }


def _parse_file(
    path: Path, built: BuiltEngine, digests: Mapping[str, str]
) -> list[tuple[EngineRequest, str | None]]:
    """Every request is checked before any runs; ValueError names the line."""
    parsed = []
    seen: set[str] = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            request, adapter = parse_request(line, built.tokenizer, digests)
            built.engine.check(request)
            if request.request_id in seen:
                raise ValueError(f"the id {request.request_id!r} is used twice")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        seen.add(request.request_id)
        parsed.append((request, adapter))
    return parsed
