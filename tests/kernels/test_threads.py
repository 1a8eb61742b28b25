"""A thread that computes alone starts no others, and leaves those of other threads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# in a process of its own: how many threads there are is a matter of the whole process
SCRIPT = """
import os, threading
import torch
from weft_kernels.threads import on_this_thread_alone

torch.set_num_threads(2)
w = torch.randn(512, 512)
torch.ones(1024, 1024).add_(1)  # this thread's team

def num_threads():
    return len(os.listdir("/proc/self/task"))

def run():
    before = num_threads()
    with on_this_thread_alone():
        (w @ w).add_(1).square().sum()
        entered.set()
        go_on.wait()
    found.append(num_threads() - before)
    w @ w
    found.append(num_threads() - before)

entered, go_on, found = threading.Event(), threading.Event(), []
thread = threading.Thread(target=run)
thread.start()
entered.wait()
meanwhile = torch.get_num_threads()
go_on.set()
thread.join()
print(*found, meanwhile, torch.get_num_threads())
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
def test_a_thread_that_computes_alone_starts_no_team() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True
    )
    alone, together, meanwhile, after = map(int, done.stdout.split())
    assert together > 0, "torch computes without threads here: nothing to test"
    assert (alone, meanwhile, after) == (0, 2, 2)
