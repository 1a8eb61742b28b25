"""The S3 store over a real S3 API, alone and behind a network that fails."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks.chaos import FAULTS, Chaos, Fault

from weft.storage.s3 import S3Location, S3Store, StoreRefusedError
from weft_adapters.disk import DiskTier
from weft_adapters.fetch import DownloadedSource, RetryRules
from weft_adapters.sites import BaseSpec
from weft_adapters.store import (
    CONFIG_NAME,
    TENSORS_NAME,
    AdapterNotStoredError,
    StoreUnavailableError,
)
from weft_adapters.workers import Cancellation

DIGEST, OTHER = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32
RULES = RetryRules(first_pause_s=0.01, longest_pause_s=0.05)
Put = Callable[[int], str]
CreateFar = Callable[[Chaos], S3Store]


@pytest.fixture
def tensors(tmp_path: Path) -> Path:
    path = tmp_path / "tensors"
    path.write_bytes(b"tensors")
    return path


def read(store: S3Store, digest: str, name: str, start: int = 0) -> bytes:
    with store.download(digest, name, start) as chunks:
        return b"".join(chunks)


def test_a_version_round_trips(store: S3Store, tensors: Path) -> None:
    store.put(DIGEST, b"{}", tensors)
    store.put(OTHER, b"{}", tensors)
    assert store.sizes(DIGEST) == {CONFIG_NAME: 2, TENSORS_NAME: 7}
    assert read(store, DIGEST, TENSORS_NAME) == b"tensors"
    assert read(store, DIGEST, TENSORS_NAME, start=4) == b"ors"
    assert store.exists(DIGEST)
    assert store.list_digests() == [DIGEST, OTHER]
    store.delete(DIGEST)
    store.delete(DIGEST)
    assert store.list_digests() == [OTHER]
    assert not store.exists(DIGEST)
    with pytest.raises(AdapterNotStoredError):
        store.sizes(DIGEST)


def test_putting_the_same_again_uploads_nothing(
    store: S3Store, tensors: Path, client: Any, location: S3Location
) -> None:
    store.put(DIGEST, b"{}", tensors)
    key = f"{location.prefix}{'ab' * 32}/{TENSORS_NAME}"
    before = client.head_object(Bucket=location.bucket, Key=key)["LastModified"]
    time.sleep(1.1)  # times are whole seconds
    store.put(DIGEST, b"{}", tensors)
    assert client.head_object(Bucket=location.bucket, Key=key)["LastModified"] == before


def test_putting_again_heals_what_was_damaged(
    store: S3Store, tensors: Path, client: Any, location: S3Location
) -> None:
    store.put(DIGEST, b"{", tensors)
    store.put(DIGEST, b"{}", tensors)
    assert read(store, DIGEST, CONFIG_NAME) == b"{}"
    tensors.write_bytes(b"others!")
    store.put(DIGEST, b"{}", tensors)
    assert read(store, DIGEST, TENSORS_NAME) == b"others!"


def test_a_version_without_its_config_is_not_there_and_is_swept(
    store: S3Store, tensors: Path, client: Any, location: S3Location
) -> None:
    store.put(OTHER, b"{}", tensors)
    key = f"{location.prefix}{'ab' * 32}/{TENSORS_NAME}"
    client.put_object(Bucket=location.bucket, Key=key, Body=b"half an upload")
    assert not store.exists(DIGEST)
    assert store.list_digests() == [OTHER]
    with pytest.raises(AdapterNotStoredError):
        store.sizes(DIGEST)
    assert store.sweep(older_than_s=3600) == 0
    client.create_multipart_upload(Bucket=location.bucket, Key=key)
    assert store.sweep(older_than_s=-2) == 2
    assert store.list_digests() == [OTHER]


def test_two_prefixes_and_two_buckets_are_two_stores(
    store: S3Store, server: str, location: S3Location, tensors: Path, client: Any
) -> None:
    store.put(DIGEST, b"{}", tensors)
    client.create_bucket(Bucket="others")
    for place in (S3Location("others", location.prefix), S3Location(location.bucket, "else/")):
        assert not S3Store(place, server).exists(DIGEST)


def test_a_store_that_is_not_there_or_refuses_says_which(server: str, location: S3Location) -> None:
    with pytest.raises(StoreRefusedError, match="NoSuchBucket"):
        S3Store(S3Location("nowhere", ""), server).sizes(DIGEST)
    with pytest.raises(StoreUnavailableError):
        S3Store(location, "http://127.0.0.1:9").sizes(DIGEST)


@pytest.mark.parametrize(
    ("url", "bucket", "prefix"),
    [("s3://b", "b", ""), ("s3://b/", "b", ""), ("s3://b/p/q/", "b", "p/q/")],
)
def test_locations(url: str, bucket: str, prefix: str) -> None:
    assert S3Location.parse(url) == S3Location(bucket, prefix)


@pytest.mark.parametrize("url", ["", "b/p", "s3://", "s3:///p", "http://b"])
def test_what_is_no_location_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="s3://bucket/prefix"):
        S3Location.parse(url)


@pytest.fixture
def create_source(tmp_path: Path, create_far_store: CreateFar) -> Iterator[Any]:
    made: list[DownloadedSource] = []

    def create(chaos: Chaos, budget_bytes: int = 2**20) -> DownloadedSource:
        disk = DiskTier(tmp_path / "disk", budget_bytes)
        made.append(DownloadedSource(create_far_store(chaos), disk, RULES))
        return made[-1]

    yield create
    for source in made:
        source.disk.integrity()
        source.close()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fetch_survives_each_fault(
    create_source: Callable[..., DownloadedSource], put_adapter: Put, store: S3Store, fault: Fault
) -> None:
    digest = put_adapter(1)
    # the second answer is a file's; a listing that was cut or changed is no listing
    source = create_source(Chaos(script=deque([None, fault])))
    source.fetch(digest, Cancellation())
    with source.reading(digest) as stored:
        is_same = stored.config_path.read_bytes() == read(store, digest, CONFIG_NAME)
    assert is_same == (fault != "corrupted")  # which is for the reader to find


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fetch_survives_each_fault_of_the_listing(
    create_source: Callable[..., DownloadedSource], put_adapter: Put, fault: Fault
) -> None:
    digest = put_adapter(1)
    source = create_source(Chaos(script=deque([fault])))
    source.fetch(digest, Cancellation())
    assert digest in source.disk


def test_all_of_many_cold_adapters_come_through_a_bad_network(
    create_source: Callable[..., DownloadedSource], put_adapter: Put, base: BaseSpec
) -> None:
    """20 ms away, 1 GB/s, one answer in four faulty."""
    import torch

    from weft_adapters.pool import PagePool
    from weft_adapters.states import AdapterState
    from weft_adapters.tiers import AdapterTiers

    digests = [put_adapter(seed) for seed in range(12)]
    chaos = Chaos(latency_s=0.02, bytes_per_s=1e9, fault_share=0.25, seed=3)
    pool = PagePool(base, 2**20, torch.float32, "cpu", keep_checksums=True)
    arrived = threading.Event()
    tiers = AdapterTiers(create_source(chaos), base, pool, 2**20, arrived.set)
    try:
        for number, digest in enumerate(digests):
            tiers.request(digest, f"tenant-{number % 3}")
        deadline_s = time.monotonic() + 30
        while any(tiers.state(digest) is not AdapterState.DEVICE for digest in digests):
            assert time.monotonic() < deadline_s, tiers.states()
            assert not any(tiers.failure(digest) for digest in digests)
            arrived.wait(0.05)
            arrived.clear()
        tiers.integrity()
    finally:
        tiers.close()
    assert sum(chaos.num_faults.values()) > 0
