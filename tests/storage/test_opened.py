"""A remote store opened as files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from weft.settings import ServerSettings
from weft.storage.build import create_remote_store, create_store
from weft.storage.opened import OpenedStore
from weft.storage.s3 import S3Location, S3Store
from weft_adapters.fetch import DownloadFailedError
from weft_adapters.store import AdapterNotStoredError, FolderStore


def test_a_version_is_opened_by_way_of_the_disk(
    store: S3Store, put_adapter: Callable[[int], str], tmp_path: Path
) -> None:
    opened = OpenedStore(store, tmp_path / "opened")
    digest = put_adapter(1)
    assert opened.exists(digest)
    for _ in range(2):
        with opened.reading(digest) as stored:
            assert stored.config_path.read_bytes().startswith(b"{")
    with (
        pytest.raises(AdapterNotStoredError),
        opened.reading("sha256:" + "e" * 64),
    ):
        raise AssertionError("nobody has it")
    opened.close()


def test_what_is_being_read_stays_though_newer_ones_need_its_room(
    store: S3Store,
    put_adapter: Callable[[int], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = put_adapter(1), put_adapter(2)
    num_bytes = sum(store.sizes(first).values())
    monkeypatch.setattr("weft.storage.opened._BUDGET_BYTES", num_bytes + 1)
    opened = OpenedStore(store, tmp_path / "opened")
    with opened.reading(first) as stored:
        with pytest.raises(DownloadFailedError), opened.reading(second):
            raise AssertionError("there is no room for it")
        assert stored.tensors_path.is_file()
    with opened.reading(second):
        assert not stored.tensors_path.exists()
    opened.close()


def test_a_config_is_read_without_the_tensors(
    store: S3Store, put_adapter: Callable[[int], str], tmp_path: Path
) -> None:
    digest = put_adapter(1)
    opened = OpenedStore(store, tmp_path / "opened")
    config = opened.read_config(digest)
    assert not (tmp_path / "opened").exists()
    with opened.reading(digest) as stored:
        assert stored.config_path.read_bytes() == config
    opened.close()


def test_what_is_deleted_cannot_be_opened_from_the_disk(
    store: S3Store, put_adapter: Callable[[int], str], tmp_path: Path
) -> None:
    opened = OpenedStore(store, tmp_path / "opened")
    digest = put_adapter(1)
    with opened.reading(digest) as stored:
        config = stored.config_path
    opened.delete(digest)
    assert not config.exists()
    with pytest.raises(AdapterNotStoredError), opened.reading(digest):
        raise AssertionError("nobody has it")
    opened.close()


def test_the_settings_name_the_store(server: str, location: S3Location, tmp_path: Path) -> None:
    in_folder = ServerSettings(base_dir=tmp_path, data_dir=tmp_path)
    assert create_remote_store(in_folder) is None
    assert isinstance(create_store(in_folder), FolderStore)
    url = f"s3://{location.bucket}/{location.prefix}"
    remote = ServerSettings(
        base_dir=tmp_path, data_dir=tmp_path, adapter_store=url, s3_endpoint_url=server
    )
    assert create_store(remote).list_digests() == []
    wrong = ServerSettings(base_dir=tmp_path, data_dir=tmp_path, adapter_store="gs://b")
    with pytest.raises(ValueError, match="s3://bucket/prefix"):
        create_store(wrong)
