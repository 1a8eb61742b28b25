"""The smoke comparison: the next token after a fixed prompt, with an adapter and without.

Knows requests and log-probabilities, not the engine that runs them: an operator's machine and a
server ask in their own way.
"""

from __future__ import annotations

from collections.abc import Sequence

from weft.messages import MAX_LOGPROBS, EngineRequest, SamplingParams, TokenLogprobs
from weft_adapters.report import Smoke

PROMPT = "The answer to the question is"
# float32 gives the same logits to a few of its last digits, whatever else is in the batch
_UNCHANGED = 1e-5


class SmokeFailedError(Exception):
    """One of the two requests failed, such as for logits that are not finite."""

    def __init__(self, what: str, error: str) -> None:
        super().__init__(f"a fixed prompt could not be run on {what}: {error}")


def create_requests(
    prompt_token_ids: Sequence[int], digest: str
) -> tuple[EngineRequest, EngineRequest]:
    """One token of the base and one of the adapter, with the likeliest others."""
    sampling = SamplingParams(1, temperature=0, logprobs=MAX_LOGPROBS, ignore_eos=True)
    prompt = tuple(prompt_token_ids)
    return (
        EngineRequest(f"smoke-base-{digest}", "", prompt, sampling),
        EngineRequest(f"smoke-adapter-{digest}", "", prompt, sampling, digest),
    )


def compare(prompt_token_ids: Sequence[int], base: TokenLogprobs, adapter: TokenLogprobs) -> Smoke:
    """What the adapter changes of the first token."""
    without, with_adapter = dict(base.top), dict(adapter.top)
    # a token that is likely for one of the two is for the other at most as likely as its last
    floors = min(without.values()), min(with_adapter.values())
    change = max(
        abs(without.get(token, floors[0]) - with_adapter.get(token, floors[1]))
        for token in without.keys() | with_adapter.keys()
    )
    return Smoke(tuple(prompt_token_ids), base.token_id, adapter.token_id, change)


def warnings_of(smoke: Smoke) -> list[str]:
    if smoke.max_logprob_change > _UNCHANGED:
        return []
    return ["with the adapter, the answer to a fixed prompt is the base's: it may change nothing"]
