"""Versions in a bucket of S3, or of what speaks its API, by boto3.

A version is the objects below `<prefix>/<hex of its digest>/`. It is there once its config is: that
is written last and removed first. boto3 is imported when a store is made.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from weft_adapters.digest import is_digest
from weft_adapters.store import (
    CONFIG_NAME,
    TENSORS_NAME,
    AdapterNotStoredError,
    StoreUnavailableError,
)

logger = logging.getLogger("weft.storage")

_SCHEME = "s3://"
_CHUNK = 256 * 1024
_MAX_FILES = 100
_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 5, 20
# uploads are boto3's to try again, downloads the caller's, who may have lost interest
_NUM_UPLOAD_ATTEMPTS = 5
_TENSORS_SHA256 = "weft-tensors-sha256"


class StoreRefusedError(OSError):
    """The bucket is not there, or these credentials may not do that; trying again does not help."""


@dataclass(frozen=True, slots=True)
class S3Location:
    """A bucket, and what all keys in it begin with: empty, or ending in a slash."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, url: str) -> S3Location:
        """ValueError for anything but `s3://bucket` or `s3://bucket/prefix`."""
        bucket, _, prefix = url.removeprefix(_SCHEME).partition("/")
        if not url.startswith(_SCHEME) or not bucket:
            raise ValueError(f"the store must be s3://bucket/prefix, not {url!r}")
        prefix = prefix.strip("/")
        return cls(bucket, f"{prefix}/" if prefix else "")


class S3Store:
    """A `RemoteStore`. Credentials and region are found as boto3 finds them: environment, files,
    instance role."""

    def __init__(self, location: S3Location, endpoint_url: str | None = None) -> None:
        self._bucket, self._prefix = location.bucket, location.prefix
        self._downloads = create_client(endpoint_url, num_attempts=1)
        self._uploads = create_client(endpoint_url, _NUM_UPLOAD_ATTEMPTS)

    def _key(self, digest: str, name: str = "") -> str:
        if not is_digest(digest):
            raise ValueError(f"{digest[:100]!r} is not a digest")
        return f"{self._prefix}{digest.removeprefix('sha256:')}/{name}"

    # ---- reading ----

    def sizes(self, digest: str) -> Mapping[str, int]:
        prefix = self._key(digest)
        with translated():
            page = self._downloads.list_objects_v2(
                Bucket=self._bucket, Prefix=prefix, MaxKeys=_MAX_FILES
            )
        found = {o["Key"].removeprefix(prefix): int(o["Size"]) for o in page.get("Contents", ())}
        if found.keys() <= {TENSORS_NAME}:
            raise AdapterNotStoredError(f"the store has no adapter {digest}")
        return found

    @contextmanager
    def download(self, digest: str, name: str, start: int) -> Iterator[Iterator[bytes]]:
        asked = {"Range": f"bytes={start}-"} if start else {}
        with translated():
            answer = self._downloads.get_object(
                Bucket=self._bucket, Key=self._key(digest, name), **asked
            )
        body = answer["Body"]
        try:
            is_part = answer["ResponseMetadata"]["HTTPStatusCode"] == 206
            yield _chunks(body, 0 if is_part else start)
        finally:
            body.close()

    def exists(self, digest: str) -> bool:
        return self._head(digest) is not None

    def _head(self, digest: str) -> Mapping[str, Any] | None:
        with translated():
            try:
                head: Mapping[str, Any] = self._uploads.head_object(
                    Bucket=self._bucket, Key=self._key(digest, CONFIG_NAME)
                )
            except self._uploads.exceptions.ClientError as error:
                if _status(error) == 404:
                    return None
                raise
        return head

    def list_digests(self) -> list[str]:
        digests = (self._digest_of(key) for key, _ in self._objects() if _is_config(key))
        return sorted(digest for digest in digests if is_digest(digest))

    def _digest_of(self, key: str) -> str:
        return f"sha256:{key.removeprefix(self._prefix).partition('/')[0]}"

    def _is_ours(self, key: str) -> bool:
        """Below the same prefix there may be other things, such as parts of uploads."""
        return is_digest(self._digest_of(key))

    def _objects(self, digest: str | None = None) -> Iterator[tuple[str, datetime]]:
        """Key and time of all objects, or of one version's."""
        prefix = self._prefix if digest is None else self._key(digest)
        pages = self._uploads.get_paginator("list_objects_v2")
        with translated():
            for page in pages.paginate(Bucket=self._bucket, Prefix=prefix):
                for found in page.get("Contents", ()):
                    yield found["Key"], found["LastModified"]

    # ---- writing ----

    def put(self, digest: str, config_bytes: bytes, tensors_path: Path) -> None:
        with tensors_path.open("rb") as file:
            tensors_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if self._holds(digest, config_bytes, tensors_sha256):
            return
        with translated():
            self._uploads.upload_file(
                str(tensors_path), self._bucket, self._key(digest, TENSORS_NAME)
            )
            self._uploads.put_object(
                Bucket=self._bucket,
                Key=self._key(digest, CONFIG_NAME),
                Body=config_bytes,
                Metadata={_TENSORS_SHA256: tensors_sha256},
            )

    def _holds(self, digest: str, config_bytes: bytes, tensors_sha256: str) -> bool:
        head = self._head(digest)
        if head is None or head["Metadata"].get(_TENSORS_SHA256) != tensors_sha256:
            return False
        with translated():
            stored = self._uploads.get_object(
                Bucket=self._bucket, Key=self._key(digest, CONFIG_NAME)
            )
            return bool(stored["Body"].read(len(config_bytes) + 1) == config_bytes)

    def delete(self, digest: str) -> None:
        with translated():
            self._uploads.delete_object(Bucket=self._bucket, Key=self._key(digest, CONFIG_NAME))
        for key, _ in self._objects(digest):
            with translated():
                self._uploads.delete_object(Bucket=self._bucket, Key=key)

    def sweep(self, older_than_s: float) -> int:
        """Remove what uploads and deletions left when their process was killed: objects without a
        config beside them, and parts that were never put together. How many there were."""
        before = datetime.now(UTC) - timedelta(seconds=older_than_s)
        objects = list(self._objects())
        whole = {self._digest_of(key) for key, _ in objects if _is_config(key)}
        orphans = [
            key for key, changed in objects
            if changed < before and self._is_ours(key) and self._digest_of(key) not in whole
        ]  # fmt: skip
        with translated():
            for key in orphans:
                self._uploads.delete_object(Bucket=self._bucket, Key=key)
        return len(orphans) + self._sweep_parts(before)

    def _sweep_parts(self, before: datetime) -> int:
        num_aborted = 0
        pages = self._uploads.get_paginator("list_multipart_uploads")
        with translated():
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix):
                for upload in page.get("Uploads", ()):
                    if upload["Initiated"] < before and self._is_ours(upload["Key"]):
                        self._uploads.abort_multipart_upload(
                            Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                        )
                        num_aborted += 1
        return num_aborted


