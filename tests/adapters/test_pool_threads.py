"""The loader's thread leaves torch's parallelism to the engine's thread."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# in a process of its own: how many threads there are is a matter of the whole process
SCRIPT = """
import os, threading, time
import numpy as np, torch
from weft_adapters.site_weights import SiteWeights
from weft_adapters.pool import PagePool
from weft_adapters.sites import BaseSpec, Site

torch.set_num_threads(2)
config = {
    "model_type": "qwen3", "num_hidden_layers": 1, "hidden_size": 2048, "vocab_size": 8,
    "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 128,
    "intermediate_size": 4096,
}
base = BaseSpec.from_config(config, "sha256:" + "0" * 64)
pool = PagePool(base, 64 * 2**20, torch.float32, "cpu")
torch.randn(1024, 1024).add_(1)  # this thread's team

def num_threads():
    return len(os.listdir("/proc/self/task"))

baseline = num_threads()

def in_thread(work):
    while num_threads() > baseline:
        time.sleep(0.01)  # threads that ended are counted a little longer
    done, go_on = threading.Event(), threading.Event()
    def run():
        work()
        done.set()
        go_on.wait()
    thread = threading.Thread(target=run)
    thread.start()
    done.wait()
    count = num_threads() - baseline - 1
    go_on.set()
    thread.join()
    return count

a = np.ones((64, 2048), np.float32)
b = np.ones((64, 4096), np.float32)
weights = {Site(0, "gate_proj"): SiteWeights(a, b, 1.0)}
by_loading = in_thread(lambda: pool.try_load("d", weights))
by_a_parallel_operation = in_thread(lambda: torch.ones(1024, 1024).add_(1))
print(by_loading, by_a_parallel_operation)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
def test_loading_an_adapter_starts_no_second_team_of_threads() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True
    )
    by_loading, by_a_parallel_operation = map(int, done.stdout.split())
    assert by_a_parallel_operation > 0, "torch computes without threads here: nothing to test"
    assert by_loading == 0
