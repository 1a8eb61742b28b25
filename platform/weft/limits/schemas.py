"""Limits and budgets on the wire; a project's rate limits as OpenAI shows them."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from weft.db.lists import ListItem
from weft.errors import InvalidRequestError
from weft.limits.budgets import period_start
from weft.limits.models import Budget, Limit
from weft.limits.money import to_pico, to_usd
from weft.limits.service import MAX_LIMIT, QUOTAS, RATES
from weft.limits.subjects import Period, SubjectKind
from weft.tenancy.schemas import Body

Count = Annotated[int | None, Field(default=None, ge=0, le=MAX_LIMIT)]
Name = Annotated[str, Field(min_length=1, max_length=255)]
# a JSON number counts as it is written: pydantic takes the shortest digits that mean it
Amount = Annotated[Decimal, Field(ge=0, max_digits=24, decimal_places=12, strict=False)]


class SubjectRef(Body):
    """A tenant needs no id: there is one. Projects and adapters go by their names or their ids."""

    kind: SubjectKind
    id: Name | None = None


class LimitSet(Body):
    """Body of `PUT .../limits`: all limits of the subject; what is left out is none of its own."""

    subject: SubjectRef
    model: Name | None = None
    requests_per_minute: Count
    tokens_per_minute: Count
    max_running: Count
    max_adapters: Count
    max_versions: Count
    max_stored_bytes: Count

    @property
    def values(self) -> dict[str, int | None]:
        return {name: getattr(self, name) for name in (*RATES, *QUOTAS)}


class BudgetCreate(Body):
    """Body of `POST .../budgets`."""

    subject: SubjectRef
    period: Period
    limit_usd: Amount

    @property
    def limit_pico(self) -> int:
        return parse_amount(self.limit_usd)


class BudgetUpdate(Body):
    """Body of `POST .../budgets/{id}`."""

    limit_usd: Amount

    @property
    def limit_pico(self) -> int:
        return parse_amount(self.limit_usd)


def parse_amount(amount_usd: Decimal) -> int:
    """Picodollars; InvalidRequestError for what is no amount."""
    try:
        return to_pico(amount_usd)
    except ValueError as error:
        raise InvalidRequestError(f"Invalid 'limit_usd': {error}.", param="limit_usd") from error


class SubjectObject(BaseModel):
    """Whose it is."""

    kind: SubjectKind
    id: str


class LimitObject(ListItem):
    """A subject's limits; null: none of its own."""

    object: Literal["limit"] = "limit"
    tenant_id: str | None
    subject: SubjectObject
    model: str | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_running: int | None
    max_adapters: int | None
    max_versions: int | None
    max_stored_bytes: int | None
    created_at: int
    updated_at: int

    @classmethod
    def of(cls, row: Limit) -> LimitObject:
        return cls(
            id=row.id,
            tenant_id=row.tenant_id,
            subject=SubjectObject(kind=row.subject_kind, id=row.subject_id),
            model=row.model or None,
            **{name: getattr(row, name) for name in (*RATES, *QUOTAS)},
            created_at=row.created_at,
            updated_at=row.updated_at,
        )


class BudgetObject(ListItem):
    """Amounts are dollars in decimals, exact. `period_start`: of what was spent and is held."""

    object: Literal["budget"] = "budget"
    tenant_id: str | None
    subject: SubjectObject
    period: Period
    limit_usd: str
    spent_usd: str
    held_usd: str
    period_start: int
    created_at: int
    updated_at: int

    @classmethod
    def of(cls, row: Budget, now: int) -> BudgetObject:
        """As it stands at `now`: in a period without a request yet, nothing is spent."""
        start = max(row.period_start, period_start(row.period, now))
        is_current = start == row.period_start
        return cls(
            id=row.id,
            tenant_id=row.tenant_id,
            subject=SubjectObject(kind=row.subject_kind, id=row.subject_id),
            period=row.period,
            limit_usd=to_usd(row.limit_pico),
            spent_usd=to_usd(row.spent_pico if is_current else 0),
            held_usd=to_usd(row.held_pico if is_current else 0),
            period_start=start,
            created_at=row.created_at,
            updated_at=row.updated_at,
        )


class ProjectRateLimitUpdate(Body):
    """Body of OpenAI's `POST .../rate_limits/{id}`; of its fields, those that text has."""

    max_requests_per_1_minute: Count
    max_tokens_per_1_minute: Count


class ProjectRateLimitObject(ListItem):
    """OpenAI's `project.rate_limit`: a project's limits of one model."""

    object: Literal["project.rate_limit"] = "project.rate_limit"
    model: str
    max_requests_per_1_minute: int | None
    max_tokens_per_1_minute: int | None

    @classmethod
    def of(cls, row: Limit) -> ProjectRateLimitObject:
        return cls(
            id=rate_limit_id(row.model),
            model=row.model,
            max_requests_per_1_minute=row.requests_per_minute,
            max_tokens_per_1_minute=row.tokens_per_minute,
        )


_ID_PREFIX = "rl-"


def rate_limit_id(model: str) -> str:
    return _ID_PREFIX + model


def try_parse_rate_limit_id(text: str) -> str | None:
    """The model that it is of."""
    model = text.removeprefix(_ID_PREFIX)
    is_one = text.startswith(_ID_PREFIX) and 0 < len(model) <= 255
    return model if is_one else None
