"""Where an import's files come from. Values only: nothing here opens or connects to anything."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[0-9a-f]{40}")
_S3 = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(?P<prefix>[^\x00-\x1f\x7f]*)")
MAX_KEY = 900


class SourceError(Exception):
    """A source that may not, or could not, be read; the text is for the caller."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class HubSource(BaseModel):
    """A repository of a Hugging Face hub, at one commit: what a branch means may change."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["huggingface"]
    repo: str
    revision: str

    @field_validator("repo")
    @classmethod
    def _is_repo(cls, value: str) -> str:
        if _REPO.fullmatch(value) is None or ".." in value or "--" in value:
            raise ValueError("a repository is named 'owner/name'")
        return value

    @field_validator("revision")
    @classmethod
    def _is_commit(cls, value: str) -> str:
        if _REVISION.fullmatch(value) is None:
            raise ValueError("a revision is a commit of 40 hexadecimal digits")
        return value

    def url(self, hub: str, file: str) -> str:
        return f"https://{hub}/{self.repo}/resolve/{self.revision}/{file}"


class S3Source(BaseModel):
    """The folder of an export in a bucket that the operator has listed."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["s3"]
    uri: str = Field(max_length=1024)

    @field_validator("uri")
    @classmethod
    def _is_folder(cls, value: str) -> str:
        match = _S3.fullmatch(value)
        if match is None:
            raise ValueError("a source in S3 is 's3://bucket/folder'")
        segments = match["prefix"].rstrip("/").split("/")
        if any(segment in ("", ".", "..") for segment in segments) or len(value) > MAX_KEY:
            raise ValueError("the folder of a source in S3 is a path without '.' and '..'")
        return value

    @property
    def bucket(self) -> str:
        return self.uri.removeprefix("s3://").partition("/")[0]

    @property
    def folder(self) -> str:
        """Without slashes around it."""
        return self.uri.removeprefix("s3://").partition("/")[2].rstrip("/")


class UploadSource(BaseModel):
    """Files that came in parts; each completed upload's file name says which one it is."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["upload"]
    upload_ids: list[Annotated[str, Field(max_length=64)]] = Field(min_length=1, max_length=16)


Source = HubSource | S3Source | UploadSource
AnySource = Annotated[Source, Field(discriminator="type")]
SOURCE_TYPES = ("huggingface", "s3", "upload")
