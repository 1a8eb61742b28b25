"""A base's safetensors files, each tensor taken once and laid out as the operators want it.

A tensor that is missing, misshapen or left over raises.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from weft_kernels.backend import Backend
from weft_kernels.linear import LinearWeight
from weft_kernels.moe import ExpertWeights, QuantizedExperts
from weft_kernels.quantized import quantize


class Checkpoint:
    """Takes each tensor of a (sharded) checkpoint exactly once."""

    def __init__(
        self,
        base_dir: Path,
        dtype: torch.dtype,
        device: torch.device,
        quantization: str | None,
        backend: Backend,
    ) -> None:
        self._dtype = dtype
        self._device = device
        self._quantization = quantization
        self._backend = backend
        self._files = {path: safe_open(path, "pt") for path in _shard_paths(base_dir)}
        self._file_of = {key: path for path, file in self._files.items() for key in _keys_of(file)}
        self._left = set(self._file_of)

    def has(self, key: str) -> bool:
        return key in self._file_of

    def take(self, key: str, *shape: int) -> Tensor:
        if key not in self._left:
            raise ValueError(f"the checkpoint has no tensor {key!r}")
        self._left.remove(key)
        tensor = _read(self._files[self._file_of[key]], key)
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{key} has shape {tuple(tensor.shape)}, the config asks for {shape}")
        return tensor.to(self._dtype)

    def take_matrix(self, key: str, num_out: int, num_in: int) -> Tensor:
        """A linear weight, transposed to `[in, out]`."""
        return self.take(key, num_out, num_in).t()

    def place(self, tensor: Tensor) -> Tensor:
        return tensor.contiguous().to(self._device)

    def lay_out(self, matrix: Tensor) -> LinearWeight:
        """A matrix `[in, out]` as the operators want it, never rounded."""
        return self._backend.create_linear_weight(matrix.to(self._device))

    def lay_out_projection(self, name: str, matrix: Tensor) -> LinearWeight:
        """A matrix `[in, out]` as the operators want it, rounded if the engine's are."""
        with _naming(name):
            return self._backend.create_linear_weight(matrix.to(self._device), self._quantization)

    def lay_out_experts(
        self, name: str, router: Tensor, gate_up: Tensor, down: Tensor
    ) -> ExpertWeights | QuantizedExperts:
        """Router `[H, E]`; experts `[E, H, 2 F]` and `[E, F, H]`, rounded if the engine's are."""
        if self._quantization is None:
            return ExpertWeights(self.place(router), self.place(gate_up), self.place(down))
        with _naming(name):
            return QuantizedExperts(
                self.place(router),
                quantize(gate_up.to(self._device), self._quantization),
                quantize(down.to(self._device), self._quantization),
            )

    def finish(self, ignored: Callable[[str], bool]) -> None:
        left = sorted(key for key in self._left if not ignored(key))
        if left:
            raise ValueError(f"the checkpoint has tensors that the model does not use: {left[:8]}")


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Say which weights a ValueError is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _keys_of(file: Any) -> list[str]:
    return list(file.keys())  # safetensors' binding has no annotations


def _read(file: Any, key: str) -> Tensor:
    tensor: Tensor = file.get_tensor(key)
    return tensor


def _shard_paths(base_dir: Path) -> list[Path]:
    index = base_dir / "model.safetensors.index.json"
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [base_dir / name for name in sorted(names)]
    path = base_dir / "model.safetensors"
    if not path.is_file():
        raise ValueError(f"{base_dir} has no model.safetensors")
    return [path]
