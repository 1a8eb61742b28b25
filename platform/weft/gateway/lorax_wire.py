"""Answers and errors in LoRAX's shapes. Values in, dictionaries out."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from weft.errors import WeftError
from weft.gateway.wire import Choice, Wire
from weft.messages import EngineOutput, TokenLogprobs
from weft.vocabulary import Vocabulary

ErrorToWire = Callable[[WeftError], tuple[int, Wire]]


def lorax_error(error: WeftError, *, has_lorax_statuses: bool) -> tuple[int, Wire]:
    """LoRAX tells errors apart by `error_type`. It answers 424 wherever no text came of a valid
    request, an unknown adapter included; without `has_lorax_statuses` those keep their own status.
    """
    status, kind, text = error.status_code, error.code or error.type, error.message
    if error.status_code in (400, 422):
        status, kind, text = 422, "validation", f"Input validation error: {text}"
    elif error.status_code == 503:
        status = 429 if error.code == "server_is_overloaded" else 503
        kind = "overloaded"
    elif error.code == "model_not_found" or error.status_code >= 500:
        status = 424 if has_lorax_statuses else status
        kind, text = "generation", f"Request failed during generation: {text}"
    # it may quote the caller, whose JSON can spell what is no Unicode
    return status, {"error": text.encode("utf-8", "replace").decode(), "error_type": kind}


@dataclass(frozen=True, slots=True)
class LoraxShape:
    """What of the request decides how its answer is shown.

    `full_text` is what goes before the generated text, `seed` None where nothing is sampled, and
    `end_ids` are the tokens that end an answer. `is_listed`: a whole answer is the one element of a
    list.
    """

    full_text: str
    has_details: bool
    has_alternatives: bool
    seed: int | None
    stop: tuple[str, ...]
    end_ids: frozenset[int]
    is_listed: bool = False


class LoraxFormat:
    """`/generate` and its streams: one choice, always with the log-probability of every token.

    The generated text ends with the stop sequence that ended it, as LoRAX's does; the engine's text
    ends before it, and its tokens tell which it was.
    """

    done = b""

    def __init__(self, vocabulary: Vocabulary, shape: LoraxShape, to_error: ErrorToWire) -> None:
        self._vocabulary, self._shape, self._to_error = vocabulary, shape, to_error
        self._started_s = time.monotonic()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""  # of a stream, as the engine gives it
        self._entries: list[TokenLogprobs] = []

    def error(self, error: WeftError) -> tuple[int, Wire]:
        return self._to_error(error)

    def headers(self, usage: Wire) -> Mapping[str, str]:
        return {
            "x-prompt-tokens": str(usage["prompt_tokens"]),
            "x-generated-tokens": str(usage["completion_tokens"]),
            "x-total-tokens": str(usage["total_tokens"]),
            "x-total-time": str(int((time.monotonic() - self._started_s) * 1000)),
        }

    def answer(self, choices: Sequence[Choice], usage: Wire) -> Wire | list[Wire]:
        (choice,) = choices
        reason = self._reason(choice.finish_reason, choice.logprobs)
        wire: Wire = {"generated_text": self._whole(choice.text, reason, choice.logprobs)}
        if self._shape.has_details:
            wire["details"] = {
                "finish_reason": reason,
                "prompt_tokens": usage["prompt_tokens"],
                "generated_tokens": usage["completion_tokens"],
                "skipped_tokens": 0,
                "seed": self._shape.seed,
                "prefill": [],
                "tokens": self._tokens(choice.logprobs, is_end=True),
            }
        return [wire] if self._shape.is_listed else wire

    def opening(self, num_choices: int) -> list[Wire]:
        assert num_choices == 1, "LoRAX's routes give one answer"
        return []

    def chunks(self, index: int, choice: Choice, output: EngineOutput) -> list[Wire]:
        """An event for each token; the last one has the whole text."""
        self._text += output.text
        self._entries += output.logprobs
        is_end = output.finish_reason is not None
        events: list[Wire] = [
            {"token": token, "generated_text": None, "details": None}
            for token in self._tokens(output.logprobs, is_end=is_end)
        ]
        if is_end:
            assert events, "an answer ends with a token"
            reason = self._reason(output.finish_reason, self._entries)
            events[-1]["generated_text"] = self._whole(self._text, reason, self._entries)
            if self._shape.has_details:
                events[-1]["details"] = {
                    "finish_reason": reason,
                    "prompt_tokens": output.usage.num_prompt_tokens,
                    "generated_tokens": output.usage.num_completion_tokens,
                    "seed": self._shape.seed,
                }
        return events

    def usage_chunk(self, usage: Wire) -> Wire:
        raise AssertionError("LoRAX's streams have their counts in the last event")

    def _reason(self, reason: str | None, entries: Sequence[TokenLogprobs]) -> str:
        if reason == "length":
            return "length"
        is_eos = bool(entries) and entries[-1].token_id in self._shape.end_ids
        return "eos_token" if is_eos else "stop_sequence"

    def _whole(self, text: str, reason: str, entries: Sequence[TokenLogprobs]) -> str:
        if reason == "stop_sequence":
            shown = b"".join(map(self._shown_bytes, entries)).decode(errors="replace")
            places = [(at, stop) for stop in self._shape.stop if (at := shown.find(stop)) >= 0]
            text += min(places)[1] if places else ""
        return self._shape.full_text + text

    def _shown_bytes(self, entry: TokenLogprobs) -> bytes:
        is_control = entry.token_id in self._vocabulary.control_ids
        return b"" if is_control else self._bytes(entry.token_id)

    def _bytes(self, token_id: int) -> bytes:
        table = self._vocabulary.token_bytes
        return table[token_id] if token_id < len(table) else b""  # the model may have more ids

    def _tokens(self, entries: Sequence[TokenLogprobs], *, is_end: bool) -> list[Wire]:
        """A character that several tokens make up is the text of the last of them."""
        tokens: list[Wire] = []
        for entry in entries:
            is_special = entry.token_id in self._vocabulary.control_ids
            data = self._bytes(entry.token_id)
            text = data.decode(errors="replace") if is_special else self._decoder.decode(data)
            token: Wire = {
                "id": entry.token_id,
                "text": text,
                "logprob": entry.logprob,
                "special": is_special,
                "skipped": False,
            }
            if self._shape.has_alternatives:
                token["alternative_tokens"] = [
                    {"id": i, "text": self._bytes(i).decode(errors="replace"), "logprob": p}
                    for i, p in entry.top
                ]
            tokens.append(token)
        if is_end and tokens:
            tokens[-1]["text"] = f"{tokens[-1]['text']}{self._decoder.decode(b'', final=True)}"
        return tokens
