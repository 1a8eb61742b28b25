"""What an answer must match: OpenAI's `response_format` and vLLM's extra fields for the same."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from weft.errors import InvalidRequestError
from weft.messages import Grammar


class JsonSchemaFormat(BaseModel):
    """`strict` changes nothing: answers always match the schema. Neither does `name`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """`json_schema` is given with the type of that name only."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(BaseModel):
    """vLLM's field; one of the two."""

    model_config = ConfigDict(extra="forbid", strict=True)
    json_: Annotated[str | dict[str, Any] | None, Field(alias="json")] = None
    regex: str | None = None


class StructuredFields(BaseModel):
    """The fields of a body that say what the answer must match; at most one may."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None


def grammar_of(body: StructuredFields) -> tuple[str, Grammar] | None:
    """The grammar and the parameter that asks for it; InvalidRequestError for several."""
    given = [
        ("response_format", _from_response_format(body.response_format)),
        ("structured_outputs", _from_structured_outputs(body.structured_outputs)),
        ("guided_json", None if body.guided_json is None else _json_schema(body.guided_json)),
        (
            "guided_regex",
            None if body.guided_regex is None else Grammar("regex", body.guided_regex),
        ),
    ]
    found = [(param, grammar) for param, grammar in given if grammar is not None]
    if len(found) > 1:
        names = " and ".join(f"'{param}'" for param, _ in found)
        raise InvalidRequestError(
            f"{names} both say what the answer must match; send one of them.", param=found[1][0]
        )
    return found[0] if found else None


def _from_response_format(value: ResponseFormat | None) -> Grammar | None:
    if value is None:
        return None
    if (value.type == "json_schema") != (value.json_schema is not None):
        raise InvalidRequestError(
            "'response_format.json_schema' belongs to the type 'json_schema', which needs it.",
            param="response_format.json_schema",
        )
    if value.json_schema is not None:
        return _json_schema(value.json_schema.schema_)
    return Grammar("json_object") if value.type == "json_object" else None


def _from_structured_outputs(value: StructuredOutputs | None) -> Grammar | None:
    if value is None:
        return None
    if (value.json_ is None) == (value.regex is None):
        raise InvalidRequestError(
            "'structured_outputs' takes one of 'json' and 'regex'.", param="structured_outputs"
        )
    if value.regex is not None:
        return Grammar("regex", value.regex)
    assert value.json_ is not None
    return _json_schema(value.json_)


def _json_schema(schema: str | dict[str, Any]) -> Grammar:
    return Grammar("json_schema", schema if isinstance(schema, str) else json.dumps(schema))
