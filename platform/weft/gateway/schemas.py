"""Bodies of the inference routes. Types and ranges only; meaning is given in `prompts`.

Parameters not named here are judged by `weft.gateway.parameters`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator
from pydantic_core import PydanticCustomError

from weft.gateway.structured import StructuredFields
from weft.messages import MAX_CHOICES, MAX_LOGPROBS
from weft.registry.merging import WantedMerge
from weft_adapters.merge import MAX_PARENTS, MajoritySignMethod, MergeStrategy

StopString = Annotated[str, StringConstraints(min_length=1, max_length=512)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
TokenIds = list[int]
MergeWeight = Annotated[float, Field(ge=-1000, le=1000, allow_inf_nan=False)]


class StreamOptions(BaseModel):
    """`include_obfuscation` pads the stream's events, or not; None: as the tenant has chosen."""

    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: Literal[False] | None = None


class MergedAdapters(BaseModel):
    """LoRAX's field: several of the caller's adapters as one. `density` is for all strategies but
    "linear", `majority_sign_method` for the two "ties"."""

    model_config = ConfigDict(extra="forbid", strict=True)
    ids: Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=MAX_PARENTS)]
    weights: Annotated[list[MergeWeight], Field(max_length=MAX_PARENTS)]
    merge_strategy: MergeStrategy | None = None
    density: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    majority_sign_method: MajoritySignMethod | None = None

    def to_wanted(self) -> WantedMerge:
        return WantedMerge(
            tuple(self.ids),
            tuple(self.weights),
            self.merge_strategy or "linear",
            self.density,
            self.majority_sign_method or "total",
        )


class InferenceRequest(StructuredFields):
    """What both routes share. What OpenAI does not have is called as vLLM calls it;
    `merged_adapters` is LoRAX's, `adapter_id` our own."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = Field(default=None, max_length=256)
    adapter_id: str | None = Field(default=None, max_length=256)
    merged_adapters: MergedAdapters | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(default=None, ge=-1, le=2**31)
    min_p: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    repetition_penalty: float | None = Field(default=None, gt=0, le=2, allow_inf_nan=False)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2, allow_inf_nan=False)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2, allow_inf_nan=False)
    logit_bias: Annotated[dict[str, Bias], Field(max_length=1024)] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    stop: str | Annotated[list[StopString], Field(max_length=16)] | None = None
    stop_token_ids: Annotated[list[int], Field(max_length=128)] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = Field(default=None, ge=0)
    priority: int | None = Field(default=None, ge=-(2**31), lt=2**31)
    cache_salt: str | None = Field(default=None, min_length=1, max_length=512)

    @field_validator("stop")
    @classmethod
    def _stop_is_not_empty(cls, value: str | list[str] | None) -> str | list[str] | None:
        if value == "":
            raise ValueError("a stop string must not be empty")
        return value

    @property
    def stop_strings(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def requested_max_tokens(self) -> int | None:
        return self.max_tokens


class TextPart(BaseModel):
    """The one kind of content part that a text model reads."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """A turn. "developer" is OpenAI's newer word for "system" and means the same here."""

    model_config = ConfigDict(extra="allow", strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @field_validator("content", mode="before")
    @classmethod
    def _parts_are_text(cls, value: object) -> object:
        """Others (images, audio, files) are refused by name; no URL in one is ever fetched."""
        for part in value if isinstance(value, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind != "text":
                raise PydanticCustomError(
                    "unsupported_part",
                    "content parts of type '{kind}' are not supported, only those of type 'text'",
                    {"kind": kind[:32]},
                )
        return value

    @field_validator("content")
    @classmethod
    def _text_is_unicode(cls, value: str | list[TextPart]) -> str | list[TextPart]:
        for text in [value] if isinstance(value, str) else [part.text for part in value]:
            require_unicode(text)
        return value

    @property
    def text(self) -> str:
        """Parts are joined with a new line, as vLLM does."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class ChatRequest(InferenceRequest):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)

    @property
    def requested_max_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionRequest(InferenceRequest):
    """Body of `POST /v1/completions`: a text, its tokens, or a list of either."""

    prompt: Any
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)

    @property
    def requested_max_tokens(self) -> int | None:
        return self.max_tokens


def require_unicode(text: str) -> None:
    """JSON can spell lone surrogates, which are no text: ValueError."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text is not valid Unicode (a lone surrogate)") from None
