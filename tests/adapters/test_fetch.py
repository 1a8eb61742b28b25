"""Downloads into the disk tier: what breaks off goes on, what is wrong is fetched again."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from weft_adapters.disk import DiskTier
from weft_adapters.fetch import DownloadedSource, DownloadFailedError, RetryRules
from weft_adapters.pool import PagePool
from weft_adapters.sites import BaseSpec
from weft_adapters.source import DigestMismatchError
from weft_adapters.states import AdapterState
from weft_adapters.store import (
    CONFIG_NAME,
    TENSORS_NAME,
    AdapterNotStoredError,
    FolderStore,
    StoreUnavailableError,
)
from weft_adapters.tiers import AdapterTiers, AdapterUnreadableError
from weft_adapters.workers import Cancellation, CancelledError

Q_PAGE_BYTES = 8 * (32 + 64) * 4
Put = Callable[..., str]
CreateTiers = Callable[..., AdapterTiers]
RULES = RetryRules(max_failures=3, first_pause_s=0.001, longest_pause_s=0.002, timeout_s=20)


@dataclass
class FaultyStore:
    """The folder store as if it were far away. `faults` are used up one by one, by file name: a
    number ends the file after so many bytes, "reset" breaks it off there, "flip" changes it."""

    store: FolderStore
    faults: dict[str, list[str | int]] = field(default_factory=dict)
    num_down: int = 0
    downloaded: Counter[str] = field(default_factory=Counter)
    num_requests: Counter[str] = field(default_factory=Counter)
    hold: threading.Event | None = None
    begun: threading.Event = field(default_factory=threading.Event)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def _paths(self, digest: str) -> dict[str, Path]:
        stored = self.store.open(digest)
        return {CONFIG_NAME: stored.config_path, TENSORS_NAME: stored.tensors_path}

    def sizes(self, digest: str) -> Mapping[str, int]:
        self.num_requests["sizes"] += 1
        if self.num_down:
            self.num_down -= 1
            raise StoreUnavailableError("503 slow down")
        return {name: path.stat().st_size for name, path in self._paths(digest).items()}

    @contextmanager
    def download(self, digest: str, name: str, start: int) -> Iterator[Iterator[bytes]]:
        self.num_requests[name] += 1
        fault = self.faults[name].pop(0) if self.faults.get(name) else None
        yield self._chunks(self._paths(digest)[name].read_bytes(), name, start, fault)

    def _chunks(
        self, data: bytes, name: str, start: int, fault: str | int | None
    ) -> Iterator[bytes]:
        if fault == "flip":
            data = bytes([data[0] ^ 1]) + data[1:]
        elif fault == "more":
            data += b"more"
        end = fault if isinstance(fault, int) else len(data)
        for position in range(start, end, 100):
            self.begun.set()
            if self.hold is not None:
                self.hold.wait(0.01)
            chunk = data[position : min(position + 100, end)]
            self.downloaded[name] += len(chunk)
            yield chunk
            if fault == "reset":
                raise StoreUnavailableError("reset by peer")


@pytest.fixture
def far(store: FolderStore) -> FaultyStore:
    return FaultyStore(store)


@pytest.fixture
def source(far: FaultyStore, tmp_path: Path) -> Iterator[DownloadedSource]:
    disk = DiskTier(tmp_path / "disk", 2**20)
    yield DownloadedSource(far, disk, RULES)
    disk.integrity()
    disk.close()


@pytest.fixture
def create_tiers(dense: BaseSpec, source: DownloadedSource) -> Iterator[CreateTiers]:
    """(num_pages=2, host_bytes, ...) -> tiers whose store is far away."""
    made: list[AdapterTiers] = []

    def build(num_pages: int = 2, host_bytes: int = 2**20, **keys: Any) -> AdapterTiers:
        pool = PagePool(dense, num_pages * Q_PAGE_BYTES, torch.float32, "cpu", keep_checksums=True)
        made.append(AdapterTiers(source, dense, pool, host_bytes, **keys))
        return made[-1]

    yield build
    for tiers in made:
        tiers.integrity()
        tiers.close()


def wait_for(is_met: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 10
    while not is_met():
        assert time.monotonic() < deadline_s
        time.sleep(0.002)


def wait_for_state(tiers: AdapterTiers, digest: str, state: AdapterState) -> None:
    wait_for(lambda: tiers.state(digest) is state)


def assert_whole(source: DownloadedSource, far: FaultyStore, digest: str) -> None:
    with source.reading(digest) as stored:
        for name, path in far._paths(digest).items():
            assert (stored.config_path.parent / name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("fault", [250, "reset", 0])
def test_a_file_that_breaks_off_goes_on_where_it_did(
    source: DownloadedSource, far: FaultyStore, put_adapter: Put, fault: str | int
) -> None:
    digest = put_adapter(1)
    far.faults[TENSORS_NAME] = [fault, fault]
    source.fetch(digest, Cancellation())
    assert_whole(source, far, digest)
    assert far.num_requests[TENSORS_NAME] == 3
    assert far.downloaded[TENSORS_NAME] == far.sizes(digest)[TENSORS_NAME]


def test_many_breaks_with_bytes_between_them_are_no_reason_to_give_up(
    source: DownloadedSource, far: FaultyStore, put_adapter: Put
) -> None:
    digest = put_adapter(1)
    far.faults[TENSORS_NAME] = ["reset"] * 7
    source.fetch(digest, Cancellation())
    assert_whole(source, far, digest)


def test_more_bytes_than_were_said_are_not_taken(
    source: DownloadedSource, far: FaultyStore, put_adapter: Put
) -> None:
    digest = put_adapter(1)
    far.faults[CONFIG_NAME] = ["more"]
    source.fetch(digest, Cancellation())
    assert_whole(source, far, digest)


def test_a_store_that_stays_away_is_given_up(
    source: DownloadedSource, far: FaultyStore, put_adapter: Put
) -> None:
    far.num_down = 100
    with pytest.raises(DownloadFailedError, match="3 failures: 503"):
        source.fetch(put_adapter(1), Cancellation())
    assert far.num_requests["sizes"] == 3
    assert source.digests_on_disk() == []


def test_no_attempt_begins_after_the_time_is_over(
    far: FaultyStore, source: DownloadedSource, put_adapter: Put
) -> None:
    far.num_down = 10**6
    rules = RetryRules(10**6, first_pause_s=0.01, longest_pause_s=0.01, timeout_s=0.1)
    start_s = time.monotonic()
    with pytest.raises(DownloadFailedError):
        DownloadedSource(far, source.disk, rules).fetch(put_adapter(1), Cancellation())
    assert time.monotonic() - start_s < 5


def test_a_name_that_is_a_path_is_refused(
    source: DownloadedSource, far: FaultyStore, put_adapter: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = put_adapter(1)
    sizes = {CONFIG_NAME: 1, TENSORS_NAME: 1, "../evil": 1}
    monkeypatch.setattr(far, "sizes", lambda digest: sizes)
    with pytest.raises(DownloadFailedError, match=r"not ours.*evil"):
        source.fetch(digest, Cancellation())


def test_what_was_downloaded_once_comes_from_the_disk_the_next_time(
    create_tiers: CreateTiers,
    far: FaultyStore,
    put_adapter: Put,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("weft_adapters.loader._GRACE_S", 0.0)
    tiers = create_tiers(num_pages=1, host_bytes=1)
    first, second = put_adapter(1), put_adapter(2)
    assert tiers.state(first) is AdapterState.ABSENT
    for digest in (first, second):
        tiers.request(digest)
        wait_for_state(tiers, digest, AdapterState.DEVICE)
    assert tiers.states() == {first: AdapterState.DISK, second: AdapterState.DEVICE}
    num_requests = dict(far.num_requests)
    tiers.request(first)
    wait_for_state(tiers, first, AdapterState.DEVICE)
    assert far.num_requests == num_requests


def test_what_was_purged_from_the_store_leaves_every_tier(
    create_tiers: CreateTiers, far: FaultyStore, put_adapter: Callable[..., str]
) -> None:
    digest, other = put_adapter(1), put_adapter(2)
    tiers = create_tiers()
    for wanted in (digest, other):
        tiers.request(wanted)
        wait_for_state(tiers, wanted, AdapterState.DEVICE)
    far.delete(digest)
    tiers.discard(digest)
    wait_for(lambda: digest not in tiers.states())
    tiers.request(digest)
    wait_for_state(tiers, digest, AdapterState.FAILED)
    assert isinstance(tiers.failure(digest), AdapterNotStoredError)
    assert tiers.state(other) is AdapterState.DEVICE


def test_bytes_that_were_damaged_on_the_way_are_fetched_again(
    create_tiers: CreateTiers, far: FaultyStore, put_adapter: Put
) -> None:
    tiers, digest = create_tiers(), put_adapter(1)
    far.faults = {TENSORS_NAME: ["flip"], CONFIG_NAME: ["flip"]}
    tiers.request(digest)
    wait_for_state(tiers, digest, AdapterState.DEVICE)


def test_a_copy_that_rotted_on_the_disk_is_fetched_again(
    create_tiers: CreateTiers, far: FaultyStore, source: DownloadedSource, put_adapter: Put
) -> None:
    digest = put_adapter(1)
    source.fetch(digest, Cancellation())
    with source.reading(digest) as stored:
        data = bytearray(stored.tensors_path.read_bytes())
        data[-1] ^= 1
        stored.tensors_path.write_bytes(data)
    tiers = create_tiers()
    tiers.request(digest)
    wait_for_state(tiers, digest, AdapterState.DEVICE)
    assert far.num_requests["sizes"] == 2


def test_bytes_that_are_wrong_in_the_store_fail_in_the_end(
    create_tiers: CreateTiers, far: FaultyStore, source: DownloadedSource, put_adapter: Put
) -> None:
    tiers, digest = create_tiers(), put_adapter(1)
    far.store.open(digest).tensors_path.write_bytes(
        far.store.open(put_adapter(2)).tensors_path.read_bytes()
    )
    tiers.request(digest)
    wait_for_state(tiers, digest, AdapterState.FAILED)
    assert isinstance(tiers.failure(digest), DigestMismatchError)
    assert far.num_requests["sizes"] == 3
    assert digest not in source.disk


def test_a_store_that_is_away_fails_without_its_address(
    create_tiers: CreateTiers, far: FaultyStore, put_adapter: Put
) -> None:
    tiers, digest = create_tiers(), put_adapter(1)
    far.num_down = 100
    tiers.request(digest)
    wait_for_state(tiers, digest, AdapterState.FAILED)
    assert isinstance(tiers.failure(digest), AdapterUnreadableError)
    assert "503" not in str(tiers.failure(digest))
    far.num_down = 0
    tiers.forget(digest)
    tiers.request(digest)
    wait_for_state(tiers, digest, AdapterState.DEVICE)


def test_an_adapter_that_the_store_does_not_have_is_not_asked_for_again(
    create_tiers: CreateTiers, far: FaultyStore
) -> None:
    tiers, digest = create_tiers(), "sha256:" + "e" * 64
    tiers.request(digest)
    wait_for_state(tiers, digest, AdapterState.FAILED)
    assert isinstance(tiers.failure(digest), AdapterNotStoredError)
    assert far.num_requests["sizes"] == 1


def test_a_download_for_nobody_ends(
    create_tiers: CreateTiers, far: FaultyStore, source: DownloadedSource, put_adapter: Put
) -> None:
    tiers, digest = create_tiers(), put_adapter(1)
    far.hold = threading.Event()
    tiers.request(digest)
    assert far.begun.wait(10)
    tiers.withdraw(digest)
    assert tiers.state(digest) is AdapterState.ABSENT
    wait_for(lambda: source.disk.num_bytes == 0)
    assert digest not in source.disk
    far.hold = None
    tiers.request(digest)
    wait_for_state(tiers, digest, AdapterState.DEVICE)


def test_a_slow_store_holds_up_nobody_whose_adapter_is_nearer(
    create_tiers: CreateTiers, far: FaultyStore, source: DownloadedSource, put_adapter: Put
) -> None:
    near, *distant = (put_adapter(seed) for seed in range(12))
    source.fetch(near, Cancellation())
    far.hold = threading.Event()
    far.begun.clear()
    tiers = create_tiers(num_downloads=4)
    for digest in distant:
        tiers.request(digest, "flood")
    assert far.begun.wait(10)
    tiers.request(near, "quiet")
    wait_for_state(tiers, near, AdapterState.DEVICE)
    assert all(tiers.state(digest) is not AdapterState.DEVICE for digest in distant)


def test_closing_does_not_wait_for_downloads(
    create_tiers: CreateTiers, far: FaultyStore, put_adapter: Put
) -> None:
    tiers = create_tiers()
    far.num_down = 10**6
    far.hold = threading.Event()
    for seed in range(4):
        tiers.request(put_adapter(seed))
    start_s = time.monotonic()
    tiers.close()
    assert time.monotonic() - start_s < 5


def test_a_cancelled_fetch_says_so(
    source: DownloadedSource, far: FaultyStore, put_adapter: Put
) -> None:
    cancellation = Cancellation()
    cancellation.cancel()
    with pytest.raises(CancelledError):
        source.fetch(put_adapter(1), cancellation)
    assert source.digests_on_disk() == []
