"""Holds everything that is written about usage against everything else: no two may differ.

All checks read one moment of the database. What is still under way at that moment is told, not
counted as a difference.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.database import Database
from weft.limits.budgets import BudgetHold, holds_by_budget
from weft.usage.ledger import HOLDS, held_account
from weft.usage.rollups import DAY_S, HOUR_S, MINUTE_S
from weft.usage.spending_repository import SpendingRepository
from weft.usage.verification_repository import Counts, VerificationRepository

# of one check; there may be as many as there are events
MAX_SHOWN = 20
# of clocks: a budget is made by a process's, its period and its requests begin by the database's
_SLACK_S = 60


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What one check has found: `differences` are sentences, `note` is what it has looked at."""

    name: str
    note: str
    differences: tuple[str, ...] = ()

    @property
    def is_clean(self) -> bool:
        return not self.differences

    @classmethod
    def of(cls, name: str, note: str, differences: Iterable[str]) -> CheckResult:
        return cls(name, note, tuple(islice(differences, MAX_SHOWN)))


# reads the session that it is given
Check = Callable[[AsyncSession], Awaitable[CheckResult]]


async def verify(database: Database, more_checks: Sequence[Check] = ()) -> list[CheckResult]:
    """The results of all checks, `more_checks` last: those on what is made of usage elsewhere."""
    async with database.snapshot() as session:
        return [await check(session) for check in (*CHECKS, *more_checks)]


async def check_sequences(session: AsyncSession) -> CheckResult:
    """Each replica's events are numbered from 1 to its last number."""
    repository = VerificationRepository(session)
    found = {span.replica_id: span for span in await repository.list_spans()}
    differences = []
    replicas = await repository.list_replicas()
    for replica in replicas:
        span = found.pop(replica.id, None)
        num_events = 0 if span is None else span.num_events
        if num_events == replica.last_seq and (span is None or span.last_seq == num_events):
            continue
        gaps = ", ".join(
            f"{first} to {last}"
            for first, last in await repository.list_gaps(replica.id, replica.last_seq, MAX_SHOWN)
        )
        differences.append(
            f"replica {replica.id} has numbered {replica.last_seq} events, {num_events} are there; "
            f"missing: {gaps or 'none'}"
        )
    differences += [f"events of replica {replica_id}, which is unknown" for replica_id in found]
    num_events = sum(replica.last_seq for replica in replicas)
    return CheckResult.of("sequences", f"{num_events} events of {len(replicas)}", differences)


async def check_amounts(session: AsyncSession) -> CheckResult:
    """Each event costs what its tokens cost at its price."""
    wrong = await VerificationRepository(session).list_wrong_amounts(MAX_SHOWN)
    return CheckResult.of(
        "amounts",
        "tokens at their prices",
        (
            f"event {event_id} costs {amount} pico, its tokens at its price {expected}"
            for event_id, amount, expected in wrong
        ),
    )


async def check_ledger(session: AsyncSession) -> CheckResult:
    """Transactions add up to 0, and tenants owe what their events cost."""
    repository = VerificationRepository(session)
    differences = [
        f"ledger transaction {tx_id} adds up to {total}, not to 0"
        for tx_id, total in await repository.list_unbalanced(MAX_SHOWN)
    ]
    differences += [
        f"event {event_id} costs {amount} pico, the ledger says {charged}"
        for event_id, amount, charged in await repository.list_charged_otherwise(MAX_SHOWN)
    ]
    differences += [
        f"the ledger charges for event {event_id}, which is not there"
        for event_id in await repository.list_charged_for_nothing(MAX_SHOWN)
    ]
    num_tx = await repository.count_transactions()
    return CheckResult.of("ledger", f"{num_tx} transactions", differences)


async def check_holds(session: AsyncSession) -> CheckResult:
    """What is held is held for requests that are running, in the ledger and in budgets."""
    repository = VerificationRepository(session)
    pending = await repository.list_pending()
    expected: dict[str, int] = {}
    for row in pending:
        account = held_account(row.tenant_id)
        expected[account] = expected.get(account, 0) + row.hold_pico
        expected[HOLDS] = expected.get(HOLDS, 0) - row.hold_pico
    booked = await repository.sum_held()
    differences = [
        f"account {account} is at {booked.get(account, 0)} pico, running requests hold "
        f"{expected.get(account, 0)}"
        for account in sorted(expected.keys() | booked.keys())
        if expected.get(account, 0) != booked.get(account, 0)
    ]
    in_budgets = holds_by_budget(
        BudgetHold.from_json(value) for row in pending for value in row.budget_holds
    )
    for budget in await repository.list_budgets():
        held = in_budgets.get((budget.id, budget.period_start), 0)
        if budget.held_pico != held:
            differences.append(
                f"budget {budget.id} holds {budget.held_pico} pico, running requests hold {held}"
            )
    return CheckResult.of("holds", f"{len(pending)} running requests", differences)


