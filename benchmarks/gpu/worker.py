"""The cases of one bench, in a process of their own: `python -m benchmarks.gpu.worker JOB LOG`.

JOB is a file with a `Job`. LOG gets a line for all that begins and ends, see `processes`:

    {"case": key, "operator": .., "shape": ..}      a case begins
    {"stage": name}                                 its own error, then its own time
    {"peer": name}                                  a peer of it begins
    {"row": row}                                    what is known of the case
    {"failed": key, "error": text}                  or that it failed
    {"done": key}

The process ends with `DEVICE_LOST` where a kernel took the device with it.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from benchmarks.gpu import bare_image, device, targets
from benchmarks.gpu.harness import Case, Ceilings, Row, Setting, measure
from benchmarks.gpu.processes import DEVICE_LOST, write_line

_KEPT_ERROR = 3000


@dataclass(frozen=True, slots=True)
class Job:
    """Which cases of a bench to run, and on what.

    module: the bench's. ceilings: None where all runs once and nothing is timed. only_targets: the
    cases that the targets need, and no others. rows: those that there are, by key; cases whose rows
    lack nothing are not run. skipped: nor are these. last: these come after the others.
    """

    module: str
    setting: Setting
    ceilings: Ceilings | None
    part: tuple[int, int] = (1, 1)
    only_targets: bool = False
    rows: Mapping[str, Row] = field(default_factory=dict)
    skipped: Sequence[str] = ()
    last: Sequence[str] = ()

    @property
    def bench(self) -> str:
        return self.module.rpartition(".")[2]

    def to_json(self) -> str:
        setting = {
            "device": str(self.setting.device),
            "dtype": str(self.setting.dtype).removeprefix("torch."),
            "is_tiny": self.setting.is_tiny,
            "peers": None if self.setting.peers is None else str(self.setting.peers),
        }
        ceilings = None if self.ceilings is None else asdict(self.ceilings)
        rows = {key: asdict(row) for key, row in self.rows.items()}
        return json.dumps(
            {
                "module": self.module, "setting": setting, "ceilings": ceilings, "rows": rows,
                "part": self.part, "only_targets": self.only_targets,
                "skipped": list(self.skipped), "last": list(self.last),
            }
        )  # fmt: skip

    @classmethod
    def from_json(cls, text: str) -> Job:
        raw: dict[str, Any] = json.loads(text)
        setting = raw.pop("setting")
        return cls(
            setting=Setting(
                torch.device(setting["device"]),
                getattr(torch, setting["dtype"]),
                setting["is_tiny"],
                None if setting["peers"] is None else Path(setting["peers"]),
            ),
            ceilings=None if raw["ceilings"] is None else Ceilings(**raw.pop("ceilings")),
            rows={key: Row.from_json(row) for key, row in raw.pop("rows").items()},
            part=(raw["part"][0], raw["part"][1]),
            **{key: raw[key] for key in ("module", "only_targets", "skipped", "last")},
        )


def cases_of(job: Job) -> Iterator[Case]:
    """A part is every n-th case of the bench, so that parts take about as long as each other."""
    k, n = job.part
    all_cases = importlib.import_module(job.module).cases(job.setting)
    mine = [case for number, case in enumerate(all_cases) if number % n == k - 1]
    left = [case for case in mine if not _is_left_out(job, case)]
    return iter(sorted(left, key=lambda case: case.key in job.last))


def _is_left_out(job: Job, case: Case) -> bool:
    if job.only_targets and not targets.is_needed(job.bench, case.operator, case.shape):
        return True
    row = job.rows.get(case.key)
    is_done = row is not None and {*case.peers} <= {*row.peer_us, *row.failures, *row.ran}
    return is_done or case.key in job.skipped


def run(job: Job, log: Path) -> int:
    """The exit status."""
    for case in cases_of(job):
        write_line(log, case=case.key, operator=case.operator, shape=dict(case.shape))
        try:
            for row in measure(
                job.bench, case, job.setting.dtype, job.ceilings, job.rows.get(case.key),
                on_stage=lambda name: write_line(log, stage=name),
                on_peer=lambda name: write_line(log, peer=name),
            ):  # fmt: skip
                write_line(log, row=asdict(row))
                if row.failures and device.is_lost():
                    return DEVICE_LOST
        except Exception:  # the other cases go on; the log has why this one does not
            write_line(log, failed=case.key, error=traceback.format_exc()[-_KEPT_ERROR:])
            if device.is_lost():
                return DEVICE_LOST
        else:
            write_line(log, done=case.key)
    return 0


def main(arguments: Sequence[str]) -> int:
    job_file, log = map(Path, arguments)
    job = Job.from_json(job_file.read_text(encoding="utf-8"))
    if job.setting.is_tiny:
        bare_image.install()
    return run(job, log)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
