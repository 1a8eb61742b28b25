"""`weft bench` prints every figure that it promises."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from weft.cli import app
from weft.demo import ADAPTERS_DIR, BASE_DIR

pytestmark = pytest.mark.slow


def run(*options: str) -> tuple[int, str]:
    command = ["bench", "--base", str(BASE_DIR), "--num-requests", "4", "--input-len", "8"]
    command += ["--output-len", "4", "--repeats", "1", "--json", *options]
    result = CliRunner().invoke(app, command)
    return result.exit_code, result.output


def test_all_figures_are_printed_and_make_sense() -> None:
    adapters = [f"--adapter={name}={ADAPTERS_DIR / name}" for name in ("shout", "sorter")]
    code, output = run(*adapters, "--adapters-in-batch", "2")
    assert code == 0, output
    result = json.loads(output[output.index("{") :])
    assert result["output_tokens_per_s"] > 0
    assert result["requests_per_s"] * 4 == pytest.approx(result["output_tokens_per_s"])
    assert 0 < result["ttft_s"]["p50"] <= result["ttft_s"]["p99"]
    assert 0 < result["itl_s"]["p50"] <= result["itl_s"]["p99"]
    ratio = result["output_tokens_per_s"] / result["base_output_tokens_per_s"]
    assert result["lora_retention"] == pytest.approx(ratio)
    assert 0 < result["gemm_roofline"] < 1
    assert result["settings"]["adapters_in_batch"] == 2


def test_more_adapters_in_the_batch_than_given_is_refused() -> None:
    code, output = run("--adapters-in-batch", "3")
    assert code == 1
    assert "3 adapters" in " ".join(output.split())