def create_client(endpoint_url: str | None, num_attempts: int) -> Any:
    """A client for several threads."""
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=_CONNECT_TIMEOUT_S,
        read_timeout=_READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": num_attempts},
        max_pool_connections=32,
        # a host of its own for each bucket needs a domain that only Amazon's has
        s3={"addressing_style": "path"} if endpoint_url else {},
        # the digest is verified when an adapter is read
        response_checksum_validation="when_required",
    )
    session = boto3.session.Session()  # the default one is not for several threads
    region = session.region_name or "us-east-1"
    return session.client("s3", endpoint_url=endpoint_url, region_name=region, config=config)


def _is_config(key: str) -> bool:
    return key.endswith(f"/{CONFIG_NAME}")


def _chunks(body: Any, num_skipped: int) -> Iterator[bytes]:
    """`num_skipped` bytes are left out where a server knows no ranges."""
    with translated():
        for chunk in body.iter_chunks(_CHUNK):
            if num_skipped >= len(chunk):
                num_skipped -= len(chunk)
                continue
            yield chunk[num_skipped:]
            num_skipped = 0


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


@contextmanager
def translated() -> Iterator[None]:
    """botocore's errors as the store's: those that may pass, and those that will not."""
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ClientError as error:
        status, code = _status(error), error.response.get("Error", {}).get("Code", "")
        if status >= 500 or status == 429 or code in ("RequestTimeout", "SlowDown"):
            raise StoreUnavailableError(f"the store answered {status} {code}") from error
        raise StoreRefusedError(f"the store answered {status} {code}") from error
    except (BotoCoreError, HTTPError) as error:
        raise StoreUnavailableError(f"the store broke off: {type(error).__name__}") from error
