"""Adapters and versions on the wire. No paths, no ids of other tenants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from weft.db.lists import ListItem
from weft.registry.aliases import Expected
from weft.registry.models import Adapter, AdapterAlias, AdapterVersion, VersionState
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


class AliasObject(BaseModel):
    """A name that points at a version."""

    id: str
    object: Literal["adapter.alias"] = "adapter.alias"
    adapter: str
    version: int
    model: str
    updated_at: int


class AliasList(BaseModel):
    """All aliases of an adapter."""

    object: Literal["list"] = "list"
    data: list[AliasObject]
    has_more: Literal[False] = False


class DeletedAlias(BaseModel):
    """An alias that was."""

    id: str
    object: Literal["adapter.alias.deleted"] = "adapter.alias.deleted"
    adapter: str
    deleted: Literal[True] = True


class ListedAdapter(ListItem):
    """An adapter without its aliases."""

    object: Literal["adapter"] = "adapter"
    name: str
    base_model: str
    description: str
    tags: dict[str, str]
    created_at: int


class AdapterObject(ListedAdapter):
    """An adapter; `aliases` gives the version that each points at."""

    aliases: dict[str, int]


class DeletedAdapter(BaseModel):
    """An adapter that was."""

    id: str
    object: Literal["adapter.deleted"] = "adapter.deleted"
    name: str
    deleted: Literal[True] = True


class VersionObject(ListItem):
    """One upload or import. `report` says what was found in its files."""

    object: Literal["adapter.version"] = "adapter.version"
    adapter: str
    version: int
    model: str
    state: VersionState
    digest: str | None
    base_model: str
    base_digest: str
    num_bytes: int
    ranks: list[int]
    report: dict[str, Any]
    source: dict[str, Any]
    card: dict[str, Any]
    pinned: bool
    created_at: int
    archived_at: int | None


class DeletedVersion(BaseModel):
    """A version that cannot be called any more."""

    id: str
    object: Literal["adapter.version.deleted"] = "adapter.version.deleted"
    deleted: Literal[True] = True


def alias_to_wire(adapter: Adapter, alias: AdapterAlias, number: int) -> AliasObject:
    return AliasObject(
        id=alias.name,
        adapter=adapter.name,
        version=number,
        model=f"{adapter.name}@v{number}",
        updated_at=alias.updated_at,
    )


def listed_to_wire(adapter: Adapter) -> ListedAdapter:
    return ListedAdapter(
        id=adapter.id,
        name=adapter.name,
        base_model=adapter.base_model,
        description=adapter.description,
        tags=adapter.tags,
        created_at=adapter.created_at,
    )


def adapter_to_wire(adapter: Adapter, aliases: Sequence[tuple[AdapterAlias, int]]) -> AdapterObject:
    pointed = {alias.name: number for alias, number in aliases}
    return AdapterObject(**listed_to_wire(adapter).model_dump(), aliases=pointed)


def version_to_wire(adapter: Adapter, version: AdapterVersion) -> VersionObject:
    return VersionObject(
        id=version.id,
        adapter=adapter.name,
        version=version.number,
        model=f"{adapter.name}@v{version.number}",
        state=VersionState(version.state),
        digest=version.digest,
        base_model=adapter.base_model,
        base_digest=version.base_digest,
        num_bytes=version.num_bytes,
        ranks=version.ranks,
        report=version.report,
        source=version.source,
        card=version.card,
        pinned=version.is_pinned,
        created_at=version.created_at,
        archived_at=version.archived_at,
    )
