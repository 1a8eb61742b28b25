"""What a tensor of an adapter is for, in words: what the report lists and checks for completeness.

Every form that an adapter may have says it of its tensors, so that none can be accepted unread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class TensorUse:
    """`role`: PEFT's word for the tensor ("lora_A"); `target`: the weight of the base that it
    changes ("layer 3 expert 7 up_proj"), numbers as they are in the tensor's name."""

    role: str
    target: str


class Pair(NamedTuple):
    """Two tensors whose product, times `scale`, is added to weights of the base. A tensor may be
    of several pairs, and hold the factors of several weights."""

    a_name: str
    b_name: str
    rank: int
    scale: float
