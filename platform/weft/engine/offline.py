"""Runs a fixed set of requests to the end on an engine of this thread, for `weft generate`,
`weft bench` and tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from weft.engine.build import BuiltEngine
from weft.messages import EngineOutput, EngineRequest, FinishReason, TokenLogprobs, Usage
from weft_adapters.states import AdapterState
from weft_adapters.store import CONFIG_NAME, TENSORS_NAME, FolderStore
from weft_adapters.validation import validate


class AdapterRefusedError(ValueError):
    """An adapter folder was refused; the message lists the faults."""


@dataclass(slots=True)
class Completion:
    """One finished choice; times are monotonic seconds of each token's arrival.

    `choices` of the first one are all of the request, itself included; its `usage` is all of
    theirs.
    """

    request_id: str
    adapter_digest: str | None
    usage: Usage
    index: int = 0
    choices: list[Completion] = field(default_factory=list)
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    token_times_s: list[float] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: str | None = None

    def take(self, output: EngineOutput, now: float) -> None:
        self.text += output.text
        self.token_ids += output.token_ids
        self.token_times_s += [now] * len(output.token_ids)
        self.logprobs += output.logprobs
        self.usage = output.usage
        self.finish_reason, self.error = output.finish_reason, output.error

    @classmethod
    def create(cls, request: EngineRequest) -> Completion:
        """The first choice of a request, before any output."""
        usage = Usage(len(request.prompt_token_ids), 0)
        choices = [
            cls(request.request_id, request.adapter_digest, usage, index)
            for index in range(request.sampling.n)
        ]
        choices[0].choices = choices
        return choices[0]


def register_folder(built: BuiltEngine, store: FolderStore, folder: Path) -> str:
    """Validate a PEFT adapter folder and put it into the store; its digest.

    Raises AdapterRefusedError with every fault.
    """
    for name in (CONFIG_NAME, TENSORS_NAME):
        if not (folder / name).is_file():
            raise AdapterRefusedError(f"{folder} has no {name}")
    config_bytes = (folder / CONFIG_NAME).read_bytes()
    report = validate(
        config_bytes, folder / TENSORS_NAME, built.base, max_rank=built.info.max_adapter_rank
    )
    if report.digest is None:
        faults = "\n".join(f"  {fault.message}" for fault in report.faults)
        raise AdapterRefusedError(f"{folder} was refused:\n{faults}")
    store.put(report.digest, config_bytes, folder / TENSORS_NAME)
    return report.digest


def load_adapters(built: BuiltEngine, digests: Iterable[str], timeout_s: float = 300.0) -> None:
    """Bring adapters to the device; RuntimeError when one fails or they do not all fit."""
    wanted = set(digests)
    end = time.monotonic() + timeout_s
    for digest in sorted(wanted):
        built.tiers.request(digest)
    while True:
        states = {digest: built.tiers.state(digest) for digest in wanted}
        for digest in wanted:
            failure = built.tiers.failure(digest)
            if failure is not None:
                raise RuntimeError(f"adapter {digest} could not be loaded: {failure}") from failure
        missing = [d for d, state in states.items() if state is not AdapterState.DEVICE]
        if not missing:
            return
        if time.monotonic() > end:
            raise RuntimeError(f"adapters are not on the device after {timeout_s} s: {missing}")
        time.sleep(0.002)


def run_requests(
    built: BuiltEngine,
    requests: Iterable[EngineRequest],
    on_finish: Callable[[Completion], None] = lambda completion: None,
) -> Mapping[str, Completion]:
    """Run to the end; the first choices by request id. ValueError for one that can never run.

    `on_finish` is called with a request's first choice when all have ended.
    """
    engine = built.engine
    completions: dict[str, Completion] = {}
    for request in requests:
        engine.add(request)
        completions[request.request_id] = Completion.create(request)
    while engine.has_work:
        outputs = engine.step()
        now = time.monotonic()
        for output in outputs:
            completion = completions[output.request_id]
            completion.choices[output.index].take(output, now)
            completion.usage = output.usage
            if output.is_last:
                on_finish(completion)
        if engine.is_stalled:
            time.sleep(0.001)
    return completions
