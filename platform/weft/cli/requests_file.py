"""The request and result lines of `weft generate`: JSON objects, one a line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from weft.errors import InvalidRequestError
from weft.gateway.structured import StructuredFields, grammar_of
from weft.messages import EngineRequest, Grammar, SamplingParams, TokenLogprobs

if TYPE_CHECKING:
    from weft.engine.build import BuiltEngine
    from weft.engine.offline import Completion
    from weft.tokenizer import BaseTokenizer

_DEFAULT_MAX_TOKENS = 128


class Message(BaseModel):
    """One chat message."""

    model_config = ConfigDict(extra="forbid", strict=True)
    role: Annotated[str, Field(min_length=1)]
    content: str


class RequestLine(StructuredFields):
    """One request. Exactly one of `prompt`, `prompt_token_ids` and `messages` is given; the ranges
    of the sampling parameters are those of `SamplingParams`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    id: Annotated[str, Field(min_length=1)]
    prompt: str | None = None
    prompt_token_ids: list[int] | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    adapter: str | None = None
    max_tokens: int = _DEFAULT_MAX_TOKENS
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = Field(default_factory=dict, strict=False)
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: int = 1
    stop: str | list[Annotated[str, Field(min_length=1)]] | None = None
    stop_token_ids: list[int] = Field(default_factory=list)
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None
    priority: int = 0

    @model_validator(mode="after")
    def _has_one_prompt(self) -> RequestLine:
        given = [self.prompt, self.prompt_token_ids, self.messages]
        if sum(value is not None for value in given) != 1:
            raise ValueError("exactly one of prompt, prompt_token_ids and messages must be given")
        return self

    def tokens(self, tokenizer: BaseTokenizer) -> list[int]:
        if self.prompt_token_ids is not None:
            return self.prompt_token_ids
        if self.messages is not None:
            return tokenizer.encode_chat([message.model_dump() for message in self.messages])
        assert self.prompt is not None
        return tokenizer.encode(self.prompt)

    def sampling(self) -> SamplingParams:
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return SamplingParams(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=tuple(self.logit_bias.items()),
            seed=self.seed,
            n=self.n,
            stop=tuple(stop),
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            min_tokens=self.min_tokens,
            logprobs=self.logprobs,
            grammar=self._grammar(),
        )

    def _grammar(self) -> Grammar | None:
        try:
            found = grammar_of(self)
        except InvalidRequestError as error:
            raise ValueError(error.message) from error
        return None if found is None else found[1]


def read_requests(
    path: Path, built: BuiltEngine, digests: Mapping[str, str]
) -> list[tuple[EngineRequest, str | None]]:
    """Every request with its adapter's name; all are checked before any runs.

    `digests` are those of the adapters by name. ValueError names the line and what is wrong.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text") from error
    parsed: list[tuple[EngineRequest, str | None]] = []
    seen: set[str] = set()
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            request, adapter = _parse(text, built, digests)
            if request.request_id in seen:
                raise ValueError(f"the id {request.request_id!r} is used twice")
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {_sentence(error)}") from error
        seen.add(request.request_id)
        parsed.append((request, adapter))
    if not parsed:
        raise ValueError(f"{path} holds no request")
    return parsed


def _parse(
    text: str, built: BuiltEngine, digests: Mapping[str, str]
) -> tuple[EngineRequest, str | None]:
    line = RequestLine.model_validate_json(text)
    if line.adapter is not None and line.adapter not in digests:
        raise ValueError(f"adapter {line.adapter!r} is not among the --adapter options")
    digest = None if line.adapter is None else digests[line.adapter]
    tokens = tuple(line.tokens(built.tokenizer))
    request = EngineRequest(
        line.id, "offline", tokens, line.sampling(), digest, priority=line.priority
    )
    built.engine.check(request)
    return request, line.adapter


def _sentence(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    faults = []
    for fault in error.errors(include_url=False):
        place = ".".join(str(part) for part in fault["loc"])
        faults.append(f"{place}: {fault['msg']}" if place else str(fault["msg"]))
    known = ", ".join(RequestLine.model_fields)
    unknown = any(fault["type"] == "extra_forbidden" for fault in error.errors())
    return "; ".join(faults) + (f" (known keys: {known})" if unknown else "")


def result_line(completion: Completion, adapter: str | None) -> dict[str, object]:
    """One line of the output file: one for a request, as in vLLM's batches. Several choices stand
    in a list, a single one in the line itself."""
    usage = completion.usage
    line: dict[str, object] = {"id": completion.request_id, "adapter": adapter}
    if len(completion.choices) == 1:
        line |= _choice(completion)
    else:
        line["choices"] = [{"index": c.index, **_choice(c)} for c in completion.choices]
    line["usage"] = {
        "prompt_tokens": usage.num_prompt_tokens,
        "completion_tokens": usage.num_completion_tokens,
        "total_tokens": usage.num_prompt_tokens + usage.num_completion_tokens,
    }
    return line


def _choice(completion: Completion) -> dict[str, object]:
    shown: dict[str, object] = {
        "token_ids": completion.token_ids,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
    }
    if completion.logprobs:
        shown["logprobs"] = [_logprobs(entry) for entry in completion.logprobs]
    if completion.error is not None:
        shown["error"] = completion.error
    return shown


def _logprobs(entry: TokenLogprobs) -> dict[str, object]:
    top = [{"token_id": token, "logprob": logprob} for token, logprob in entry.top]
    return {"token_id": entry.token_id, "logprob": entry.logprob, "top_logprobs": top}
