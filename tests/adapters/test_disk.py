"""The disk tier: bounded, all or nothing, and in order after a restart."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from weft_adapters.disk import (
    AdapterTooLargeForDiskError,
    DiskFullError,
    DiskInUseError,
    DiskTier,
)
from weft_adapters.store import CONFIG_NAME, TENSORS_NAME, AdapterNotStoredError

DIGESTS = ["sha256:" + f"{i:02x}" * 32 for i in range(8)]
Create = Callable[..., DiskTier]


@pytest.fixture
def create(tmp_path: Path) -> Iterator[Create]:
    """(budget_bytes=100) -> the tier in the test's folder, instead of the one before."""
    made: list[DiskTier] = []

    def build(budget_bytes: int = 100) -> DiskTier:
        for tier in made:
            tier.close()
        made.append(DiskTier(tmp_path / "disk", budget_bytes))
        return made[-1]

    yield build
    if made:
        made[-1].integrity()
        made[-1].close()


def put(disk: DiskTier, digest: str, num_bytes: int = 40) -> None:
    with disk.writing(digest, num_bytes) as folder:
        (folder / CONFIG_NAME).write_bytes(b"{}")
        (folder / TENSORS_NAME).write_bytes(b"t" * (num_bytes - 2))


def test_what_was_written_can_be_read_also_after_a_restart(create: Create) -> None:
    disk = create()
    put(disk, DIGESTS[0])
    again = create()
    assert again.digests() == [DIGESTS[0]]
    assert again.num_bytes == again.num_bytes_of(DIGESTS[0]) == 40
    with again.reading(DIGESTS[0]) as stored:
        assert stored.tensors_path.read_bytes() == b"t" * 38
        assert stored.config_path.read_bytes() == b"{}"


def test_the_least_recently_read_makes_room(create: Create) -> None:
    disk = create()
    put(disk, DIGESTS[0])
    put(disk, DIGESTS[1])
    with disk.reading(DIGESTS[0]):
        pass
    put(disk, DIGESTS[2])
    assert set(disk.digests()) == {DIGESTS[0], DIGESTS[2]}
    with pytest.raises(AdapterNotStoredError), disk.reading(DIGESTS[1]):
        pass


def test_the_order_of_reading_outlives_the_process(create: Create, tmp_path: Path) -> None:
    disk = create()
    for number, digest in enumerate(DIGESTS[:2]):
        put(disk, digest)
        os.utime(tmp_path / "disk" / digest.removeprefix("sha256:"), (number, number))
    with disk.reading(DIGESTS[0]):
        pass
    again = create(budget_bytes=60)
    assert again.digests() == [DIGESTS[0]]


def test_what_is_being_read_stays(create: Create) -> None:
    disk = create()
    put(disk, DIGESTS[0], 60)
    with disk.reading(DIGESTS[0]) as stored:
        with pytest.raises(DiskFullError):
            put(disk, DIGESTS[1], 60)
        assert stored.is_complete
    put(disk, DIGESTS[1], 60)
    assert disk.digests() == [DIGESTS[1]]


def test_bytes_on_their_way_count(create: Create) -> None:
    disk = create()
    with disk.writing(DIGESTS[0], 60) as folder:
        assert disk.num_bytes == 60
        assert disk.digests() == []
        with pytest.raises(DiskFullError):
            put(disk, DIGESTS[1], 60)
        for name in (CONFIG_NAME, TENSORS_NAME):
            (folder / name).write_bytes(b"")
    assert disk.num_bytes == 0


def test_a_version_larger_than_the_tier_is_refused_and_evicts_nothing(create: Create) -> None:
    disk = create()
    put(disk, DIGESTS[0])
    with pytest.raises(AdapterTooLargeForDiskError, match="101 bytes"):
        put(disk, DIGESTS[1], 101)
    assert disk.digests() == [DIGESTS[0]]


def test_a_write_that_fails_leaves_nothing(create: Create, tmp_path: Path) -> None:
    disk = create()

    def write_half() -> None:
        with disk.writing(DIGESTS[0], 60) as folder:
            (folder / CONFIG_NAME).write_bytes(b"{}")
            raise OSError("broke off")

    with pytest.raises(OSError, match="broke off"):
        write_half()
    assert disk.num_bytes == 0
    assert [path.name for path in (tmp_path / "disk").iterdir()] == [".lock"]


def test_a_discarded_version_can_be_written_again(create: Create) -> None:
    disk = create()
    put(disk, DIGESTS[0])
    with disk.reading(DIGESTS[0]) as stored:
        disk.discard(DIGESTS[0])
        assert not stored.is_complete
    assert DIGESTS[0] not in disk
    put(disk, DIGESTS[0])
    assert DIGESTS[0] in disk


def test_orphans_are_swept_at_start(create: Create, tmp_path: Path) -> None:
    put(create(), DIGESTS[0])
    root = tmp_path / "disk"
    half = root / DIGESTS[1].removeprefix("sha256:")
    for folder in (half, root / ".incoming-killed", root / ".doomed-killed", root / "strange"):
        folder.mkdir()
        (folder / CONFIG_NAME).write_bytes(b"{}")
    (root / "file").write_bytes(b"x")
    disk = create()
    assert disk.digests() == [DIGESTS[0]]
    left = {path.name for path in root.iterdir()}
    assert left == {".lock", DIGESTS[0].removeprefix("sha256:")}


def test_two_processes_do_not_share_the_folder(create: Create, tmp_path: Path) -> None:
    create()
    script = (
        "import sys; from pathlib import Path; from weft_adapters.disk import DiskTier\n"
        "DiskTier(Path(sys.argv[1]), 100)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "disk")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert DiskInUseError.__name__ in done.stderr


@pytest.mark.parametrize("digest", ["", "..", "sha256:../x", "sha256:" + "g" * 64])
def test_only_digests_name_folders(create: Create, digest: str) -> None:
    disk = create()
    with pytest.raises(ValueError, match="digest"):
        put(disk, digest)
    with pytest.raises(ValueError, match="digest"), disk.reading(digest):
        pass
