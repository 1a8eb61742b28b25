"""Bodies of LoRAX's routes, and what they ask for in the words of `CompletionRequest`.

Parameters that would have to be ignored are refused: `best_of` above 1, `typical_p`, `watermark`,
`decoder_input_details`, `apply_chat_template`, and sources of adapters other than this server.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from weft.gateway.schemas import CompletionRequest, MergedAdapters, StopString, require_unicode
from weft.gateway.structured import ResponseFormat
from weft.messages import MAX_LOGPROBS

_STRICT = ConfigDict(extra="forbid", strict=True)


class LoraxResponseFormat(BaseModel):
    """`schema` may be left out: any JSON object. With "text" it changes nothing."""

    model_config = _STRICT
    type: Literal["text", "json_object", "json_schema"]
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None


class LoraxParameters(BaseModel):
    """`parameters` of a request. `max_new_tokens`: None is all the room that the prompt leaves."""

    model_config = _STRICT

    adapter_id: str | None = Field(default=None, max_length=256)
    adapter_source: str | None = None
    merged_adapters: MergedAdapters | None = None
    api_token: str | None = None
    max_new_tokens: int | None = Field(default=None, ge=1)
    do_sample: bool = False
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_k: int | None = Field(default=None, ge=1, le=2**31)
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    repetition_penalty: float | None = Field(default=None, gt=0, le=2, allow_inf_nan=False)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2, allow_inf_nan=False)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=0, lt=2**64)
    ignore_eos_token: bool = False
    stop: Annotated[list[StopString], Field(max_length=16)] = []
    truncate: int | None = Field(default=None, ge=1)
    return_full_text: bool | None = None
    details: bool = False
    return_k_alternatives: int | None = Field(default=None, ge=1, le=MAX_LOGPROBS)
    response_format: LoraxResponseFormat | None = None
    best_of: Literal[1] | None = None
    typical_p: None = None
    watermark: Literal[False] | None = None
    decoder_input_details: Literal[False] | None = None
    apply_chat_template: Literal[False] | None = None

    @field_validator("adapter_source")
    @classmethod
    def _source_is_here(cls, value: str | None) -> str | None:
        if value not in (None, "local"):
            raise ValueError("adapters are those registered with this server, 'local'")
        return value

    @field_validator("api_token")
    @classmethod
    def _no_token(cls, value: str | None) -> str | None:
        if value is not None:
            raise ValueError("the key in 'Authorization: Bearer' says whose adapters may be used")
        return value

    @property
    def is_sampling(self) -> bool:
        """Else the most likely token is taken. Temperature 0 never samples, 1 alone does not ask
        for it."""
        is_warped = self.top_k is not None or (self.top_p is not None and self.top_p < 1)
        wants = self.do_sample or is_warped or self.temperature not in (None, 0, 1)
        return wants and self.temperature != 0


class LoraxRequest(BaseModel):
    """Body of `POST /generate`, `/generate_stream` and `/`; `stream` is for the last alone."""

    model_config = _STRICT
    inputs: str = Field(min_length=1)
    parameters: LoraxParameters | None = None
    stream: bool = False

    @field_validator("inputs")
    @classmethod
    def _inputs_are_unicode(cls, value: str) -> str:
        require_unicode(value)
        return value

    def to_completion(
        self, prompt: tuple[int, ...], seed: int, max_model_len: int, *, stream: bool
    ) -> CompletionRequest:
        """The same request as OpenAI's route takes it; `seed` has 64 bits, unsigned."""
        given = self.parameters or LoraxParameters()
        room = max(1, max_model_len - len(prompt))  # with none left it is refused where it is used
        is_json = given.response_format is not None and given.response_format.type != "text"
        schema = given.response_format.schema_ if given.response_format and is_json else None
        temperature = 1.0 if given.temperature is None else given.temperature
        return CompletionRequest(
            prompt=list(prompt),
            stream=stream,
            max_tokens=given.max_new_tokens or room,
            temperature=temperature if given.is_sampling else 0.0,
            top_k=given.top_k,
            top_p=given.top_p,
            repetition_penalty=given.repetition_penalty,
            frequency_penalty=given.frequency_penalty,
            presence_penalty=given.presence_penalty,
            seed=seed - 2**64 if seed >= 2**63 else seed,
            ignore_eos=given.ignore_eos_token,
            stop=list(given.stop) or None,
            logprobs=given.return_k_alternatives or 0,
            guided_json=schema,
            response_format=ResponseFormat(type="json_object")
            if is_json and schema is None
            else None,
        )
