"""Parts of uploads in S3, by its multipart uploads."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import pytest

from weft.registry.models import Upload, UploadPart
from weft.registry.parts import PartsMissingError
from weft.registry.s3_parts import MIN_PART_BYTES, S3PartStore
from weft.storage.s3 import S3Location, S3Store

BIG = b"x" * MIN_PART_BYTES


@pytest.fixture
def parts(server: str, location: S3Location) -> S3PartStore:
    return S3PartStore(location, server)


def begin(parts: S3PartStore, num_bytes: int) -> Upload:
    upload = Upload(id=f"upload_{secrets.token_hex(8)}", num_bytes=num_bytes, part_ids=[])
    upload.remote_id = parts.begin(upload.id)
    return upload


def put(parts: S3PartStore, upload: Upload, number: int, data: bytes, folder: Path) -> UploadPart:
    file = folder / f"part-{number}"
    file.write_bytes(data)
    etag = parts.put(upload, f"part_{number}", number, file)
    return UploadPart(id=f"part_{number}", number=number, num_bytes=len(data), etag=etag)


def test_parts_that_came_in_any_order_are_one_file(parts: S3PartStore, tmp_path: Path) -> None:
    upload = begin(parts, len(BIG) + 3)
    last = put(parts, upload, 2, b"end", tmp_path)
    first = put(parts, upload, 1, BIG, tmp_path)
    for _ in range(2):  # a call that did not live to tell is repeated
        parts.complete(upload, [first, last])
    parts.assemble(upload, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BIG + b"end"
    assert (upload.id, None) in parts.list_uploads()
    parts.discard(upload.id, None)
    parts.discard(upload.id, upload.remote_id)
    assert parts.list_uploads() == []
    with pytest.raises(PartsMissingError):
        parts.assemble(upload, tmp_path / "again")


def test_what_s3_cannot_put_together_is_refused_with_the_reason(
    parts: S3PartStore, tmp_path: Path
) -> None:
    upload = begin(parts, 6)
    first, second = (put(parts, upload, n, b"abc", tmp_path) for n in (1, 2))
    with pytest.raises(ValueError, match="order"):
        parts.complete(upload, [second, first])
    with pytest.raises(ValueError, match="at least"):
        parts.complete(upload, [first, second])


def test_an_upload_without_a_row_is_found_and_discarded(parts: S3PartStore, tmp_path: Path) -> None:
    upload = begin(parts, 3)
    put(parts, upload, 1, b"abc", tmp_path)
    assert parts.list_uploads() == [(upload.id, upload.remote_id)]
    parts.discard(upload.id, None)
    assert parts.list_uploads() == []


def test_the_sweeper_of_adapters_leaves_uploads_alone(
    parts: S3PartStore, store: S3Store, tmp_path: Path
) -> None:
    pending, complete = begin(parts, 3), begin(parts, 3)
    part = put(parts, complete, 1, b"abc", tmp_path)
    parts.complete(complete, [part])
    assert store.sweep(older_than_s=-60) == 0
    found: list[Any] = [upload_id for upload_id, _ in parts.list_uploads()]
    assert sorted(found) == sorted([pending.id, complete.id])
    assert store.list_digests() == []
