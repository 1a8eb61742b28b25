"""Whom a limit or a budget is for, and whom a request counts for. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

SubjectKind = Literal["tenant", "project", "key", "adapter", "base"]
Period = Literal["day", "month", "total"]
PERIODS: tuple[Period, ...] = get_args(Period)


@dataclass(frozen=True, slots=True, order=True)
class Subject:
    """One holder of limits; `id` is the row's id, a base's is its name."""

    kind: SubjectKind
    id: str

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSubjects:
    """All that one request counts for."""

    tenant_id: str
    project_id: str
    key_id: str
    base: str
    adapter_id: str | None = None

    @property
    def all(self) -> tuple[Subject, ...]:
        subjects = (
            Subject("tenant", self.tenant_id),
            Subject("project", self.project_id),
            Subject("key", self.key_id),
            Subject("base", self.base),
        )
        if self.adapter_id is None:
            return subjects
        return (*subjects, Subject("adapter", self.adapter_id))
