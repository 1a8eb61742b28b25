"""Others' kernels are imported from a folder that is given: here from files made for the test, with
the names and the arguments of theirs, that compute with torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.gpu.checks import ROOT, environment
from benchmarks.gpu.lora_peers import find_peers

COMMON = """
import torch
import vllm.envs as envs
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.triton_utils import tl, triton
from vllm.utils.torch_utils import direct_register_custom_op

logger = init_logger(__name__)
logger.info_once("loaded")
assert not current_platform.is_xpu()
try:
    direct_register_custom_op(op_name="an operator")
except AttributeError:
    pass
"""
FILES = {
    "utils": "_LORA_A_PTR_DICT, _LORA_B_PTR_DICT = {}, {}",
    "lora_shrink_op": """
def lora_shrink(x_TI, slabs, h_STR, slots_T, scale):
    for h_TR, a_D1RI in zip(h_STR, slabs):
        a_TRI = a_D1RI[slots_T.long(), 0].float()
        h_TR.copy_(scale * torch.einsum("ti,tri->tr", x_TI.float(), a_TRI))
""",
    "lora_expand_op": """
def lora_expand(h_STR, slabs, y_TO, slots_T, add_inputs):
    assert add_inputs
    start = 0
    for h_TR, b_D1OR in zip(h_STR, slabs):
        out_TO = torch.einsum("tr,tor->to", h_TR, b_D1OR[slots_T.long(), 0].float())
        y_TO[:, start : start + out_TO.shape[1]] += out_TO.to(y_TO.dtype)
        start += out_TO.shape[1]
""",
    "lora_kernel_metadata": """
class LoRAKernelMeta:
    @classmethod
    def make(cls, num_slots, num_tokens, device):
        return cls()
    def prepare_tensors(self, slots_T):
        self.slots_T = slots_T
    def meta_args(self, num_tokens, specialize):
        return (self.slots_T,)
""",
}


def _write(folder: Path) -> None:
    kernels = folder / "vllm" / "lora" / "ops" / "triton_ops"
    kernels.mkdir(parents=True)
    for name, text in FILES.items():
        (kernels / f"{name}.py").write_text(COMMON + text)


@pytest.mark.slow
def test_a_peer_is_held_against_the_twin_and_runs_beside_us(tmp_path: Path) -> None:
    _write(tmp_path)
    command = [sys.executable, "-m", "benchmarks.gpu", "bench_lora", "--interpret", "--peers"]
    run = subprocess.run(
        [*command, str(tmp_path)], cwd=ROOT, env=environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    # two problems, each with a grid for all slots and with one for those in use
    assert run.stdout.count("vllm ran") == 2
    assert run.stdout.count("PDL ran") == 2


def test_a_folder_without_any_is_refused(tmp_path: Path) -> None:
    assert find_peers(None) == {}
    with pytest.raises(ValueError, match="holds neither"):
        find_peers(tmp_path)
