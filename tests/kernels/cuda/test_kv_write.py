"""Writes of keys and values into caches of 16 and 8 bits against the twins and the CPU's form."""

from __future__ import annotations

import random

import pytest
import torch

from weft_kernels import reference_attention
from weft_kernels.attention import Int8Cache
from weft_kernels.attention import write_kv as write_kv_cpu
from weft_kernels.cuda.kv_write import Cache, Fp8Cache, write_kv

BLOCK_SIZE = 16


def create_new(
    num_rows: int, num_heads: int, head_dim: int, generator: torch.Generator, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values as the engine has them: slices of a fused projection."""
    width = num_heads * head_dim
    fused = torch.randn(num_rows, 5 * width, generator=generator).mul_(3).to(dtype)
    k, v = fused[:, 3 * width : 4 * width], fused[:, 4 * width :]
    return k.view(num_rows, num_heads, head_dim), v.view(num_rows, num_heads, head_dim)


def deal_slots(num_rows: int, num_blocks: int, *, padding: bool = False) -> list[int]:
    slots = random.Random(num_rows).sample(range(num_blocks * BLOCK_SIZE), num_rows)
    return [-1 if padding and i % 3 == 1 else slot for i, slot in enumerate(slots)]


def to_device(
    k_v: tuple[torch.Tensor, torch.Tensor], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """To the device, with the strides kept."""
    whole = k_v[0].untyped_storage()
    base = torch.empty(0, dtype=k_v[0].dtype).set_(whole).to(device)
    k, v = (base.as_strided(t.shape, t.stride(), t.storage_offset()) for t in k_v)
    return k, v


@pytest.mark.parametrize("num_rows", [0, 1, 7, 133])
@pytest.mark.parametrize(("num_heads", "head_dim"), [(2, 64), (3, 48), (1, 128)])
def test_writes_go_to_their_slots_and_nowhere_else(
    num_rows: int, num_heads: int, head_dim: int, device: torch.device, dtype: torch.dtype,
    generator: torch.Generator,
) -> None:  # fmt: skip
    caches = torch.randn(2, 12, BLOCK_SIZE, num_heads, head_dim, generator=generator).to(dtype)
    new = create_new(num_rows, num_heads, head_dim, generator, dtype)
    slots = deal_slots(num_rows, 12, padding=True)
    live = [i for i, slot in enumerate(slots) if slot >= 0]
    on_device = caches.to(device, copy=True)
    write_kv(
        on_device[0], on_device[1], *to_device(new, device),
        torch.tensor(slots, dtype=torch.int64, device=device),
    )  # fmt: skip
    for cache, got, values in zip(caches, on_device.cpu(), new, strict=True):
        want = reference_attention.write_kv(cache, values[live], [slots[i] for i in live])
        assert torch.equal(got.double(), want)


def create_quantized(kind: type[Int8Cache] | type[Fp8Cache], shape: tuple[int, ...]) -> Cache:
    """Filled with what no write makes: 77 for bytes, NaN for scales."""
    dtype = torch.int8 if kind is Int8Cache else torch.float8_e4m3fn
    data = torch.full(shape, 77, dtype=torch.int8).view(dtype)
    return kind(data, torch.full((*shape[:3], 1), torch.nan))


def move(cache: Cache, device: torch.device) -> Int8Cache | Fp8Cache:
    assert not isinstance(cache, torch.Tensor)
    # also where it is there already: writes to one must not reach the other
    return type(cache)(cache.data.to(device, copy=True), cache.scale.to(device, copy=True))


@pytest.mark.parametrize("num_rows", [1, 7, 60])
@pytest.mark.parametrize(("num_heads", "head_dim"), [(2, 64), (3, 48)])
def test_int8_gives_the_bits_of_the_cpu_form(
    num_rows: int, num_heads: int, head_dim: int, device: torch.device, dtype: torch.dtype,
    generator: torch.Generator,
) -> None:  # fmt: skip
    shape = (6, BLOCK_SIZE, num_heads, head_dim)
    new = create_new(num_rows, num_heads, head_dim, generator, dtype)
    # halves go to even, zeros stay zeros, the smallest numbers do not overflow
    new[0][0, 0] = torch.arange(head_dim) - head_dim / 2 + 0.5
    new[0][0, 0, 0] = 127
    new[1][0, 0] = 0
    new[1][-1, -1] = 1e-42
    slots = torch.tensor(deal_slots(num_rows, 6))
    caches = [create_quantized(Int8Cache, shape) for _ in range(2)]
    got = [move(cache, device) for cache in caches]
    write_kv(got[0], got[1], *to_device(new, device), slots.to(device))
    for cache, want_new, on_device in zip(caches, new, got, strict=True):
        assert isinstance(cache, Int8Cache)
        write_kv_cpu(cache, want_new, slots)
        assert torch.equal(on_device.data.cpu(), cache.data)
        assert torch.equal(on_device.scale.cpu().view(torch.int32), cache.scale.view(torch.int32))


@pytest.mark.parametrize("num_rows", [1, 7, 60])
def test_fp8_is_the_nearest_of_the_scaled_numbers(
    num_rows: int, device: torch.device, dtype: torch.dtype, generator: torch.Generator
) -> None:
    shape = (6, BLOCK_SIZE, 2, 64)
    new = create_new(num_rows, 2, 64, generator, dtype)
    new[1][0, 0] = 0
    slots = deal_slots(num_rows, 6)
    got = [move(create_quantized(Fp8Cache, shape), device) for _ in range(2)]
    at = torch.tensor(slots)
    write_kv(got[0], got[1], *to_device(new, device), at.to(device))
    untouched = torch.ones(6 * BLOCK_SIZE, dtype=torch.bool)
    untouched[at] = False
    for cache, values in zip(got, new, strict=True):
        data, scale = cache.data.cpu().flatten(0, 1), cache.scale.cpu().flatten(0, 1)
        wide = (data[at].double() * scale[at].double()).view(1, *values.shape)
        want = reference_attention.rounded_fp8(values[None])
        # float32 may put a value on the other side of the middle between two numbers
        torch.testing.assert_close(wide, want, rtol=0, atol=float(values.abs().max()) / 14 + 1e-6)
        assert (wide - want).abs().gt(1e-6 * values.abs().max()).double().mean() < 0.01
        assert (data[untouched].view(torch.int8) == 77).all()
        assert scale[untouched].isnan().all()


@pytest.mark.parametrize("kind", [Int8Cache, Fp8Cache])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_makes_its_scale_nan_and_no_other(
    value: float, kind: type[Int8Cache] | type[Fp8Cache], device: torch.device,
    generator: torch.Generator,
) -> None:  # fmt: skip
    new = create_new(3, 2, 64, generator, torch.float32)
    new[0][1, 1, 5] = value
    new[1][2, 0, 63] = value
    got = [move(create_quantized(kind, (2, BLOCK_SIZE, 2, 64)), device) for _ in range(2)]
    slots = torch.tensor([4, 20, 5], device=device)
    write_kv(got[0], got[1], *to_device(new, device), slots)
    for cache, spoilt in zip(got, ((1, 1), (2, 0)), strict=True):
        scale = cache.scale.flatten(0, 1)[slots].cpu()[..., 0]
        data = cache.data.flatten(0, 1)[slots].cpu().float()
        want = torch.zeros(3, 2, dtype=torch.bool)
        want[spoilt] = True
        assert torch.equal(scale.isnan(), want)
        assert (data[want] == 0).all()
        assert data.isfinite().all()


@pytest.mark.parametrize("kind", [None, Int8Cache, Fp8Cache])
def test_rows_of_padding_touch_nothing(
    kind: type[Int8Cache] | type[Fp8Cache] | None, device: torch.device,
    generator: torch.Generator,
) -> None:  # fmt: skip
    shape = (2, BLOCK_SIZE, 2, 64)
    new = to_device(create_new(5, 2, 64, generator, torch.float32), device)
    slots = torch.full((5,), -1, device=device)
    if kind is None:
        caches = torch.full((2, *shape), torch.nan, device=device)
        write_kv(caches[0], caches[1], *new, slots)
        assert caches.isnan().all()
        return
    for_k, for_v = (move(create_quantized(kind, shape), device) for _ in range(2))
    write_kv(for_k, for_v, *new, slots)
    for cache in (for_k, for_v):
        assert (cache.data.view(torch.int8) == 77).all()
        assert cache.scale.isnan().all()


def test_caches_may_have_gaps_between_blocks(
    device: torch.device, generator: torch.Generator
) -> None:
    """Keys and values of a block side by side, as in an arena."""
    both = torch.zeros(4, 2, BLOCK_SIZE, 2, 64, device=device)
    new = create_new(3, 2, 64, generator, torch.float32)
    slots = torch.tensor([0, 63, 17])
    write_kv(both[:, 0], both[:, 1], *to_device(new, device), slots.to(device))
    for cache, values in zip(both.cpu().unbind(1), new, strict=True):
        want = reference_attention.write_kv(torch.zeros_like(cache), values, slots.tolist())
        assert torch.equal(cache.double(), want)


def test_wrong_arguments_are_named(device: torch.device) -> None:
    cache = torch.zeros(2, BLOCK_SIZE, 2, 64, device=device)
    new, slots = torch.zeros(3, 2, 64, device=device), torch.zeros(3, dtype=torch.int64)
    slots = slots.to(device)
    with pytest.raises(ValueError, match="int64"):
        write_kv(cache, cache, new, new, slots.int())
    with pytest.raises(ValueError, match="side by side"):
        write_kv(cache.transpose(1, 2), cache, new, new, slots)
    with pytest.raises(ValueError, match="needs scales"):
        write_kv(cache.to(torch.int8), cache.to(torch.int8), new, new, slots)
    with pytest.raises(ValueError, match="N and D"):
        write_kv(cache, cache, new[:, :1], new, slots)
    with pytest.raises(ValueError, match="differ"):
        write_kv(cache, cache.half(), new, new, slots)
    bad = Int8Cache(cache.to(torch.int8), torch.zeros(2, BLOCK_SIZE, 2, device=device))
    with pytest.raises(ValueError, match="scales of a cache"):
        write_kv(bad, bad, new, new, slots)
