"""The targets' verdicts, from made-up rows: met, missed, or not measured for want of a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from benchmarks.gpu.__main__ import BENCHES
from benchmarks.gpu.harness import Failure, Row, Setting
from benchmarks.gpu.judges import OWN_LAYER, OWN_STEP, SGLANG_V2, VLLM, VLLM_PDL
from benchmarks.gpu.run import TARGET_SHARES
from benchmarks.gpu.targets import MET, MISSED, NOT_MEASURED, TARGETS, Need, Verdict, judge
from benchmarks.gpu.worker import Job, cases_of

# bytes and times of made-up rows, at 4,000 GB/s: 4 MB take 1 us
MB = 1_000_000
COPY = 4000.0
BASE_BYTES, ADDED_BYTES = 40_000 * MB, 4_000 * MB
BASE_US, ADDED_US = 11_000.0, 1_050.0
SERVED_US = 500.0


def create_row(need: Need) -> Row:
    """All targets are met by these."""
    key = " ".join([need.operator, *(f"{k}={v}" for k, v in need.shape.items())])
    row = Row(need.bench, key, need.operator, need.shape, {}, "bfloat16", 0, 0.0)
    row = replace(row, copy_gb_per_s=COPY)
    if need.operator in ("step", "served_step"):
        adapters = int(need.shape["adapters"])
        base_us = BASE_US + SERVED_US * (need.operator == "served_step")
        added_us = ADDED_US if adapters == 64 else 200.0
        if need.shape["model"] == "qwen3-30b-a3b" and adapters == 64:
            added_us = 500.0
        added_bytes = int(added_us * 0.95 * COPY * 1e3) if adapters else 0
        row = replace(
            row,
            useful_bytes=BASE_BYTES + added_bytes,
            microseconds=base_us + (added_us if adapters else 0.0),
            peer_us={OWN_STEP: base_us} if adapters else {},
        )
        return row
    us = {"lora": 10.0, "moe_lora": 400.0, "attention_decode": 70.0}[need.operator]
    peers = {
        "lora": {VLLM: 20.0, VLLM_PDL: 12.0, SGLANG_V2: 11.0},
        "moe_lora": {OWN_LAYER: 370.0},
        "attention_decode": {},
    }[need.operator]
    return replace(row, microseconds=us, peer_us=peers, useful_bytes=int(0.95 * us * COPY * 1e3))


NEEDS = {str(need): need for target in TARGETS for need in target.needs}
ROWS = [create_row(need) for need in NEEDS.values()]


def verdicts(rows: Sequence[Row], failures: Sequence[Failure] = ()) -> dict[str, Verdict]:
    return {verdict.target: verdict for verdict in judge(rows, failures)}


def changed(change: Callable[[Row], Row], operator: str, **shape: int | str) -> list[Row]:
    """The rows, those of the operator and the shape changed."""

    def is_meant(row: Row) -> bool:
        return row.operator == operator and shape.items() <= row.shape.items()

    assert any(map(is_meant, ROWS))
    return [change(row) if is_meant(row) else row for row in ROWS]


def slower(factor: float) -> Callable[[Row], Row]:
    return lambda row: replace(row, microseconds=(row.microseconds or 0.0) * factor)


def test_all_are_met_by_rows_that_are_good_enough() -> None:
    found = verdicts(ROWS)
    assert {name: verdict.outcome for name, verdict in found.items()} == {
        target.name: MET for target in TARGETS
    }
    assert found["T1 step"].measured == "1.045x: 11500 over 11000 us"
    assert found["T2 roofline"].measured == "1.05x: 1050 us added, 998 us for the bytes"
    assert found["T2 vLLM"].measured == "2.00x: 80.0 over 40.0 us a layer"
    assert found["T3 few"].measured.startswith("2.08 us, the worst of 6 (qwen3-30b-a3b ")
    assert found["T5"].measured == "92.5%: 370.0 us without, 400.0 with"
    assert found["T6 attention"].measured == "qwen3-30b-a3b 95%, llama-3-8b 95%"


@pytest.mark.parametrize(
    ("target", "operator", "shape", "factor"),
    [
        ("T1 step", "step", {"model": "qwen3-30b-a3b", "adapters": 64}, 1.01),
        ("T1 served", "served_step", {"model": "qwen3-30b-a3b", "adapters": 64}, 1.01),
        ("T2 roofline", "step", {"model": "llama-3-8b", "adapters": 64, "rank": "16"}, 1.03),
        ("T2 vLLM", "lora", {"tokens": 64, "adapters": 64, "rank": "16"}, 1.4),
        ("T2 tuned", "lora", {"tokens": 64, "adapters": 64, "site": "llama-3-8b o"}, 1.2),
        ("T2 grid", "lora", {"tokens": 8, "adapters": 1, "site": "llama-3-8b qkv"}, 1.2),
        ("T3 many", "step", {"model": "llama-3-8b", "adapters": 64, "rank": "16"}, 1.03),
        ("T3 few", "step", {"model": "llama-3-8b", "requests": 1}, 1.02),
        ("T4 step", "step", {"model": "llama-3-8b", "rank": "mixed"}, 1.02),
        ("T4 sites", "lora", {"rank": "mixed"}, 1.06),
        ("T5", "moe_lora", {"tokens": 64}, 1.04),
        ("T6 attention", "attention_decode", {"model": "llama-3-8b"}, 1.13),
        ("T6 step", "step", {"model": "llama-3-8b", "adapters": 0}, 1.14),
        ("T6 served", "served_step", {"model": "qwen3-30b-a3b", "adapters": 0}, 1.10),
    ],
)
def test_a_row_that_is_too_slow_is_a_target_missed(
    target: str, operator: str, shape: dict[str, int | str], factor: float
) -> None:
    assert verdicts(changed(slower(factor), operator, **shape))[target].outcome == MISSED


def test_no_time_is_won_by_a_mean_over_both_peers() -> None:
    """Each tuned peer's own mean counts."""

    def change(row: Row) -> Row:
        return replace(row, peer_us={**row.peer_us, VLLM_PDL: 30.0, SGLANG_V2: 9.8})

    assert verdicts(changed(change, "lora"))["T2 tuned"].outcome == MISSED


