"""A process that is killed at any point of a tier's change leaves nothing wrong behind.

A child process goes through every change: download, rename into the disk tier, reading, eviction,
discarding what is wrong, and downloading it again. It is killed right before its n-th call of the
file system, for every n there is; after each kill the next start has to find whole versions only.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from weft_adapters.disk import DiskTier
from weft_adapters.sites import BaseSpec
from weft_adapters.source import load_verified
from weft_adapters.store import FolderStore

Put = Callable[..., str]

# argv: the store, the disk tier's folder, its budget, the number of the fatal call, the digests
CHILD = """
import os, shutil, signal, sys
from contextlib import contextmanager
from pathlib import Path
from weft_adapters.disk import DiskTier
from weft_adapters.fetch import DownloadedSource, RetryRules
from weft_adapters.store import CONFIG_NAME, TENSORS_NAME, FolderStore
from weft_adapters.workers import Cancellation

root, budget, fatal, digests = sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:]
num_calls = 0
# of what changes files, also within Python's own library
EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.utime", "shutil.rmtree")

def watch(event, arguments):
    global num_calls
    if event in EVENTS and arguments and root in str(arguments[0]):
        num_calls += 1
        if num_calls == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

class Far(FolderStore):
    def _paths(self, digest):
        stored = self.open(digest)
        return {CONFIG_NAME: stored.config_path, TENSORS_NAME: stored.tensors_path}

    def sizes(self, digest):
        return {name: path.stat().st_size for name, path in self._paths(digest).items()}

    @contextmanager
    def download(self, digest, name, start):
        data = self._paths(digest)[name].read_bytes()[start:]
        yield iter([data[:100], data[100:]])

store = Far(Path(sys.argv[1]))
sys.addaudithook(watch)
source = DownloadedSource(store, DiskTier(Path(root), budget))
for digest in digests:
    source.fetch(digest, Cancellation())
    with source.reading(digest) as stored:
        stored.tensors_path.read_bytes()
source.discard(digests[-1])
source.fetch(digests[-1], Cancellation())
source.close()
print(num_calls)
"""


def run(store: Path, disk: Path, budget: int, fatal: int, digests: list[str]) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(store), str(disk), str(budget), str(fatal), *digests],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode, done.stdout


def assert_sound(disk: Path, budget: int, store: FolderStore, base: BaseSpec) -> None:
    """The next start sweeps what was left, and what it keeps has its digest."""
    tier = DiskTier(disk, budget)
    tier.integrity()
    whole = {digest.removeprefix("sha256:") for digest in tier.digests()}
    assert {path.name for path in disk.iterdir()} == whole | {".lock"}
    for digest in tier.digests():
        with tier.reading(digest) as stored:
            load_verified(stored, digest, base)
    tier.close()


def kill_at(
    points: Callable[[int], range], tmp_path: Path, base: BaseSpec, digests: list[str]
) -> int:
    store = FolderStore(tmp_path / "store")
    budget = 2 * store.open(digests[0]).num_bytes + 100  # for two of the three
    code, printed = run(tmp_path / "store", tmp_path / "whole", budget, 0, digests)
    assert code == 0
    num_points = int(printed)
    for fatal in points(num_points):
        disk = tmp_path / f"killed-{fatal}"
        code, _ = run(tmp_path / "store", disk, budget, fatal, digests)
        assert code == -signal.SIGKILL
        assert_sound(disk, budget, store, base)
        code, _ = run(tmp_path / "store", disk, budget, 0, digests)  # and all goes on from there
        assert code == 0
        assert_sound(disk, budget, store, base)
    return num_points


@pytest.fixture
def digests(put_adapter: Put) -> list[str]:
    return [put_adapter(seed) for seed in range(3)]


def test_a_kill_at_some_points_leaves_whole_versions_only(
    tmp_path: Path, dense: BaseSpec, digests: list[str]
) -> None:
    num_points = kill_at(lambda n: range(2, n + 1, n // 5), tmp_path, dense, digests)
    assert num_points > 25


@pytest.mark.verify
def test_a_kill_at_every_point_leaves_whole_versions_only(
    tmp_path: Path, dense: BaseSpec, digests: list[str]
) -> None:
    kill_at(lambda n: range(1, n + 1), tmp_path, dense, digests)
