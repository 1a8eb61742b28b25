"""The validation report: what was found in an upload, for people and as JSON.

Holds and words what validation found; reads no file. Tensors are listed by patterns, so that the
37,000 of an adapter on 48 layers of 128 experts are a dozen rows, and yet each of them is listed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

from weft_adapters.faults import Fault, shown
from weft_adapters.header import Header, TensorInfo
from weft_adapters.patterned import (
    Axes,
    Pattern,
    Template,
    boxes_of,
    patterns_of,
    template_of,
)
from weft_adapters.tensors import TensorStats
from weft_adapters.uses import TensorUse

# what a report holds; hostile names could fill a database
MAX_ROWS = 1000


@dataclass(frozen=True, slots=True)
class TensorRow:
    """Tensors of one pattern, shape and dtype, and the weights of the base that they change.

    `role` and `target` are None for tensors that map to nothing. `rms`: the smallest and the
    largest root mean square of a tensor's values, None where values were not looked at.
    """

    name: str
    num_tensors: int
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    role: str | None
    target: str | None
    rms: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, object]:
        return {
            "name": self.name,
            "num_tensors": self.num_tensors,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "num_bytes": self.num_bytes,
            "role": self.role,
            "target": self.target,
            "rms": None if self.rms is None else list(self.rms),
        }


@dataclass(frozen=True, slots=True)
class Smoke:
    """The next token after a fixed prompt, with the adapter and without.

    `max_logprob_change` is the largest over the tokens that are likely for either; token ids are
    the most likely ones.
    """

    prompt_token_ids: tuple[int, ...]
    base_token_id: int
    adapter_token_id: int
    max_logprob_change: float

    def to_dict(self) -> dict[str, object]:
        return {
            "prompt_token_ids": list(self.prompt_token_ids),
            "base_token_id": self.base_token_id,
            "adapter_token_id": self.adapter_token_id,
            "max_logprob_change": self.max_logprob_change,
        }


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """`ok` exactly when there are no faults; then `digest` is set, unless the base's own digest was
    not known. `warnings` are sentences.

    `sites` counts the touched sites by projection; `missing` are patterns of what the config says
    is adapted and no tensor is there for; `tier_bytes` is what the adapter takes on each tier, at
    most: rows of a matrix that are the base's need no room. `vocab_size`: the adapter's tokens,
    where it has an embedding or a head of its own; `has_tokenizer`: or tokens, names or a chat
    template (`own_tokens`).
    """

    ok: bool
    digest: str | None = None
    faults: tuple[Fault, ...] = ()
    warnings: tuple[str, ...] = ()
    num_tensors: int = 0
    num_parameters: int = 0
    num_bytes: int = 0
    ranks: tuple[int, ...] = ()
    uses_experts: bool = False
    sites: dict[str, int] = field(default_factory=dict)
    tensors: tuple[TensorRow, ...] = ()
    num_rows_left_out: int = 0
    missing: tuple[str, ...] = ()
    tier_bytes: Mapping[str, int] = field(default_factory=dict)
    smoke: Smoke | None = None
    vocab_size: int | None = None
    has_tokenizer: bool = False

    @property
    def max_rank(self) -> int:
        return max(self.ranks, default=0)

    @property
    def unmatched(self) -> tuple[TensorRow, ...]:
        """The tensors that map to nothing."""
        return tuple(row for row in self.tensors if row.target is None)

    def to_dict(self) -> dict[str, object]:
        return {
            "ok": self.ok,
            "digest": self.digest,
            "faults": [fault.to_dict() for fault in self.faults],
            "warnings": list(self.warnings),
            "num_tensors": self.num_tensors,
            "num_parameters": self.num_parameters,
            "num_bytes": self.num_bytes,
            "ranks": list(self.ranks),
            "uses_experts": self.uses_experts,
            "sites": dict(self.sites),
            "tensors": [row.to_dict() for row in self.tensors],
            "num_rows_left_out": self.num_rows_left_out,
            "missing": list(self.missing),
            "tier_bytes": dict(self.tier_bytes),
            "vocab_size": self.vocab_size,
            "has_tokenizer": self.has_tokenizer,
            "smoke": None if self.smoke is None else self.smoke.to_dict(),
        }


def tensor_rows(
    header: Header, uses: Mapping[str, TensorUse], stats: Mapping[str, TensorStats]
) -> tuple[tuple[TensorRow, ...], int]:
    """Every tensor of the file, in exactly one row; those that map to nothing come first. Rows past
    a thousand are counted only."""
    groups: dict[_Kind, dict[tuple[int, ...], TensorInfo]] = {}
    for name, info in header.tensors.items():
        template, numbers = template_of(name)
        use = uses.get(name)
        role, target = (None, None) if use is None else (use.role, template_of(use.target)[0])
        kind = _Kind(template, role, target, info.dtype, info.shape)
        groups.setdefault(kind, {})[numbers] = info
    rows: list[TensorRow] = []
    num_left_out = 0
    for kind, infos in sorted(groups.items(), key=lambda group: group[0].target is not None):
        for axes in boxes_of(infos):
            if len(rows) < MAX_ROWS:
                rows.append(_row(kind, axes, [infos[p] for p in product(*axes)], stats))
            else:
                num_left_out += 1
    return tuple(rows), num_left_out


class _Kind(NamedTuple):
    """What the tensors of a row have in common."""

    template: Template
    role: str | None
    target: Template | None
    dtype: str
    shape: tuple[int, ...]


def _row(
    kind: _Kind, axes: Axes, infos: Sequence[TensorInfo], stats: Mapping[str, TensorStats]
) -> TensorRow:
    name = str(Pattern(kind.template, axes))
    target = None
    if kind.target is not None:
        # its numbers are the first ones of the name
        target = str(Pattern(kind.target, axes[: len(kind.target) - 1]))
    rms = [stats[info.name].rms for info in infos if info.name in stats]
    return TensorRow(
        # what maps to nothing may be any text
        shown(name)[1:-1] if target is None else name,
        len(infos),
        kind.dtype,
        kind.shape,
        sum(info.num_bytes for info in infos),
        kind.role,
        target,
        (min(rms), max(rms)) if rms else None,
    )


def listed(names: Iterable[str], limit: int = 5) -> str:
    """A few patterns of names, for a sentence."""
    texts = [str(pattern) for pattern in patterns_of(names)]
    more = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + more
