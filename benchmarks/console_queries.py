"""How long the console's queries take with a million usage rows in the table.

Half of the rows are of one tenant, who asks; they are spread over 30 days and rolled up as the
server does it, but for the newest. Each query is a request through the whole application, without
a network. PostgreSQL is measured where WEFT_DATABASE_URL names an empty database, else SQLite.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
from benchmarks.instant_engine import InstantEngine
from benchmarks.report import print_table, say, settings, write_json
from sqlalchemy import create_engine, text

from weft.app import create_app
from weft.audit.models import AuditEntry
from weft.db.database import Database
from weft.db.ids import create_id
from weft.db.schema import prepare
from weft.db.urls import database_url, sqlite_url, sync_url
from weft.demo.tokens import write_tokenizer
from weft.registry.models import Adapter
from weft.server.http import keep_startup_from_collector
from weft.settings import ServerSettings
from weft.tenancy.models import Project, Tenant
from weft.tokenizer import BaseTokenizer
from weft.usage.models import Replica
from weft.usage.rollups import roll_up

GOAL_P99_MS = 50.0
NUM_DAYS, DAY_S = 30, 86_400
LARGE, NUM_SMALL_TENANTS = "large", 50
NUM_OTHERS = 2_000  # audit entries, adapters and projects of the tenant who asks
NUM_NEWEST = 500  # events that no rollup holds yet
# half of the events are the first tenant's; eight projects, 40 keys and five models each
_EVENTS = """
WITH RECURSIVE numbers(n) AS (
    SELECT CAST(1 AS BIGINT) UNION ALL SELECT n + 1 FROM numbers WHERE n < :num_events
)
INSERT INTO usage_events (
    event_id, tenant_id, project_id, api_key_id, model, base_model, started_at_ms, ended_at_ms,
    recorded_at_ms, replica_id, replica_seq, prompt_tokens, cached_prompt_tokens,
    completion_tokens, finish_reason, outcome, amount_pico, schema_version
)
SELECT
    'event-' || n, CASE WHEN n % 2 = 0 THEN :tenant_id ELSE 'small-' || (n / 2 % :num_small) END,
    'project-' || (n / 2 % 8), 'key-' || (n / 2 % 40), 'model-' || (n / 2 % 5), 'base',
    :start_ms + n * :step_ms, :start_ms + n * :step_ms + 900, :start_ms + n * :step_ms + 901,
    'replica', n, 1000 + n % 500, 16 * (n % 20), 100 + n % 300, 'stop', 'ok', 1000000 + n % 5000, 2
FROM numbers
"""


async def fill(url: str, num_events: int) -> None:
    """All rows but keys."""
    end_ms = int(time.time() * 1000)
    step_ms = NUM_DAYS * DAY_S * 1000 // num_events
    database = Database(url)
    async with database.writing() as session:
        names = [LARGE, *(f"small-{number}" for number in range(NUM_SMALL_TENANTS))]
        session.add_all(Tenant(id=name, name=name, created_at=1) for name in names)
        await session.flush()
        for number in range(NUM_OTHERS):
            session.add_all(_others(number, end_ms))
        session.add(
            Replica(
                id="replica", kind="server", started_at_ms=end_ms, heartbeat_at_ms=end_ms,
                last_seq=num_events - NUM_NEWEST, rolled_up_seq=0, prompt_tokens=0,
                completion_tokens=0,
            )
        )  # fmt: skip
    with create_engine(sync_url(url)).begin() as connection:
        connection.execute(
            text(_EVENTS),
            {
                "tenant_id": LARGE, "num_events": num_events, "num_small": NUM_SMALL_TENANTS,
                "start_ms": end_ms - num_events * step_ms, "step_ms": step_ms,
            },
        )  # fmt: skip
    await roll_up(database)
    await database.close()
    with create_engine(sync_url(url), isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("UPDATE replicas SET last_seq = :n"), {"n": num_events})
        connection.execute(text("ANALYZE"))  # as PostgreSQL does by itself in time


def _others(number: int, at_ms: int) -> list[Any]:
    name = f"{number:06}"
    project = "default" if number == 0 else name
    return [
        Project(id=f"proj_{name}", tenant_id=LARGE, name=project, created_at=number),
        Adapter(
            id=f"adapter_{name}", tenant_id=LARGE, name=f"adapter-{name}", base_model="base",
            description="", tags={}, created_at=number,
        ),
        AuditEntry(
            id=create_id("audit"), chain=LARGE, number=10_000 + number, tenant_id=LARGE,
            recorded_at_ms=at_ms - number * 1000, type="adapter.created", actor_kind="operator",
            actor_id="operator", target_id=name, changes="{}", previous_hash="0" * 64,
            hash="0" * 64,
        ),
    ]  # fmt: skip


def queries(now: int) -> dict[str, str]:
    """Paths by what a person looks at."""
    usage, costs = "/v1/organization/usage/completions", "/v1/organization/costs"
    month, week, day = (now - days * DAY_S for days in (NUM_DAYS, 7, 1))
    return {
        "usage by day, a month": f"{usage}?start_time={month}&limit=31",
        "usage by day and model": f"{usage}?start_time={month}&limit=31&group_by[]=model",
        "usage by day and key": f"{usage}?start_time={month}&limit=31&group_by[]=api_key_id",
        "usage by hour, a week": f"{usage}?start_time={week}&bucket_width=1h&limit=168",
        "usage by minute, a day": f"{usage}?start_time={day}&bucket_width=1m&limit=1440",
        "costs by day, a month": f"{costs}?start_time={month}&limit=31",
        "costs by line item": f"{costs}?start_time={month}&limit=31&group_by[]=line_item",
        "usage of all time, by model": "/v1/usage",
        "audit log": "/v1/organization/audit_logs?limit=100",
        "projects": "/v1/organization/projects?limit=100",
        "users": "/v1/organization/users",
        "adapters": "/v1/adapters?limit=100",
        "tenants": "/admin/v1/tenants?limit=100",
    }


@asynccontextmanager
async def console(folder: Path, url: str) -> AsyncIterator[tuple[httpx2.AsyncClient, Path]]:
    """The application, at work, and the operator's key file."""
    write_tokenizer(folder)
    chosen = ServerSettings(base_dir=folder, data_dir=folder / "data", database_url=url)
    app = create_app(chosen, InstantEngine(), BaseTokenizer.from_dir(folder))
    transport = httpx2.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        keep_startup_from_collector()  # as the server does
        yield client, folder / "data" / "operator_key"


