"""`weft adapter check`: the whole report, offline, with the base's weights and without."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from weft.cli import app
from weft.demo import ADAPTERS_DIR, BASE_DIR

TENSORS = "adapter_model.safetensors"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A copy of a demo adapter, to be spoiled."""
    return shutil.copytree(ADAPTERS_DIR / "shout", tmp_path / "adapter")


@pytest.fixture
def config_only(tmp_path: Path) -> Path:
    """The base as somebody has it who has not downloaded its weights."""
    folder = tmp_path / "base"
    folder.mkdir()
    shutil.copy(BASE_DIR / "config.json", folder)
    return folder


def check(folder: Path, base: Path, *options: str, code: int = 0) -> Any:
    command = ["adapter", "check", str(folder), "--base", str(base), "--json", *options]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if result.stdout else result.stderr


def test_the_bases_config_is_enough(adapter: Path, config_only: Path) -> None:
    report = check(adapter, config_only)
    assert report["ok"] is True
    assert report["digest"] is None
    assert report["smoke"] is None
    assert sum(row["num_tensors"] for row in report["tensors"]) == report["num_tensors"] > 0
    assert all(row["target"] and row["rms"] for row in report["tensors"])
    assert report["tier_bytes"]["store"] == (adapter / TENSORS).stat().st_size
    halved = check(adapter, config_only, "--dtype", "bfloat16")["tier_bytes"]
    assert 2 * halved["device"] == report["tier_bytes"]["device"]


@pytest.mark.slow
def test_with_its_weights_the_adapter_is_compared_with_it(adapter: Path) -> None:
    report = check(adapter, BASE_DIR)
    assert report["digest"].startswith("sha256:")
    assert report["smoke"]["max_logprob_change"] > 0.01
    assert not report["warnings"]
    assert check(adapter, BASE_DIR, "--no-smoke")["smoke"] is None


@pytest.mark.slow
def test_an_adapter_that_the_prompt_does_not_show_is_warned_of(adapter: Path) -> None:
    tensors = load_file(adapter / TENSORS)
    save_file({name: t * (1e-9 if "lora_B" in name else 1) for name, t in tensors.items()},
              adapter / TENSORS)  # fmt: skip
    report = check(adapter, BASE_DIR)
    assert report["smoke"]["max_logprob_change"] < 1e-5
    assert any("may change nothing" in warning for warning in report["warnings"])


@pytest.mark.slow
def test_a_prompt_that_cannot_be_run_is_warned_of(adapter: Path, tmp_path: Path) -> None:
    base = shutil.copytree(BASE_DIR, tmp_path / "base")
    weights = safetensors.torch.load_file(base / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    safetensors.torch.save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    report = check(adapter, base)
    assert report["smoke"] is None
    assert any("could not be run on the base" in warning for warning in report["warnings"])


def test_a_tokenizer_beside_the_adapter_is_judged_as_by_the_server(
    adapter: Path, config_only: Path
) -> None:
    plain = check(adapter, BASE_DIR, "--no-smoke")["digest"]
    shutil.copy(BASE_DIR / "tokenizer.json", adapter)
    assert check(adapter, BASE_DIR, "--no-smoke")["digest"] == plain, "it is the base's"
    assert any("tokenizer" in warning for warning in check(adapter, config_only)["warnings"])
    (adapter / "tokenizer.json").write_text("{}")
    (fault,) = check(adapter, BASE_DIR, "--no-smoke", code=1)["faults"]
    assert fault["code"] == "invalid_tokenizer"


def test_refusals_name_what_is_wrong(adapter: Path, config_only: Path) -> None:
    tensors = load_file(adapter / TENSORS)
    save_file(tensors | {"stray\x1b[31m": np.zeros(2, np.float32)}, adapter / TENSORS)
    report = check(adapter, config_only, code=1)
    assert report["ok"] is False
    (unmatched,) = [row for row in report["tensors"] if row["target"] is None]
    assert unmatched["name"] == r"stray\u001b[31m"
    command = ["adapter", "check", str(adapter), "--base", str(config_only)]
    text = CliRunner().invoke(app, command).output
    assert "refused" in text
    assert "\x1b[31m" not in text
    assert "nothing" in text


def test_people_get_a_table(adapter: Path, config_only: Path) -> None:
    result = CliRunner().invoke(app, ["adapter", "check", str(adapter), "--base", str(config_only)])
    assert result.exit_code == 0
    for part in ("lora_A", "bytes:", "on device", "ok, no digest"):
        assert part in result.stdout


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda adapter, base: (adapter / TENSORS).unlink(), "is missing"),
        (lambda adapter, base: shutil.rmtree(adapter), "there is no folder"),
        (lambda adapter, base: (base / "config.json").unlink(), "is missing"),
        (lambda adapter, base: (base / "config.json").write_text("[]"), "is no object"),
        (lambda adapter, base: (base / "config.json").write_text("{"), "Expecting property name"),
        (lambda adapter, base: (base / "config.json").write_text("{}"), "model_type"),
    ],
)
def test_what_is_not_there_is_said(adapter: Path, config_only: Path, spoil: Any, said: str) -> None:
    spoil(adapter, config_only)
    assert said in check(adapter, config_only, code=1)
