"""Parts of uploads in the bucket that keeps the adapters: an upload is a multipart upload of S3.

S3 puts parts together in the order of their numbers, which they get when they are begun, and takes
parts of at least 5 MiB, except the last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from weft.registry.models import Upload, UploadPart
from weft.registry.parts import PartsMissingError
from weft.storage.s3 import S3Location, create_client, translated

MIN_PART_BYTES = 5 * 2**20
_NUM_ATTEMPTS = 5
_FOLDER = "uploads/"
_GONE = ("NoSuchUpload", "NoSuchKey", "404")


class S3PartStore:
    """A `PartStore`."""

    def __init__(self, location: S3Location, endpoint_url: str | None = None) -> None:
        self._bucket, self._prefix = location.bucket, location.prefix + _FOLDER
        self._client = create_client(endpoint_url, _NUM_ATTEMPTS)

    def begin(self, upload_id: str) -> str | None:
        with translated():
            answer = self._client.create_multipart_upload(**self._object(upload_id))
        return str(answer["UploadId"])

    def put(self, upload: Upload, part_id: str, number: int, path: Path) -> str | None:
        if upload.remote_id is None:
            raise PartsMissingError  # the server was killed before it answered with this upload
        with translated(), path.open("rb") as file:
            answer = self._client.upload_part(
                **self._object(upload.id),
                UploadId=upload.remote_id,
                PartNumber=number,
                Body=file,
            )
        return str(answer["ETag"])

    def complete(self, upload: Upload, parts: Sequence[UploadPart]) -> None:
        numbers = [part.number for part in parts]
        if numbers != sorted(numbers):
            raise ValueError("Parts are put together in the order in which they were begun.")
        if any(part.num_bytes < MIN_PART_BYTES for part in parts[:-1]):
            raise ValueError(f"Parts but the last have at least {MIN_PART_BYTES} bytes.")
        listed = [{"PartNumber": part.number, "ETag": part.etag} for part in parts]
        with translated():
            try:
                self._client.complete_multipart_upload(
                    **self._object(upload.id),
                    UploadId=upload.remote_id,
                    MultipartUpload={"Parts": listed},
                )
            except self._client.exceptions.ClientError as error:
                # done before, by a call that did not live to say so
                if not _is_gone(error) or self._num_bytes(upload.id) != upload.num_bytes:
                    raise

    def _num_bytes(self, upload_id: str) -> int:
        """-1 without an object."""
        try:
            return int(self._client.head_object(**self._object(upload_id))["ContentLength"])
        except self._client.exceptions.ClientError as error:
            if _is_gone(error):
                return -1
            raise

    def assemble(self, upload: Upload, path: Path) -> None:
        with translated():
            try:
                answer = self._client.get_object(**self._object(upload.id))
            except self._client.exceptions.ClientError as error:
                if _is_gone(error):
                    raise PartsMissingError from error
                raise
            with path.open("xb") as file:
                for chunk in answer["Body"].iter_chunks(1 << 20):
                    file.write(chunk)
        if path.stat().st_size != upload.num_bytes:
            raise PartsMissingError

    def discard(self, upload_id: str, remote_id: str | None) -> None:
        begun = [remote for found, remote in self._begun(upload_id) if found == upload_id]
        with translated():
            for remote in begun:
                self._client.abort_multipart_upload(**self._object(upload_id), UploadId=remote)
            self._client.delete_object(**self._object(upload_id))

    def list_uploads(self) -> list[tuple[str, str | None]]:
        complete: list[tuple[str, str | None]] = [(found, None) for found in self._complete()]
        return sorted({*complete, *self._begun()}, key=str)

    def _complete(self) -> Iterator[str]:
        pages = self._client.get_paginator("list_objects_v2")
        with translated():
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix):
                for found in page.get("Contents", ()):
                    yield str(found["Key"]).removeprefix(self._prefix)

    def _begun(self, upload_id: str = "") -> Iterator[tuple[str, str]]:
        pages = self._client.get_paginator("list_multipart_uploads")
        prefix = self._prefix + upload_id
        with translated():
            for page in pages.paginate(Bucket=self._bucket, Prefix=prefix):
                for found in page.get("Uploads", ()):
                    yield str(found["Key"]).removeprefix(self._prefix), str(found["UploadId"])

    def _object(self, upload_id: str) -> dict[str, Any]:
        return {"Bucket": self._bucket, "Key": self._prefix + upload_id}


def _is_gone(error: Any) -> bool:
    return error.response.get("Error", {}).get("Code") in _GONE
