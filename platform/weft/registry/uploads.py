"""Files that come in parts, in the shape of OpenAI's uploads: a part that has arrived stays, so an
upload that was broken off goes on where it was.

A row is committed before bytes are kept for it, and parts are listed only once they are kept: what
has no row, or an upload that is over, is swept.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from weft.audit import SYSTEM, Actor, Target, record
from weft.db.database import Database
from weft.db.ids import create_id, now
from weft.db.scope import Owner, TenantOwner
from weft.errors import InvalidRequestError, NotFoundError, PayloadTooLargeError, QuotaExceededError
from weft.registry.intake import part_rules, temporary_folder
from weft.registry.models import Upload, UploadPart
from weft.registry.multipart import PartRule, write_parts
from weft.registry.parts import PartStore
from weft.registry.quota import Quota, check_room
from weft.registry.repository import RegistryRepository
from weft.registry.upload_repository import OPEN, UploadMaintenanceRepository, UploadRepository

MAX_PART_BYTES = 64 * 2**20
MAX_PARTS = 10_000
PART_FIELD = "data"
MadeT = TypeVar("MadeT", Upload, UploadPart)
# is called in the transaction after which what was made is there
Keep: TypeAlias = Callable[[AsyncSession, MadeT], Awaitable[None]]


class Uploads:
    """Uploads of all tenants. `ttl_s` is for how long one may be left alone."""

    def __init__(
        self,
        database: Database,
        parts: PartStore,
        folder: Path,
        max_bytes: int,
        quota: Quota,
        ttl_s: float,
    ) -> None:
        self._database, self._parts, self._folder = database, parts, folder
        self._rules = part_rules(max_bytes)
        self._quota, self._ttl_s = quota, ttl_s

    async def create(
        self,
        owner: Owner,
        filename: str,
        num_bytes: int,
        mime_type: str,
        actor: Actor = SYSTEM,
        keep: Keep[Upload] | None = None,
    ) -> Upload:
        """An upload of one of an adapter's files; `keep` gets it once it takes parts."""
        self._check_file(filename, num_bytes)
        upload = Upload(
            id=create_id("upload"),
            tenant_id=owner.tenant_id,
            filename=filename,
            mime_type=mime_type,
            num_bytes=num_bytes,
            status="pending",
            remote_id=None,
            num_begun_parts=0,
            part_ids=[],
            created_at=now(),
            expires_at=now() + int(self._ttl_s),
        )
        async with self._database.writing() as session:
            await self._check_room(session, owner, num_bytes)
            UploadRepository(session, owner).add(upload)
            changes = {"filename": filename, "bytes": num_bytes}
            await _record(session, actor, "upload.created", upload, changes)
        remote_id = await asyncio.to_thread(self._parts.begin, upload.id)
        if remote_id is not None or keep is not None:
            async with self._database.writing() as session:
                upload = await self._find(UploadRepository(session, owner), upload.id)
                upload.remote_id = remote_id
                if keep is not None:
                    await keep(session, upload)
        return upload

    def _check_file(self, filename: str, num_bytes: int) -> None:
        rule = self._rules.get(filename)
        if rule is None:
            raise InvalidRequestError(
                f"A file of an adapter is named {', '.join(self._rules)}.", param="filename"
            )
        if num_bytes > rule.max_bytes:
            raise PayloadTooLargeError(
                f"{filename} may have at most {rule.max_bytes} bytes.", param="bytes"
            )

    async def _check_room(self, session: AsyncSession, owner: Owner, num_bytes: int) -> None:
        num_open, open_bytes = await UploadRepository(session, owner).count_open()
        if num_open >= self._quota.max_uploads:
            raise QuotaExceededError(
                f"You have {num_open} uploads that no version was made of yet, which is as "
                "many as you may have; cancel one, or wait for one to expire."
            )
        await check_room(RegistryRepository(session, owner), self._quota, open_bytes + num_bytes)

    async def get(self, owner: Owner, upload_id: str) -> tuple[Upload, Sequence[UploadPart]]:
        async with self._database.reading() as session:
            repository = UploadRepository(session, owner)
            upload = await self._find(repository, upload_id)
            return upload, await repository.list_parts(upload)

    async def add_part(
        self,
        owner: Owner,
        upload_id: str,
        content_type: str,
        chunks: AsyncIterator[bytes],
        check: Callable[[Path], Awaitable[None]] | None = None,
        keep: Keep[UploadPart] | None = None,
    ) -> UploadPart:
        """The file `data` of a multipart body; parts may come side by side and in any order.

        `check` gets the file before anything is done with it, `keep` the part.
        """
        part_id = create_id("part")
        async with temporary_folder(self._folder) as folder:
            file = folder / PART_FIELD
            if check is not None:  # which may know a part that has no room beside itself
                await self.get(owner, upload_id)
                await self._receive_part(content_type, chunks, folder, MAX_PART_BYTES)
                await check(file)
            upload, number, num_bytes_left = await self._begin_part(owner, upload_id)
            if check is None:
                await self._receive_part(content_type, chunks, folder, num_bytes_left)
            num_bytes = file.stat().st_size
            if num_bytes > num_bytes_left:
                raise _too_much(upload)
            etag = await asyncio.to_thread(self._parts.put, upload, part_id, number, file)
        part = UploadPart(
            id=part_id,
            tenant_id=owner.tenant_id,
            upload_id=upload.id,
            num_bytes=num_bytes,
            number=number,
            etag=etag,
            created_at=now(),
        )
        async with self._database.writing() as session:
            repository = UploadRepository(session, owner)
            upload = await self._find(repository, upload_id)
            _check_pending(upload)
            if await _num_bytes(repository, upload) + part.num_bytes > upload.num_bytes:
                raise _too_much(upload)
            repository.add(part)
            if keep is not None:
                await keep(session, part)
        return part

    async def _begin_part(self, owner: Owner, upload_id: str) -> tuple[Upload, int, int]:
        """(the upload, the part's number, how many bytes are to come)"""
        async with self._database.writing() as session:
            repository = UploadRepository(session, owner)
            upload = await self._find(repository, upload_id)
            _check_pending(upload)
            if upload.num_begun_parts >= MAX_PARTS:
                raise InvalidRequestError(f"An upload has at most {MAX_PARTS} parts.")
            upload.num_begun_parts += 1
            upload.expires_at = now() + int(self._ttl_s)
            num_bytes_left = upload.num_bytes - await _num_bytes(repository, upload)
            return upload, upload.num_begun_parts, num_bytes_left

    async def _receive_part(
        self, content_type: str, chunks: AsyncIterator[bytes], folder: Path, max_bytes: int
    ) -> None:
        rules = {PART_FIELD: PartRule(min(MAX_PART_BYTES, max_bytes))}
        await write_parts(content_type, chunks, folder, rules)

    async def complete(
        self,
        owner: Owner,
        upload_id: str,
        part_ids: Sequence[str],
        md5: str | None,
        actor: Actor = SYSTEM,
    ) -> Upload:
        """Fix the order of the parts; all of the announced bytes must have come. Idempotent."""
        upload, parts = await self.get(owner, upload_id)
        if upload.status == "completed" and list(part_ids) == upload.part_ids:
            return upload
        _check_pending(upload)
        found = {part.id: part for part in parts}
        unknown = [part_id for part_id in part_ids if part_id not in found]
        if unknown or len(set(part_ids)) != len(part_ids):
            problem = f"has no part {unknown[0][:64]!r}" if unknown else "has each part once"
            raise InvalidRequestError(f"The upload {problem}.", param="part_ids")
        ordered = [found[part_id] for part_id in part_ids]
        num_bytes = sum(part.num_bytes for part in ordered)
        if num_bytes != upload.num_bytes:
            raise InvalidRequestError(
                f"The parts have {num_bytes} bytes; {upload.num_bytes} were announced.",
                param="part_ids",
            )
        upload.part_ids = list(part_ids)
        try:
            await asyncio.to_thread(self._parts.complete, upload, ordered)
        except ValueError as error:
            raise InvalidRequestError(str(error), param="part_ids") from error
        if md5 is not None and await asyncio.to_thread(self._md5, upload) != md5.lower():
            raise InvalidRequestError("The bytes have another MD5 sum.", param="md5")
        async with self._database.writing() as session:
            completed = await self._find(UploadRepository(session, owner), upload_id)
            _check_pending(completed)
            completed.status = "completed"
            completed.part_ids = list(part_ids)
            completed.expires_at = now() + int(self._ttl_s)
            changes = {"num_parts": len(part_ids)}
            await _record(session, actor, "upload.completed", completed, changes)
            return completed

    def _md5(self, upload: Upload) -> str:
        with tempfile.TemporaryDirectory(dir=self._folder, prefix="upload-") as folder:
            self._parts.assemble(upload, Path(folder) / "file")
            with (Path(folder) / "file").open("rb") as file:
                return hashlib.file_digest(
                    file, lambda: hashlib.md5(usedforsecurity=False)
                ).hexdigest()

    async def cancel(self, owner: Owner, upload_id: str, actor: Actor = SYSTEM) -> Upload:
        """Its parts are gone; no version can be made of it. Idempotent."""
        upload, _ = await self.get(owner, upload_id)
        return await self._discard(upload, "cancelled", actor)

    async def end(self, owner: Owner, upload_ids: Sequence[str]) -> None:
        """A version was made of them."""
        for upload_id in upload_ids:
            async with self._database.reading() as session:
                upload = await UploadRepository(session, owner).find(upload_id)
            if upload is not None:
                await self._discard(upload, "expired")

    async def sweep(self) -> None:
        """Remove the parts of uploads that were left alone for too long, or are no upload's."""
        async with self._database.reading() as session:
            expired = await UploadMaintenanceRepository(session).list_expired(now())
        for upload in expired:
            await self._discard(upload, "expired")
        kept = await asyncio.to_thread(self._parts.list_uploads)
        # asked after the list: an upload that was begun meanwhile has a row already
        async with self._database.reading() as session:
            known = await UploadMaintenanceRepository(session).list_open_ids()
        for upload_id, remote_id in kept:
            if upload_id not in known:
                await asyncio.to_thread(self._parts.discard, upload_id, remote_id)

    async def _discard(self, upload: Upload, status: str, actor: Actor = SYSTEM) -> Upload:
        """The rows first: what is then left of the parts is swept."""
        async with self._database.writing() as session:
            repository = UploadRepository(session, TenantOwner(upload.tenant_id))
            found = await self._find(repository, upload.id)
            if found.status in OPEN:
                found.status = status
                await repository.delete_parts(found)
                await _record(session, actor, f"upload.{status}", found, {})
        await asyncio.to_thread(self._parts.discard, upload.id, upload.remote_id)
        return found

    async def _find(self, repository: UploadRepository, upload_id: str) -> Upload:
        upload = await repository.find(upload_id)
        if upload is None:
            raise NotFoundError(f"No upload '{upload_id[:64]}' exists.")
        return upload


async def _record(
    session: AsyncSession,
    actor: Actor,
    event_type: str,
    upload: Upload,
    changes: Mapping[str, object],
) -> None:
    await record(session, actor, event_type, Target(upload.id, upload.tenant_id), changes)


async def _num_bytes(repository: UploadRepository, upload: Upload) -> int:
    return sum(part.num_bytes for part in await repository.list_parts(upload))


def _too_much(upload: Upload) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"The parts have more than the {upload.num_bytes} bytes that were announced."
    )


def _check_pending(upload: Upload) -> None:
    if upload.status != "pending" or upload.expires_at <= now():
        status = "expired" if upload.status == "pending" else upload.status
        raise InvalidRequestError(f"The upload is {status} and takes no more parts.")
