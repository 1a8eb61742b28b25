"""The machine, and what its device reaches now: `python -m benchmarks.gpu.ceilings LOG`."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from benchmarks.gpu.processes import write_line

from weft_kernels.cuda.timing import copy_bandwidth, matmul_rate


def this_machine() -> dict[str, object]:
    return {
        "device": torch.cuda.get_device_name(),
        "driver": _driver(),
        "versions": {
            "python": platform.python_version(),
            "torch": version("torch"),
            "cuda": torch.version.cuda,
            "triton": version("triton"),
        },
    }


def _driver() -> str:
    run = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return run.stdout.splitlines()[0].strip()


if __name__ == "__main__":
    log = Path(sys.argv[1])
    write_line(log, machine=this_machine())
    write_line(log, ceilings={"copy_bandwidth": copy_bandwidth(), "matmul_rate": matmul_rate()})