async def check_budgets(session: AsyncSession) -> CheckResult:
    """What is spent of a budget is what its subject's requests have cost in its period.

    Requests count by when they began. Of those that began within `_SLACK_S` of the period's or the
    budget's own beginning it is not known on which side they were admitted: then spent is between
    the sums with and without them.
    """
    budgets = await VerificationRepository(session).list_budgets()
    differences, num_exact = [], 0
    for budget in budgets:
        first = max(budget.period_start, budget.created_at)
        most, least = await SpendingRepository(session).sum_since(
            budget, first - _SLACK_S, first + _SLACK_S
        )
        num_exact += most == least
        if not least <= budget.spent_pico <= most:
            cost = f"{most}" if most == least else f"{least} to {most}"
            differences.append(
                f"budget {budget.id} has spent {budget.spent_pico} pico, its events cost {cost}"
            )
    note = f"{num_exact} of {len(budgets)} to the picodollar, the others as bounds"
    return CheckResult.of("budgets", note, differences)


async def check_rollups(session: AsyncSession) -> CheckResult:
    """Minutes, hours and days add up to their events; those that are due are left out."""
    repository = VerificationRepository(session)
    events = await repository.sum_events()
    newer = await repository.list_due_hours()
    differences: list[str] = []
    for name, width_s, by_s in (
        ("minutes of hour", MINUTE_S, HOUR_S),
        ("hour", HOUR_S, HOUR_S),
        ("day", DAY_S, DAY_S),
    ):
        due = {start_at - start_at % by_s for start_at in newer}
        if width_s > MINUTE_S:
            due |= await repository.list_due_spans(width_s)
        of_rollups = await repository.sum_rollups(width_s, by_s)
        differences += _compare(name, due, _sum_by(events, by_s), of_rollups)
    return CheckResult.of(
        "rollups", f"{len(events)} hours of tenants, {len(newer)} hours are too new", differences
    )


def _sum_by(events: Mapping[tuple[int, str], Counts], by_s: int) -> dict[tuple[int, str], Counts]:
    found: dict[tuple[int, str], Counts] = {}
    for (hour_at, tenant_id), counts in events.items():
        key = (hour_at - hour_at % by_s, tenant_id)
        found[key] = found.get(key, Counts()) + counts
    return found


def _compare(
    name: str, due: Collection[int], of_events: Mapping[tuple[int, str], Counts],
    of_rollups: Mapping[tuple[int, str], Counts],
) -> Iterator[str]:  # fmt: skip
    for key in sorted(of_events.keys() | of_rollups.keys()):
        counted, added_up = of_events.get(key, Counts()), of_rollups.get(key, Counts())
        if key[0] not in due and counted != added_up:
            span = f"{name} {key[0]} of tenant {key[1]}"
            yield f"{span}: rollups have {added_up}, events {counted}"


async def check_engines(session: AsyncSession) -> CheckResult:
    """No more was billed than engines made; where nothing runs or was lost, exactly that.

    Of an engine that ended before it said how much it made, nothing more is known.
    """
    repository = VerificationRepository(session)
    differences, num_exact = [], 0
    engines = [row for row in await repository.list_replicas() if row.kind == "engine"]
    for engine in engines:
        assert engine.checkpoint_at_ms is not None
        made = (engine.prompt_tokens, engine.completion_tokens)
        billed = await repository.sum_of_engine(engine.id, engine.checkpoint_at_ms)
        tokens = (billed.prompt_tokens, billed.completion_tokens)
        is_exact = billed.is_all and not billed.num_lost
        num_exact += is_exact
        if (is_exact and tokens != made) or tokens[0] > made[0] or tokens[1] > made[1]:
            differences.append(
                f"engine {engine.id} made {made[0]} prompt and {made[1]} completion tokens, "
                f"events have {tokens[0]} and {tokens[1]}"
            )
    return CheckResult.of(
        "engines", f"{num_exact} of {len(engines)} to the token, the others as bounds", differences
    )


async def check_outbox(session: AsyncSession) -> CheckResult:
    """Messages are about events that are there; what waits is told."""
    repository = VerificationRepository(session)
    orphans = await repository.list_orphan_messages(MAX_SHOWN)
    waiting = await repository.count_undelivered()
    note = ", ".join(f"{count} for {sink}" for sink, count in sorted(waiting.items()))
    return CheckResult.of(
        "outbox",
        f"waiting: {note or 'nothing'}",
        (
            f"sink {sink} has a message about event {id_}, which is not there"
            for sink, id_ in orphans
        ),
    )


CHECKS: tuple[Check, ...] = (
    check_sequences,
    check_amounts,
    check_ledger,
    check_holds,
    check_budgets,
    check_rollups,
    check_engines,
    check_outbox,
)
