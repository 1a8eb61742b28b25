"""What the rows of a target come to: what was measured, in words, and whether it is enough.

A judge gets the target's rows in the target's order. It raises `NotMeasured` where one of them
lacks a time, or the peer that it is held against.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import exp, fsum, log

from benchmarks.gpu.harness import Row
from benchmarks.gpu.model_shapes import LLAMA_3_8B, QWEN3_30B_A3B

# the names of the peers that rows are held against
OWN_STEP, OWN_LAYER = "own step without adapters", "own base"
VLLM, VLLM_PDL, SGLANG_V2 = "vllm", "vllm, specialized, PDL", "sglang triton_v2"

Judge = Callable[[Sequence[Row]], tuple[str, bool]]


class NotMeasured(Exception):
    """Why there is no verdict."""


def _us(row: Row) -> float:
    if row.microseconds is None:
        raise NotMeasured("nothing was timed")
    return row.microseconds


def _peer_us(row: Row, peer: str) -> float:
    if peer in row.failures:
        raise NotMeasured(f"{peer} failed: {row.failures[peer].splitlines()[0][:120]}")
    if peer not in row.peer_us:
        raise NotMeasured(f"{peer} was not run: --peers names the folder of others' kernels")
    return row.peer_us[peer]


def _least_us(row: Row, num_bytes: int) -> float:
    """What a copy at this run's bandwidth takes for as many bytes."""
    if row.copy_gb_per_s is None:
        raise NotMeasured("no bandwidth was measured")
    return num_bytes / row.copy_gb_per_s / 1e3


def _added_us(row: Row) -> float:
    return _us(row) - _peer_us(row, OWN_STEP)


def slowdown(limit: float) -> Judge:
    def judge(rows: Sequence[Row]) -> tuple[str, bool]:
        us, base_us = _us(rows[0]), _peer_us(rows[0], OWN_STEP)
        return f"{us / base_us:.3f}x: {us:.0f} over {base_us:.0f} us", us / base_us <= limit

    return judge


def added_over_least(limit: float) -> Judge:
    """Rows: the step with adapters, and without."""

    def judge(rows: Sequence[Row]) -> tuple[str, bool]:
        added, least = _added_and_least(*rows)
        text = f"{added / least:.2f}x: {added:.0f} us added, {least:.0f} us for the bytes"
        return text, added / least <= limit

    return judge


def _added_and_least(row: Row, base: Row) -> tuple[float, float]:
    return _added_us(row), _least_us(row, row.useful_bytes - base.useful_bytes)


def added_bandwidth(rows: Sequence[Row]) -> tuple[str, bool]:
    """Rows by two: a step with adapters, and without."""
    shares = {}
    for row, base in zip(rows[::2], rows[1::2], strict=True):
        added, least = _added_and_least(row, base)
        # nothing added is no less than all of the bandwidth
        shares[str(row.shape["model"])] = least / max(added, 1e-9)
    return _each(shares, ".0%"), min(shares.values()) >= 0.80


def added_per_site(rows: Sequence[Row]) -> tuple[str, bool]:
    num_sites = {model.name: model.num_sites for model in (QWEN3_30B_A3B, LLAMA_3_8B)}
    added = {
        f"{row.shape['model']} {row.shape['requests']}/{row.shape['adapters']}": _added_us(row)
        / num_sites[str(row.shape["model"])]
        for row in rows
    }
    worst = max(added, key=added.__getitem__)
    return f"{added[worst]:.2f} us, the worst of {len(added)} ({worst})", added[worst] <= 2.5


def faster_than_default(rows: Sequence[Row]) -> tuple[str, bool]:
    ours, theirs = fsum(map(_us, rows)), fsum(_peer_us(row, VLLM) for row in rows)
    return f"{theirs / ours:.2f}x: {theirs:.1f} over {ours:.1f} us a layer", theirs / ours >= 1.5


def against_tuned(rows: Sequence[Row]) -> tuple[str, bool]:
    parts, is_enough = [], True
    for peer in (VLLM_PDL, SGLANG_V2):
        ratios = {row.key: _peer_us(row, peer) / _us(row) for row in rows}
        mean = exp(fsum(map(log, ratios.values())) / len(ratios))
        worst = min(ratios, key=ratios.__getitem__)
        parts.append(f"{peer}: mean {mean:.2f}x, worst {ratios[worst]:.2f}x ({worst})")
        is_enough = is_enough and mean >= 1.0 and ratios[worst] >= 0.95
    return "; ".join(parts), is_enough


def time_of_bytes(rows: Sequence[Row]) -> tuple[str, bool]:
    us = fsum(map(_us, rows))
    least = fsum(_least_us(row, row.useful_bytes) for row in rows)
    return f"{us / least:.2f}x: {us:.1f} over {least:.1f} us a layer", us / least <= 1.10


def retention(rows: Sequence[Row]) -> tuple[str, bool]:
    us, base_us = _us(rows[0]), _peer_us(rows[0], OWN_LAYER)
    text = f"{base_us / us:.1%}: {base_us:.1f} us without, {us:.1f} with"
    return text, base_us / us >= 0.90


def bandwidth(rows: Sequence[Row]) -> tuple[str, bool]:
    shares = {str(row.shape["model"]): _least_us(row, row.useful_bytes) / _us(row) for row in rows}
    return _each(shares, ".0%"), min(shares.values()) >= 0.85


def over_floor(rows: Sequence[Row]) -> tuple[str, bool]:
    over = {str(row.shape["model"]): _us(row) / _least_us(row, row.useful_bytes) for row in rows}
    return _each(over, ".2f"), max(over.values()) <= 1.25


def _each(values: Mapping[str, float], form: str) -> str:
    return ", ".join(f"{name} {value:{form}}" for name, value in values.items())
