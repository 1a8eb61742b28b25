"""No step contains loading: neither files, nor hashing, nor copying of weights."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import weft_adapters
from weft.messages import EngineRequest, SamplingParams
from weft_adapters.pace import LoadSpan

if TYPE_CHECKING:
    from tests.bench import Bench

ADAPTERS = str(Path(weft_adapters.__file__).parent)
# where files are read, bytes are hashed and factors are made and copied
LOADING = {
    "arrivals", "digest", "disk", "fetch", "format", "fused", "header", "loader", "pinned",
    "source", "tensors",
}  # fmt: skip
COPYING = {"try_load", "_write", "_copy"}


@contextmanager
def calls_of_this_thread(found: set[tuple[str, str]]) -> Iterator[None]:
    """(module, function) of all that this thread calls in weft_adapters."""

    def note(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(ADAPTERS):
            found.add((Path(frame.f_code.co_filename).stem, frame.f_code.co_name))

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)


def test_no_step_contains_a_piece_of_loading(dense: Bench) -> None:
    built, digests = dense.build(kernels="torch", max_running=4, check_integrity=False)
    spans: list[LoadSpan] = []
    built.tiers.pace.on_span = spans.append
    sampling = SamplingParams(8, temperature=0, ignore_eos=True)
    for number, digest in enumerate([*digests.values(), None]):
        built.engine.add(EngineRequest(str(number), f"t{number}", (1, 2, 3), sampling, digest))
    calls: set[tuple[str, str]] = set()
    while built.engine.has_work:
        with calls_of_this_thread(calls):
            outputs = built.engine.step()
        assert not any(output.error for output in outputs)
        if built.engine.is_stalled:
            time.sleep(0.001)
    built.tiers.close()
    kinds = [span.kind for span in spans]
    assert kinds.count("read") == kinds.count("copy") == len(digests)
    assert threading.get_ident() not in {span.thread_id for span in spans}
    assert ("tiers", "acquire") in calls, "nothing was watched"
    assert not {call for call in calls if call[0] in LOADING}
    assert not {call for call in calls if call[0] == "pool" and call[1] in COPYING}