async def create_keys(client: httpx2.AsyncClient, operator: str) -> dict[str, str]:
    """The keys that may ask, by the beginning of the path."""

    async def create(kind: str, body: dict[str, Any]) -> str:
        path = f"/admin/v1/tenants/{LARGE}/{kind}"
        answer = await client.post(path, json=body, headers=_bearer(operator))
        answer.raise_for_status()
        return str(answer.json()["value"])

    admin, own = await create("admin_api_keys", {"name": "console"}), await create("keys", {})
    return {"/v1/organization": admin, "/v1": own, "/admin": operator}


def _bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def measure(url: str, num_events: int, num_runs: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as name:
        url = database_url(url or None, Path(name) / "weft.db")
        prepare(url)
        say(f"{num_events} usage events...")
        await fill(url, num_events)
        async with console(Path(name), url) as (client, operator_file):
            keys = await create_keys(client, operator_file.read_text().strip())
            rows = []
            for what, path in queries(int(time.time())).items():
                key = next(keys[start] for start in keys if path.startswith(start))
                rows.append({"query": what, **await _time(client, path, key, num_runs)})
            return rows


async def _time(
    client: httpx2.AsyncClient, path: str, key: str, num_runs: int
) -> dict[str, object]:
    times_ms = []
    for _ in range(num_runs):
        began = time.perf_counter()
        answer = await client.get(path, headers=_bearer(key))
        times_ms.append((time.perf_counter() - began) * 1000)
        answer.raise_for_status()
    times_ms.sort()
    return {
        "p50_ms": times_ms[num_runs // 2],
        "p99_ms": times_ms[min(num_runs - 1, num_runs * 99 // 100)],
        "num_bytes": len(answer.content),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--json-dir", type=Path)
    args = parser.parse_args()
    url = os.environ.get("WEFT_DATABASE_URL", "")
    kind = sync_url(url or sqlite_url(Path("weft.db"))).get_backend_name()
    rows = asyncio.run(measure(url, args.events, args.runs))
    print_table(
        f"console queries on {kind}, {args.events} usage events",
        list(rows[0]),
        [list(row.values()) for row in rows],
    )
    slow = [row["query"] for row in rows if row["p99_ms"] > GOAL_P99_MS]
    say(f"p99 above {GOAL_P99_MS:g} ms: {', '.join(slow) or 'none'}")
    chosen = settings(database=kind, num_events=args.events, num_runs=args.runs)
    write_json(args.json_dir, f"console_queries_{kind}", {"settings": chosen, "queries": rows})


if __name__ == "__main__":
    main()
