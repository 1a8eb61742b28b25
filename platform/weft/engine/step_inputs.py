"""A step's metadata as one tensor of int32, so that all of it reaches the device in one copy.

    seeds, drawn_at, tokens, positions, kv_slots, logit_rows        int64
    temperatures, top_ps, min_ps                                    float32
    top_ks, slots, num_tokens, and the attention's plan             int32

one after another, each from a multiple of 16 bytes on: vectors load from there, and the kernels are
compiled once, not once for each alignment. On the device every part is a view.

Legend: T rows, N rows of logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from weft_kernels.cuda.attention_plan import AttentionLimits

Ints = NDArray[np.int32]

_ALIGNMENT = 4  # int32s
# name, what it counts, numpy's and torch's dtype, and what padding holds
_PARTS = (
    ("seeds", "N", np.int64, torch.int64, 0),
    ("drawn_at", "N", np.int64, torch.int64, 0),
    ("tokens", "T", np.int64, torch.int64, 0),
    ("positions", "T", np.int64, torch.int64, 0),
    ("kv_slots", "T", np.int64, torch.int64, -1),
    ("logit_rows", "N", np.int64, torch.int64, 0),
    ("temperatures", "N", np.float32, torch.float32, 0),
    ("top_ps", "N", np.float32, torch.float32, 1),
    ("min_ps", "N", np.float32, torch.float32, 0),
    ("top_ks", "N", np.int32, torch.int32, 0),
    ("slots", "T", np.int32, torch.int32, -1),
    ("num_tokens", "1", np.int32, torch.int32, 0),
)


@dataclass(frozen=True, slots=True)
class StepLayout:
    """The sizes of a step: `num_rows` and `num_logits` with padding, what its attention may need,
    and what its adapters reach."""

    num_rows: int
    num_logits: int
    limits: AttentionLimits
    reach: int


@lru_cache(maxsize=256)
def _places(num_rows: int, num_logits: int) -> tuple[Mapping[str, slice], int]:
    """Where each part is, and where the attention's plan begins."""
    places, at = {}, 0
    for name, counts, dtype, _, _ in _PARTS:
        count = {"T": num_rows, "N": num_logits, "1": 1}[counts]
        size = count * np.dtype(dtype).itemsize // 4
        places[name] = slice(at, at + size)
        at += -(-size // _ALIGNMENT) * _ALIGNMENT
    return MappingProxyType(places), at


def num_ints(num_rows: int, num_logits: int, num_attention_ints: int) -> int:
    return _places(num_rows, num_logits)[1] + num_attention_ints


def pack_step(
    target: Ints, layout: StepLayout, values: Mapping[str, ArrayLike], attention: Ints
) -> int:
    """Write a step to the host's tensor; how much of it there is to be copied.

    `values` by name, each as long as there are live rows; what is left of a part is padding.
    """
    places, start = _places(layout.num_rows, layout.num_logits)
    end = start + len(attention)
    if end > len(target):
        raise ValueError(f"the step's metadata are {end} numbers, more than {len(target)}")
    for name, _, dtype, _, blank in _PARTS:
        part = target[places[name]].view(dtype)
        own = np.asarray(values[name], dtype=dtype)
        part[: len(own)] = own
        part[len(own) :] = blank
    target[start:end] = attention
    return end


def view_step(packed: Tensor, layout: StepLayout) -> tuple[dict[str, Tensor], Tensor]:
    """The parts on the device by name, and the attention's plan; nothing is copied."""
    places, start = _places(layout.num_rows, layout.num_logits)
    parts = {name: packed[places[name]].view(dtype) for name, _, _, dtype, _ in _PARTS}
    return parts, packed[start:]


class StepBuffers:
    """The host's tensor, pinned where there is a device to copy to, and the device's."""

    def __init__(self, size: int, device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        self._host = torch.zeros(size, dtype=torch.int32, pin_memory=is_cuda)
        self._target: Ints = self._host.numpy()
        self.packed = torch.zeros(size, dtype=torch.int32, device=device)

    def send(self, layout: StepLayout, values: Mapping[str, ArrayLike], attention: Ints) -> None:
        """Queue the copy. The step before must be over: its copy reads the same memory."""
        end = pack_step(self._target, layout, values, attention)
        self.packed[:end].copy_(self._host[:end], non_blocking=True)


def buckets(most: int) -> Sequence[int]:
    """Powers of two below `most`, and `most`."""
    sizes = [1 << i for i in range(most.bit_length()) if 1 << i < most]
    return [*sizes, most]
