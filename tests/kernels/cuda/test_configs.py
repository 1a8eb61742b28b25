"""The table of launch configurations and the command that writes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from weft_kernels.cuda import configs, tune
from weft_kernels.cuda.configs import Config, Launch, OperatorConfigs, Shape, TuningSpace


def _config(warps: int) -> Config:
    return {"num_warps": warps, "num_stages": 1}


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of one operator, in the place of the one that ships."""
    path = tmp_path / "configs.json"
    entries = (
        ({"k": 16, "n": 1024}, _config(1)),
        ({"k": 16, "n": 4096}, _config(2)),
        ({"k": 64, "n": 4096}, _config(4)),
    )
    configs.write_table(path, {"op": OperatorConfigs(None, entries)})
    monkeypatch.setattr(configs, "PATH", path)
    return path


@pytest.mark.parametrize(
    ("k", "n", "warps"), [(16, 4096, 2), (64, 4096, 4), (0, 1, 1), (30, 2100, 2), (40, 9999, 4)]
)
def test_a_shape_gets_the_nearest_entry(table: Path, k: int, n: int, warps: int) -> None:
    assert configs.get_config("op", n=n, k=k)["num_warps"] == warps


def test_an_operator_without_entries_and_other_keys_are_refused(table: Path) -> None:
    with pytest.raises(KeyError, match="no configurations for the operator 'other'"):
        configs.get_config("other", k=1, n=1)
    with pytest.raises(ValueError, match="op is configured by k, n, not by k"):
        configs.get_config("op", k=1)


def test_what_is_written_is_what_is_read(table: Path) -> None:
    read = configs.read_table(table)
    configs.write_table(table, read)
    assert configs.read_table(table) == read


def test_the_table_that_ships_is_as_the_command_would_write_it(tmp_path: Path) -> None:
    path = tmp_path / "again.json"
    configs.write_table(path, configs.read_table(configs.PATH))
    assert path.read_text() == configs.PATH.read_text()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([], "op lists no configurations"),
        ([({"k": 1}, _config(1)), ({"n": 1}, _config(1))], "have different keys"),
        ([({"k": 1}, _config(1)), ({"k": 1}, _config(2))], "op lists a shape twice"),
        ([({"k": 1}, {"num_warps": 1})], "op needs num_warps and num_stages"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(
    raw: list[tuple[Shape, Config]], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "configs.json"
    entries = [{"shape": shape, "config": config} for shape, config in raw]
    path.write_text(json.dumps({"op": {"tuned_on": None, "configs": entries}}))
    with pytest.raises(ValueError, match=message):
        configs.read_table(path)


def test_tuning_keeps_the_fastest_candidate_of_every_shape() -> None:
    """With a measure that prefers as many warps as the shape says."""
    launched: list[tuple[int, int]] = []

    def create_launch(shape: Shape, device: torch.device) -> Callable[[Config], Launch]:
        return lambda config: lambda: launched.append((shape["k"], config["num_warps"]))

    def measure(launches: Sequence[Launch]) -> float:
        for launch in launches:
            launch()
        k, warps = launched[-1]
        return abs(k - warps)

    space = TuningSpace(
        "op", [{"k": 4}, {"k": 2}], lambda _: [_config(n) for n in (1, 2, 4)], create_launch
    )
    found = tune.tune(space, torch.device("cpu"), measure, "some device")
    assert found == OperatorConfigs("some device", (({"k": 4}, _config(4)), ({"k": 2}, _config(2))))
    assert len(launched) == 6


def test_every_operator_that_can_be_tuned_lists_the_shapes_it_ships(device: torch.device) -> None:
    spaces = tune.find_spaces()
    assert "rms_norm" in spaces
    for space in spaces.values():
        for shape in space.shapes:
            for config in space.candidates(shape):
                assert {"num_warps", "num_stages"} <= config.keys()
        shipped = configs.listed_configs(space.operator)
        assert [dict(shape) for shape, _ in shipped] == [dict(shape) for shape in space.shapes]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_the_command_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        tune.main(["--operator", "rms_norm"])
    assert exit_info.value.code == 2
    assert "there is no CUDA device here" in capsys.readouterr().err
