"""Others' released LoRA kernels on a problem of the benches.

The folder that they are loaded from holds what these wheels unpack to, or the named parts of it:

    vllm/lora/ops/triton_ops/            of vllm 0.33.0
    sglang/kernels/ops/lora/, sglang/srt/lora/   of sglang 0.5.23
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from benchmarks.gpu import sglang_peers
from benchmarks.gpu.judges import SGLANG_V2, VLLM, VLLM_PDL
from benchmarks.gpu.lora_problem import Problem
from benchmarks.gpu.peer_modules import load_vllm

from weft_kernels.cuda.configs import Launch

Prepare = Callable[[Problem], Launch]

_VLLM_FOLDER = Path("vllm/lora/ops/triton_ops")


def find_peers(folder: Path | None) -> dict[str, Prepare]:
    """Those that the folder holds; ValueError for a folder that holds none."""
    if folder is None:
        return {}
    peers: dict[str, Prepare] = {}
    if (folder / _VLLM_FOLDER).is_dir():
        peers[VLLM] = partial(_vllm, folder, specialize=False, use_pdl=False)
        peers[VLLM_PDL] = partial(_vllm, folder, specialize=True, use_pdl=True)
    if (folder / sglang_peers.FOLDER).is_dir():
        peers["sglang triton"] = partial(sglang_peers.triton_segments, folder)
        if torch.cuda.is_available():
            # asks for a device, also where the rest could be interpreted
            peers[SGLANG_V2] = partial(sglang_peers.triton_v2, folder)
    if not peers:
        raise ValueError(f"{folder} holds neither {_VLLM_FOLDER} nor {sglang_peers.FOLDER}")
    return peers


def _vllm(folder: Path, problem: Problem, *, specialize: bool, use_pdl: bool) -> Launch:
    """Shrink into float32 and expand. specialize: grids for the adapters in use, not for all slots,
    which are as many here; with PDL as in their second stream's mode."""
    vllm = load_vllm(folder)
    shape = problem.shape
    a, b = problem.padded()
    a_slabs = [part[:, None].contiguous() for part in a]
    b_slabs = [part.transpose(1, 2)[:, None].contiguous() for part in b]
    # their tables of pointers outlive the memory that they point to
    vllm.utils._LORA_A_PTR_DICT.pop(tuple(part.data_ptr() for part in a_slabs), None)
    vllm.utils._LORA_B_PTR_DICT.pop(tuple(part.data_ptr() for part in b_slabs), None)
    meta = vllm.meta.make(shape.num_adapters, shape.num_tokens, problem.x.device)
    meta.prepare_tensors(problem.slots)
    arguments = meta.meta_args(shape.num_tokens, specialize)
    size = (len(shape.widths), shape.num_tokens, max(shape.ranks))
    h = torch.empty(size, dtype=torch.float32, device=problem.x.device)

    def launch() -> None:
        vllm.envs.VLLM_LORA_ENABLE_DUAL_STREAM = use_pdl
        vllm.shrink(problem.x, a_slabs, h, *arguments, 1.0)
        vllm.expand(h, b_slabs, problem.y, *arguments, add_inputs=True)

    # the tables of pointers are copied to the device in the first call, which no graph may hold
    launch()
    problem.y.zero_()
    return launch