@pytest.mark.parametrize("need", NEEDS.values(), ids=str)
def test_a_missing_row_is_no_verdict(need: Need) -> None:
    rows = [r for r in ROWS if not need.is_met_by(r.bench, r.operator, r.shape)]
    found = verdicts(rows)
    for target in TARGETS:
        verdict = found[target.name]
        if need in target.needs:
            assert verdict.outcome == NOT_MEASURED
            assert verdict.measured == "-"
            assert f"1 of {len(target.needs)} rows are missing ({need}: not run)" in verdict.reason
        else:
            assert verdict.outcome == MET


def test_a_failed_case_says_why_there_is_no_verdict() -> None:
    need = TARGETS[0].needs[0]
    failure = Failure(need.bench, "key", need.operator, need.shape, "a trace\nOutOfMemoryError: 9")
    found = verdicts([], [failure])["T1 step"]
    assert found.outcome == NOT_MEASURED
    assert "failed, OutOfMemoryError: 9" in found.reason


def test_an_absent_peer_is_no_verdict() -> None:
    def without(row: Row) -> Row:
        return replace(row, peer_us={})

    for target in ("T2 vLLM", "T2 tuned", "T2 grid"):
        verdict = verdicts(changed(without, "lora"))[target]
        assert verdict.outcome == NOT_MEASURED
        assert "was not run: --peers names the folder" in verdict.reason


def test_a_peer_that_failed_is_no_verdict() -> None:
    def fail(row: Row) -> Row:
        peers = {name: us for name, us in row.peer_us.items() if name != SGLANG_V2}
        return replace(row, peer_us=peers, failures={SGLANG_V2: "KeyError: 'plan'\nmore"})

    found = verdicts(changed(fail, "lora", tokens=64, adapters=64, site="llama-3-8b o"))
    assert found["T2 vLLM"].outcome == MET
    assert found["T2 tuned"].outcome == NOT_MEASURED
    assert found["T2 tuned"].reason == "sglang triton_v2 failed: KeyError: 'plan'"


def test_interpreted_rows_are_no_verdict() -> None:
    rows = [replace(row, microseconds=None) for row in ROWS]
    assert {verdict.outcome for verdict in judge(rows)} == {NOT_MEASURED}


def test_the_benches_make_each_row_once_and_those_of_targets_first() -> None:
    setting = Setting(torch.device("cuda"), torch.bfloat16, is_tiny=False)
    made: dict[str, int] = dict.fromkeys(NEEDS, 0)
    for bench in BENCHES:
        job = Job(f"benchmarks.gpu.{bench}", setting, None)
        for case in cases_of(job):
            for name, need in NEEDS.items():
                made[name] += need.is_met_by(bench, case.operator, case.shape)
    assert set(made.values()) == {1}
    first = {
        str(need)
        for bench in BENCHES
        for case in cases_of(Job(f"benchmarks.gpu.{bench}", setting, None, only_targets=True))
        for need in NEEDS.values()
        if need.is_met_by(bench, case.operator, case.shape)
    }
    assert {need.bench for need in NEEDS.values()} == TARGET_SHARES.keys()
    assert first == {str(n) for target in TARGETS if target.is_first for n in target.needs}
