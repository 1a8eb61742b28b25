"""Imports from buckets: objects read with the server's credentials, under the caps of an upload."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from weft.registry.sources import SourceError
from weft.storage.s3 import create_client, translated
from weft_adapters.store import StoreUnavailableError

_NUM_ATTEMPTS = 4
_PAUSE_S = 0.2
_CHUNK = 1 << 20


class S3Reader:
    """A `BucketReader`. Which buckets may be read is decided before."""

    def __init__(self, endpoint_url: str | None = None) -> None:
        self._client = create_client(endpoint_url, _NUM_ATTEMPTS)

    def read(self, bucket: str, key: str, path: Path, max_bytes: int) -> bool:
        for attempt in range(_NUM_ATTEMPTS):
            path.unlink(missing_ok=True)
            try:
                return self._try_read(bucket, key, path, max_bytes)
            except StoreUnavailableError:
                time.sleep(_PAUSE_S * 2**attempt)
            except OSError as error:  # refused: what the store said is the operator's to know
                raise SourceError(
                    "source_not_allowed", f"{path.name} may not be read from there."
                ) from error
        raise SourceError(
            "source_unavailable", f"{path.name} could not be read from its source; try again later."
        )

    def _try_read(self, bucket: str, key: str, path: Path, max_bytes: int) -> bool:
        with translated():
            try:
                # what is wrong with the bytes is not found out later, as an adapter's digest is
                answer = self._client.get_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
            except self._client.exceptions.ClientError as error:
                if error.response["Error"]["Code"] in ("NoSuchKey", "NoSuchBucket", "404"):
                    return False
                raise
            num_bytes = int(answer["ContentLength"])
            if num_bytes > max_bytes:
                answer["Body"].close()
                raise SourceError(
                    "source_too_large", f"{path.name} is larger than {max_bytes} bytes."
                )
            _write(answer["Body"], path)
        if path.stat().st_size != num_bytes:
            raise StoreUnavailableError("the object ended early")
        return True


def _write(body: Any, path: Path) -> None:
    with path.open("xb") as file:
        for chunk in body.iter_chunks(_CHUNK):
            file.write(chunk)
