"""A step's metadata as one tensor of int32, so that all of it reaches the device in one copy.

    seeds, drawn_at, positions, kv_slots, logit_rows                        int64
    temperatures, top_ps, min_ps                                            float32
    tokens, taken_from, top_ks, slots, num_tokens, the attention's plan     int32

one after another, each from a multiple of 16 bytes on: vectors load from there, and the kernels are
compiled once, not once for each alignment. On the device every part is a view.

The step before may still be choosing the token of a row: then `taken_from` says which of its rows
of logits that is, and is -1 where the row has the token that was sent. On the device it is an index
into all that the steps share, where the tokens chosen last stand before what is sent, so that one
gather takes either.

Legend: T rows, N rows of logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

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
    ("positions", "T", np.int64, torch.int64, 0),
    ("kv_slots", "T", np.int64, torch.int64, -1),
    ("logit_rows", "N", np.int64, torch.int64, 0),
    ("temperatures", "N", np.float32, torch.float32, 0),
    ("top_ps", "N", np.float32, torch.float32, 1),
    ("min_ps", "N", np.float32, torch.float32, 0),
    ("tokens", "T", np.int32, torch.int32, 0),
    ("taken_from", "T", np.int32, torch.int32, -1),
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
    target: Ints, layout: StepLayout, values: Mapping[str, ArrayLike], attention: Ints, shared: int
) -> int:
    """Write a step to the host's tensor; how much of it there is to be copied.

    `values` by name, each as long as there are live rows; what is left of a part is padding.
    `shared`: how many numbers stand before it on the device.
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
    taken_from, first = target[places["taken_from"]], shared + places["tokens"].start
    own_places = np.arange(first, first + len(taken_from), dtype=np.int32)
    np.copyto(taken_from, own_places, where=taken_from < 0)
    target[start:end] = attention
    return end


def view_step(packed: Tensor, layout: StepLayout) -> tuple[dict[str, Tensor], Tensor]:
    """The parts on the device by name, and the attention's plan; nothing is copied."""
    places, start = _places(layout.num_rows, layout.num_logits)
    parts = {name: packed[places[name]].view(dtype) for name, _, _, dtype, _ in _PARTS}
    return parts, packed[start:]


class HostBuffer:
    """A host's tensor, pinned where there is a device to copy to or from. Beside it, when the last
    copy was queued that reads or fills it: until that is over it is the device's."""

    def __init__(self, size: int, device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        self.ints = torch.zeros(size, dtype=torch.int32, pin_memory=is_cuda)
        create: Any = torch.cuda.Event  # its constructor has no annotations
        self._copied: torch.cuda.Event | None = create() if is_cuda else None

    def note_copy(self) -> None:
        """A copy has been queued on the current stream."""
        if self._copied is not None:
            self._copied.record()

    def wait(self) -> None:
        """Until the copy is over; what was queued behind it is not waited for."""
        if self._copied is not None:
            self._copied.synchronize()


class StepBuffers:
    """The host's side twice: one is filled while the device may still read the other. On the device
    `packed` is one tensor: `chosen`, the tokens that the last step chose and what became of its
    rows, and behind it the step."""

    def __init__(self, size: int, num_chosen: int, device: torch.device) -> None:
        self._hosts = [HostBuffer(size, device) for _ in range(2)]
        self._shared = -(-num_chosen // _ALIGNMENT) * _ALIGNMENT
        self.packed = torch.zeros(self._shared + size, dtype=torch.int32, device=device)
        self.chosen = self.packed[:num_chosen]

    def send(self, layout: StepLayout, values: Mapping[str, ArrayLike], attention: Ints) -> None:
        """Queue the copy; waits only for the one before the last."""
        host = self._hosts[0]
        host.wait()
        self._hosts.reverse()
        end = pack_step(host.ints.numpy(), layout, values, attention, self._shared)
        self.step[:end].copy_(host.ints[:end], non_blocking=True)
        host.note_copy()

    @property
    def step(self) -> Tensor:
        """What was sent last."""
        return self.packed[self._shared :]

    def take_tokens(self, parts: Mapping[str, Tensor]) -> Tensor:
        """int32 `[T]`: each row's token, of those that were sent or chosen."""
        return self.packed.index_select(0, parts["taken_from"])


def buckets(most: int) -> Sequence[int]:
    """Powers of two below `most`, and `most`."""
    sizes = [1 << i for i in range(most.bit_length()) if 1 << i < most]
    return [*sizes, most]
