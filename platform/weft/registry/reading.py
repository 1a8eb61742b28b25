"""Gets the files of an import from where its source says they are, under the caps of an upload."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.database import Database
from weft.db.ids import now
from weft.db.scope import Owner
from weft.registry.fetcher import Fetched, Fetcher
from weft.registry.intake import part_rules
from weft.registry.models import Upload
from weft.registry.parts import PartsMissingError, PartStore
from weft.registry.sources import HubSource, S3Source, Source, SourceError, UploadSource
from weft.registry.upload_repository import UploadRepository
from weft.registry.uploads import Uploads

_SHA256 = re.compile(r"[0-9a-f]{64}")


class BucketReader(Protocol):
    """Reads objects of buckets with the operator's credentials. Blocks."""

    def read(self, bucket: str, key: str, path: Path, max_bytes: int) -> bool:
        """Write the object to the new file `path`; False where there is none. SourceError for one
        that is too large or cannot be read."""


@dataclass(frozen=True, slots=True)
class BucketRules:
    """`buckets`: "bucket" or "bucket/folder", where "{tenant}" stands for the tenant's id."""

    buckets: tuple[str, ...]

    def allows(self, owner: Owner, source: S3Source) -> bool:
        asked = f"{source.bucket}/{source.folder}/"
        for rule in self.buckets:
            allowed = rule.replace("{tenant}", owner.tenant_id).rstrip("/") + "/"
            if asked.startswith(allowed):
                return True
        return False


class Reading:
    """A `SourceReader` over the hub, the listed buckets and completed uploads."""

    def __init__(
        self,
        database: Database,
        fetcher: Fetcher,
        hub: str,
        bucket_rules: BucketRules,
        buckets: BucketReader | None,
        uploads: Uploads,
        parts: PartStore,
        max_bytes: int,
    ) -> None:
        self._database, self._fetcher, self._hub = database, fetcher, hub
        self._bucket_rules, self._buckets = bucket_rules, buckets
        self._uploads, self._parts = uploads, parts
        self._rules = part_rules(max_bytes)

    async def check(self, session: AsyncSession, owner: Owner, source: Source) -> None:
        if isinstance(source, HubSource):
            self._fetcher.check(source.url(self._hub, "adapter_config.json"))
        elif isinstance(source, S3Source):
            self._check_bucket(owner, source)
        else:
            await self._find_uploads(session, owner, source)

    async def read(self, owner: Owner, source: Source, folder: Path) -> None:
        if isinstance(source, HubSource):
            await self._read_hub(source, folder)
        elif isinstance(source, S3Source):
            self._check_bucket(owner, source)  # the list may have changed since it was promised
            await asyncio.to_thread(self._read_bucket, source, folder)
        else:
            await self._read_uploads(owner, source, folder)

    async def on_ready(self, owner: Owner, source: Source) -> None:
        if isinstance(source, UploadSource):
            await self._uploads.end(owner, source.upload_ids)

    async def _read_hub(self, source: HubSource, folder: Path) -> None:
        for name, rule in self._rules.items():
            path = folder / name
            try:
                fetched = await self._fetcher.fetch(
                    source.url(self._hub, name), path, rule.max_bytes
                )
            except SourceError as error:
                if error.code == "source_not_found" and not rule.is_required:
                    continue
                raise
            _check_hub_answer(source, name, fetched)

    def _check_bucket(self, owner: Owner, source: S3Source) -> None:
        if self._buckets is None or not self._bucket_rules.allows(owner, source):
            raise SourceError(
                "source_not_allowed", f"'{source.uri[:255]}' is not in a bucket to import from."
            )

    def _read_bucket(self, source: S3Source, folder: Path) -> None:
        assert self._buckets is not None, "the source was checked"
        for name, rule in self._rules.items():
            key = f"{source.folder}/{name}"
            is_there = self._buckets.read(source.bucket, key, folder / name, rule.max_bytes)
            if not is_there and rule.is_required:
                raise SourceError("source_not_found", f"The source has no {name}.")

    async def _find_uploads(
        self, session: AsyncSession, owner: Owner, source: UploadSource
    ) -> Sequence[Upload]:
        repository = UploadRepository(session, owner)
        uploads = []
        for upload_id in source.upload_ids:
            upload = await repository.find(upload_id)
            if upload is None or upload.status != "completed" or upload.expires_at <= now():
                status = "pending" if upload is not None and upload.status == "pending" else "gone"
                raise SourceError(
                    "source_not_found", f"The upload '{upload_id[:64]}' is {status}, not completed."
                )
            uploads.append(upload)
        names = [upload.filename for upload in uploads]
        missing = [n for n, rule in self._rules.items() if rule.is_required and n not in names]
        if missing or len(set(names)) != len(names):
            problem = f"lack {missing[0]}" if missing else "have a file twice"
            raise SourceError("source_not_found", f"The uploads {problem}.")
        return uploads

    async def _read_uploads(self, owner: Owner, source: UploadSource, folder: Path) -> None:
        async with self._database.reading() as session:
            uploads = await self._find_uploads(session, owner, source)
        for upload in uploads:
            try:
                await asyncio.to_thread(self._parts.assemble, upload, folder / upload.filename)
            except PartsMissingError as error:
                raise SourceError(
                    "source_not_found", f"Parts of {upload.filename} are not there any more."
                ) from error


def _check_hub_answer(source: HubSource, name: str, fetched: Fetched) -> None:
    """Hubs say which commit they answer with, and the sum of a large file."""
    commit = fetched.headers.get("x-repo-commit", source.revision)
    if commit != source.revision:
        raise SourceError("source_changed", f"{name} is of another commit than {source.revision}.")
    sha256 = fetched.headers.get("x-linked-etag", "").strip('"')
    if _SHA256.fullmatch(sha256) and sha256 != fetched.sha256:
        raise SourceError("source_changed", f"{name} is not what the hub says that it is.")
