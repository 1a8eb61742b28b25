"""The folder store: all or nothing, and nothing outside its root."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from weft_adapters.store import AdapterNotStoredError, FolderStore

DIGEST = "sha256:" + "ab" * 32
OTHER = "sha256:" + "cd" * 32


@pytest.fixture
def tensors(tmp_path: Path) -> Path:
    path = tmp_path / "tensors"
    path.write_bytes(b"tensors")
    return path


def test_what_was_put_is_there_also_after_a_restart(
    store: FolderStore, tensors: Path, tmp_path: Path
) -> None:
    store.put(DIGEST, b"{}", tensors)
    store.put(DIGEST, b"{}", tensors)
    assert tensors.exists()
    again = FolderStore(tmp_path / "store")
    stored = again.open(DIGEST)
    assert (stored.config_path.read_bytes(), stored.tensors_path.read_bytes()) == (
        b"{}",
        b"tensors",
    )
    assert stored.num_bytes == 9
    assert again.exists(DIGEST)
    assert again.list_digests() == [DIGEST]


def test_delete(store: FolderStore, tensors: Path) -> None:
    store.put(DIGEST, b"{}", tensors)
    store.put(OTHER, b"{}", tensors)
    store.delete(DIGEST)
    store.delete(DIGEST)
    assert store.list_digests() == [OTHER]
    with pytest.raises(AdapterNotStoredError):
        store.open(DIGEST)


@pytest.mark.parametrize(
    "digest",
    ["", ".", "..", "../x", "/etc/passwd", "sha256:..", "sha256:" + "g" * 64, DIGEST + "/../x"],
)
def test_only_digests_name_folders(store: FolderStore, tensors: Path, digest: str) -> None:
    for call in (
        lambda: store.put(digest, b"", tensors),
        lambda: store.open(digest),
        lambda: store.delete(digest),
        lambda: store.exists(digest),
    ):
        with pytest.raises(ValueError, match="digest"):
            call()


def test_a_crash_while_putting_leaves_nothing(
    store: FolderStore, tensors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(source: Path, target: Path) -> None:
        target.write_bytes(b"ten")
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", crash)
        with pytest.raises(OSError, match="No space"):
            store.put(DIGEST, b"{}", tensors)
    assert not store.exists(DIGEST)
    assert not list((tmp_path / "store").glob(".incoming-*"))
    store.put(DIGEST, b"{}", tensors)
    assert store.open(DIGEST).tensors_path.read_bytes() == b"tensors"


def test_leftovers_of_a_killed_process_are_swept_at_start(
    store: FolderStore, tensors: Path, tmp_path: Path
) -> None:
    store.put(DIGEST, b"{}", tensors)
    left = tmp_path / "store" / ".incoming-killed"
    left.mkdir()
    (left / "adapter_config.json").write_bytes(b"{")
    assert store.list_digests() == [DIGEST]
    again = FolderStore(tmp_path / "store")
    assert not left.exists()
    assert again.list_digests() == [DIGEST]


def test_a_start_does_not_sweep_what_another_process_is_writing(
    store: FolderStore, tensors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copyfile

    def copy_while_another_starts(source: Path, target: Path) -> None:
        FolderStore(tmp_path / "store")
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", copy_while_another_starts)
    store.put(DIGEST, b"{}", tensors)
    assert store.open(DIGEST).tensors_path.read_bytes() == b"tensors"


@pytest.mark.parametrize("damage", ["changed", "missing", "empty folder"])
def test_putting_again_heals_what_was_damaged(
    store: FolderStore, tensors: Path, tmp_path: Path, damage: str
) -> None:
    store.put(DIGEST, b"{}", tensors)
    stored = store.open(DIGEST)
    if damage == "changed":
        stored.tensors_path.write_bytes(b"tensorz")
    else:
        stored.tensors_path.unlink()
    if damage == "empty folder":
        stored.config_path.unlink()
    store.put(DIGEST, b"{}", tensors)
    assert store.open(DIGEST).tensors_path.read_bytes() == b"tensors"
    assert store.open(DIGEST).config_path.read_bytes() == b"{}"
    assert not list((tmp_path / "store").glob(".incoming-*"))
