"""Which threads prepare adapters for their slots, and how often."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from weft.engine.build import BuiltEngine
from weft.engine.offline import run_requests
from weft.messages import EngineRequest, SamplingParams


def record_threads(patch: pytest.MonkeyPatch, owner: type, method: str) -> list[str]:
    """The names of the threads that call it, from now on."""
    names: list[str] = []
    original = getattr(owner, method)

    def note(*args: Any, **keys: Any) -> Any:
        names.append(threading.current_thread().name)
        return original(*args, **keys)

    patch.setattr(owner, method, note)
    return names


def run_in_turn(built: BuiltEngine, digests: Sequence[str]) -> None:
    """Each adapter alone after the one before it, on this thread."""
    for turn, digest in enumerate(digests):
        sampling = SamplingParams(2, temperature=0, ignore_eos=True)
        request = EngineRequest(f"{turn}", "tenant", (1, 2, 3), sampling, digest)
        (completion,) = run_requests(built, [request]).values()
        assert completion.error is None
        assert len(completion.token_ids) == 2
