"""Kills a process at one await or another of a request with a key, and repeats the request.

    python -m tests.idempotency.crash DATABASE_URL FOLDER NUM_RUNS SEED

Each run has a key of its own on each route, and is a process forked from this one, which has no
threads; so is what repeats its requests. Prints how many points there are, how many runs were
killed, and how many of their requests were answered from what was kept.
"""

from __future__ import annotations

import random
import signal
import sys
from pathlib import Path

from sqlalchemy import select, update
from tests.idempotency.shop import open_shop
from tests.registry.crash import Killing, in_child, run

from weft.db.models import Lease, SecretMark
from weft.db.scope import unscoped

PATHS = ("/things", "/orders", "/parcels")


async def play(url: str, number: int) -> None:
    async with open_shop(url) as shop:
        for path in PATHS:
            answer = await shop.post(path, f"key-{number}", name=f"run {number}")
            assert answer.status_code < 300, answer.text


async def repeat(url: str, number: int, folder: Path) -> None:
    """Every request is answered, and has had one effect."""
    async with open_shop(url) as shop:
        # whoever was killed has its key for a while; nobody need wait for it here
        async with shop.database.writing() as session:
            await session.execute(unscoped(update(Lease).values(expires_at_ms=0), "a test"))
        num_replayed = 0
        for path in PATHS:
            answer = await shop.post(path, f"key-{number}", name=f"run {number}")
            assert answer.status_code < 300, answer.text
            num_replayed += "idempotent-replayed" in answer.headers
            if path != "/orders":
                async with shop.database.reading() as session:
                    statement = select(SecretMark.purpose)
                    sold = (await session.scalars(unscoped(statement, "a test"))).all()
                assert answer.json()["id"] in sold, "the answer is of what is not there"
        marks = await shop.sold()
        assert marks.count(f"run {number}") == 1
        assert marks.count("parcel") == marks.count("order") == number + 1
    with (folder / "num_replayed").open("a") as file:
        file.write(f"{num_replayed}\n")


def main(url: str, folder: Path, num_runs: int, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)

    def count() -> None:
        run(play(url, 0))
        (folder / "num_stops").write_text(str(Killing.num_stops))

    if in_child(count) != 0:
        raise SystemExit("the requests failed without a kill")
    num_stops = int((folder / "num_stops").read_text())
    choose, num_killed = random.Random(seed), 0
    for number in range(1, num_runs + 1):
        point = choose.randrange(num_stops)
        code = in_child(lambda n=number, p=point: run(play(url, n), p))  # type: ignore[misc]
        if code not in (0, -signal.SIGKILL):
            raise SystemExit(f"the requests failed with {code} before point {point}")
        num_killed += code != 0
        if in_child(lambda n=number: run(repeat(url, n, folder))) != 0:  # type: ignore[misc]
            raise SystemExit(f"killed at {point}, the request that is repeated found the above")
    num_replayed = sum(int(line) for line in (folder / "num_replayed").read_text().split())
    print(num_stops, num_killed, num_replayed)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
