"""`weft demo`, as `make demo` runs it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from weft.demo.stage import TENANTS

pytestmark = pytest.mark.slow


def test_the_demo_ends_in_success_and_shows_every_adapter_right() -> None:
    command = [sys.executable, "-m", "weft.cli", "demo", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    answers = {row["adapter"]: row["answer"] for row in result["answers"]}
    assert answers["shout"] == "WOLF APPLE TIGER"
    assert answers["extract"] == '{"name": "Ann", "age": 31, "city": "Oslo"}'
    assert answers.keys() == {None, *(name for names in TENANTS.values() for name in names)}
    assert [row["status"] for row in result["denied"]] == [404, 404]
    asked = {row["model"] for rows in result["usage"].values() for row in rows}
    assert len(asked) == len(answers)
