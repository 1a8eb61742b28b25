"""The committed table of launch configurations, keyed by operator and shape.

`configs.json` beside this file lists, for every operator, shapes and what to launch them with:
block sizes, warps, stages, splits. No kernel tunes itself at run time: the first request would wait
for it, and what runs would differ from machine to machine. `python -m weft_kernels.cuda.tune`
writes the table on a GPU; `tuned_on` names the device, null where entries were chosen by hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import MappingProxyType

import torch

PATH = Path(__file__).with_name("configs.json")

Shape = Mapping[str, int]
Config = Mapping[str, int]
Launch = Callable[[], object]


@dataclass(frozen=True, slots=True)
class OperatorConfigs:
    """An operator's shapes and their configurations, in the order of the file."""

    tuned_on: str | None
    entries: tuple[tuple[Shape, Config], ...]


@dataclass(frozen=True, slots=True)
class TuningSpace:
    """What the tuning command may try for an operator; bound to `TUNING` in a module beside this.

    shapes: those to list in the table. candidates: the configurations to time for a shape.
    create_launch: random inputs for a shape on a device and a function that gives, for a
    configuration, a call that launches the operator once on them. It is called several times per
    shape, so that timing can go round several sets of inputs.
    """

    operator: str
    shapes: Sequence[Shape]
    candidates: Callable[[Shape], Sequence[Config]]
    create_launch: Callable[[Shape, torch.device], Callable[[Config], Launch]]


def get_config(operator: str, /, **shape: int) -> Config:
    """The configuration of the shape, or of the nearest that is listed.

    Nearest in the sum over the keys of |log2(asked) - log2(listed)|; of equals, the one listed
    first. KeyError for an operator without entries, ValueError for other keys than its own.
    """
    return _nearest(PATH, operator, tuple(shape.items()))


def listed_configs(operator: str) -> Sequence[tuple[Shape, Config]]:
    """Every shape and configuration that the table holds for the operator."""
    return _find(PATH, operator).entries


@lru_cache(maxsize=4096)
def _nearest(path: Path, operator: str, shape: tuple[tuple[str, int], ...]) -> Config:
    entries = _find(path, operator).entries
    asked = dict(shape)
    keys = entries[0][0].keys()
    if asked.keys() != keys:
        raise ValueError(
            f"{operator} is configured by {', '.join(keys)}, not by {', '.join(asked) or 'nothing'}"
        )
    return min(entries, key=lambda entry: _distance(asked, entry[0]))[1]


def _distance(asked: Shape, listed: Shape) -> float:
    # a size of 0 is as far from 2 as 1 is
    return sum(
        abs(math.log2(max(asked[key], 1)) - math.log2(max(listed[key], 1))) for key in listed
    )


def _find(path: Path, operator: str) -> OperatorConfigs:
    table = _table(path)
    if operator not in table:
        raise KeyError(f"{path.name} has no configurations for the operator {operator!r}")
    return table[operator]


@cache
def _table(path: Path) -> Mapping[str, OperatorConfigs]:
    return read_table(path)


def read_table(path: Path) -> dict[str, OperatorConfigs]:
    """ValueError, naming the operator, for an entry that cannot be used."""
    table = {}
    for operator, raw in json.loads(path.read_text(encoding="utf-8")).items():
        entries = tuple(
            (MappingProxyType(entry["shape"]), MappingProxyType(entry["config"]))
            for entry in raw["configs"]
        )
        if not entries:
            raise ValueError(f"{path.name}: {operator} lists no configurations")
        if len({frozenset(shape) for shape, _ in entries}) > 1:
            raise ValueError(f"{path.name}: the shapes of {operator} have different keys")
        if len({frozenset(shape.items()) for shape, _ in entries}) < len(entries):
            raise ValueError(f"{path.name}: {operator} lists a shape twice")
        for _, config in entries:
            if not {"num_warps", "num_stages"} <= config.keys():
                raise ValueError(f"{path.name}: {operator} needs num_warps and num_stages")
        table[operator] = OperatorConfigs(raw["tuned_on"], entries)
    return table


def write_table(path: Path, table: Mapping[str, OperatorConfigs]) -> None:
    """One line an entry, so that a change of one is a change of one line."""
    blocks = []
    for operator, configs in table.items():
        lines = [
            f"      {json.dumps({'shape': dict(shape), 'config': dict(config)})}"
            for shape, config in configs.entries
        ]
        blocks.append(
            f"  {json.dumps(operator)}: {{\n"
            f'    "tuned_on": {json.dumps(configs.tuned_on)},\n'
            f'    "configs": [\n' + ",\n".join(lines) + "\n    ]\n  }"
        )
    path.write_text("{\n" + ",\n".join(blocks) + "\n}\n", encoding="utf-8")
