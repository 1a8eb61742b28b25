"""Imports read objects of a bucket, whole and under a cap."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any, get_args

import pytest
from benchmarks.chaos import Chaos, Fault, chaos_proxy

from weft.registry.buckets import S3Reader
from weft.registry.sources import SourceError
from weft.storage.s3 import S3Location

BODY = bytes(range(256)) * 40


@pytest.fixture
def key(client: Any, location: S3Location) -> str:
    """Of an object that is there."""
    key = f"{location.prefix}export/adapter_config.json"
    client.put_object(Bucket=location.bucket, Key=key, Body=BODY)
    return key


def test_an_object_is_read_whole(
    server: str, location: S3Location, key: str, tmp_path: Path
) -> None:
    file = tmp_path / "adapter_config.json"
    assert S3Reader(server).read(location.bucket, key, file, len(BODY))
    assert file.read_bytes() == BODY
    assert not S3Reader(server).read(location.bucket, f"{key}.none", tmp_path / "none", 9)
    assert not S3Reader(server).read("no-such-bucket", key, tmp_path / "none", 9)


def test_an_object_over_the_cap_is_refused(
    server: str, location: S3Location, key: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceError) as caught:
        S3Reader(server).read(location.bucket, key, tmp_path / "x", len(BODY) - 1)
    assert caught.value.code == "source_too_large"
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("fault", get_args(Fault))
def test_what_breaks_on_the_way_is_read_again(
    server: str, location: S3Location, key: str, tmp_path: Path, fault: Fault
) -> None:
    chaos = Chaos(script=deque([fault]))
    with chaos_proxy(server, chaos) as address:
        assert S3Reader(address).read(location.bucket, key, tmp_path / "x", len(BODY))
    assert (tmp_path / "x").read_bytes() == BODY
    assert chaos.num_faults[fault] == 1
