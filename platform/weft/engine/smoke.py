"""Runs the smoke comparison on an engine of its own, for one adapter's folder."""

from __future__ import annotations

from pathlib import Path

from weft.engine.build import BuiltEngine, build_engine
from weft.engine.config import EngineConfig
from weft.engine.offline import register_folder, run_requests
from weft.smoke import PROMPT, SmokeFailedError, compare, create_requests
from weft_adapters.report import Smoke
from weft_adapters.store import FolderStore


def run_smoke(config: EngineConfig, folder: Path) -> Smoke:
    """SmokeFailedError when either request fails; ValueError for a base that is not
    served or an adapter that is refused."""
    built = build_engine(config)
    try:
        digest = register_folder(built, FolderStore(config.adapters_dir), folder)
        return compare_on(built, digest)
    finally:
        built.tiers.close()


def compare_on(built: BuiltEngine, digest: str) -> Smoke:
    """The comparison for an adapter in the engine's store; SmokeFailedError when it fails."""
    prompt = built.tokenizer.encode(PROMPT)
    requests = create_requests(prompt, digest)
    completions = run_requests(built, requests)
    base, adapter = (completions[request.request_id] for request in requests)
    for what, completion in (("the base", base), ("the adapter", adapter)):
        if completion.error is not None:
            raise SmokeFailedError(what, completion.error)
    return compare(prompt, base.logprobs[0], adapter.logprobs[0])
