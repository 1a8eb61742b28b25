"""Row scales that were computed before are found again, and only where they hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from weft_adapters.row_scales import RowScales
from weft_adapters.sites import BaseSpec, Site
from weft_adapters.tensors import Float32

DIGEST = "sha256:" + "a" * 64


def create(folder: Path | None = None, **sizes: int) -> RowScales:
    return RowScales("sha256:" + "b" * 64, "float32", folder, **sizes)


def scales_of(base: BaseSpec, seed: int = 0) -> dict[Site, Float32]:
    rng = np.random.default_rng(seed)
    sites = (Site(0, "q_proj"), Site(1, "up_proj", 3))
    return {site: rng.random(base.shape(site)[1]).astype(np.float32) for site in sites}


def assert_found(row_scales: RowScales, want: dict[Site, Float32], digest: str = DIGEST) -> None:
    found = row_scales.find(digest, list(want))
    assert found is not None
    assert all(np.array_equal(found[site], m) for site, m in want.items())


@pytest.mark.parametrize("has_folder", [False, True])
def test_they_are_found_again(moe: BaseSpec, tmp_path: Path, has_folder: bool) -> None:
    folder = tmp_path / "scales" if has_folder else None
    row_scales, scales = create(folder), scales_of(moe)
    assert row_scales.find(DIGEST, list(scales)) is None
    row_scales.keep(DIGEST, scales)
    assert_found(row_scales, scales)
    assert (create(folder).find(DIGEST, list(scales)) is None) != has_folder
    assert row_scales.find(DIGEST, [Site(0, "q_proj")]) is None, "another set of sites"


def test_they_hold_for_one_adapter_base_and_format(moe: BaseSpec, tmp_path: Path) -> None:
    scales = scales_of(moe)
    create(tmp_path).keep(DIGEST, scales)
    assert_found(create(tmp_path), scales)
    for row_scales, digest in (
        (create(tmp_path), "sha256:" + "c" * 64),
        (RowScales("sha256:" + "d" * 64, "float32", tmp_path), DIGEST),
        (RowScales("sha256:" + "b" * 64, "float32, int8", tmp_path), DIGEST),
    ):
        assert row_scales.find(digest, list(scales)) is None


@pytest.mark.parametrize("damage", ["flipped", "torn", "empty"])
def test_a_damaged_file_is_as_if_it_were_not_there(
    moe: BaseSpec, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    scales = scales_of(moe)
    create(tmp_path).keep(DIGEST, scales)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-1] ^= 1
    else:
        del content[len(content) // 2 if damage == "torn" else 0 :]
    path.write_bytes(content)
    row_scales = create(tmp_path)
    assert row_scales.find(DIGEST, list(scales)) is None
    assert "is damaged" in caplog.text
    row_scales.keep(DIGEST, scales)
    assert_found(create(tmp_path), scales)


def test_those_used_last_are_kept(moe: BaseSpec, tmp_path: Path) -> None:
    digests = [f"sha256:{number:064x}" for number in range(4)]
    scales = {digest: scales_of(moe, seed) for seed, digest in enumerate(digests)}
    one = sum(m.nbytes for m in scales[digests[0]].values())
    in_memory = create(memory_bytes=2 * one)
    for digest in digests[:2]:
        in_memory.keep(digest, scales[digest])
    assert_found(in_memory, scales[digests[0]], digests[0])
    in_memory.keep(digests[2], scales[digests[2]])
    sites = list(scales[digests[0]])
    found = [in_memory.find(digest, sites) is not None for digest in digests]
    assert found == [True, False, True, False]

    on_disk = create(tmp_path, memory_bytes=0, folder_bytes=3 * one)
    for digest in digests:
        on_disk.keep(digest, scales[digest])
    assert 0 < len(list(tmp_path.iterdir())) < 4
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3 * one


def test_what_a_killed_process_left_is_swept(moe: BaseSpec, tmp_path: Path) -> None:
    scales = scales_of(moe)
    create(tmp_path).keep(DIGEST, scales)
    (kept,) = tmp_path.iterdir()
    (tmp_path / "torn.tmp").write_bytes(b"half")
    assert_found(create(tmp_path), scales)
    assert list(tmp_path.iterdir()) == [kept]


def test_a_folder_that_cannot_be_written_costs_only_time(
    moe: BaseSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row_scales, scales = create(tmp_path / "gone"), scales_of(moe)
    (tmp_path / "gone").rmdir()
    row_scales.keep(DIGEST, scales)
    assert "could not be kept" in caplog.text
    assert_found(row_scales, scales)
