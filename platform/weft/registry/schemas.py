"""Adapters and versions on the wire. No paths, no ids of other tenants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from weft.registry.aliases import Expected
from weft.registry.models import Adapter, AdapterAlias, AdapterVersion
from weft.registry.sources import SOURCE_TYPES, AnySource, Source

TagKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
TagValue = Annotated[str, StringConstraints(max_length=512)]


class AdapterCreate(BaseModel):
    """Body of `POST /v1/adapters`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    base_model: str
    description: str = Field(default="", max_length=4096)
    tags: dict[TagKey, TagValue] = Field(default_factory=dict, max_length=64)


class VersionCreate(BaseModel):
    """JSON body of `POST .../versions`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    source: AnySource


def parse_source(body: bytes) -> Source:
    """RequestValidationError, as for any body; this one shares its route with multipart."""
    try:
        return VersionCreate.model_validate_json(body).source
    except ValidationError as error:
        faults = [
            # callers never wrote the name of the branch of the union
            {**fault, "loc": ("body", *(part for part in fault["loc"] if part not in SOURCE_TYPES))}
            for fault in error.errors(include_url=False, include_context=False)
        ]
        raise RequestValidationError(faults) from error


class AliasMove(BaseModel):
    """Body of `PUT .../aliases/{alias}`. Without `expected_version` the alias is moved in any case;
    with null only where there is none."""

    model_config = ConfigDict(extra="forbid", strict=True)
    version: int = Field(ge=1, le=2**31)
    expected_version: int | None = Field(default=None, ge=1, le=2**31)

    @property
    def expected(self) -> Expected:
        return self.expected_version if "expected_version" in self.model_fields_set else "any"


def alias_to_wire(adapter: Adapter, alias: AdapterAlias, number: int) -> dict[str, object]:
    return {
        "id": alias.name,
        "object": "adapter.alias",
        "adapter": adapter.name,
        "version": number,
        "model": f"{adapter.name}@v{number}",
        "updated_at": alias.updated_at,
    }


def adapter_to_wire(
    adapter: Adapter, aliases: Sequence[tuple[AdapterAlias, int]] | None = None
) -> dict[str, object]:
    wire: dict[str, object] = {
        "id": adapter.id,
        "object": "adapter",
        "name": adapter.name,
        "base_model": adapter.base_model,
        "description": adapter.description,
        "tags": adapter.tags,
        "created_at": adapter.created_at,
    }
    if aliases is not None:
        wire["aliases"] = {alias.name: number for alias, number in aliases}
    return wire


def version_to_wire(adapter: Adapter, version: AdapterVersion) -> dict[str, object]:
    return {
        "id": version.id,
        "object": "adapter.version",
        "adapter": adapter.name,
        "version": version.number,
        "model": f"{adapter.name}@v{version.number}",
        "state": version.state,
        "digest": version.digest,
        "base_model": adapter.base_model,
        "base_digest": version.base_digest,
        "num_bytes": version.num_bytes,
        "ranks": version.ranks,
        "report": version.report,
        "source": version.source,
        "card": version.card,
        "pinned": version.is_pinned,
        "created_at": version.created_at,
        "archived_at": version.archived_at,
    }
