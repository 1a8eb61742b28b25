"""A body that would cost more than it weighs is told from one that is only large."""

from __future__ import annotations

import json
import time

import pytest

from weft.gateway.json_bounds import MAX_DEPTH, MAX_PARTS, find_excess


def test_what_people_send_is_within_bounds() -> None:
    messages = [{"role": "user", "content": 'x [[[{{{ " \\ }'} for _ in range(20_000)]
    assert find_excess(json.dumps({"messages": messages}).encode()) is None
    assert find_excess(json.dumps({"prompt": "[{" * 1_000_000}).encode()) is None
    assert find_excess(json.dumps({"prompt": list(range(500_000))}).encode()) is None
    assert find_excess(b"") is None


def test_depth_is_bounded_exactly() -> None:
    for depth, is_fine in ((MAX_DEPTH, True), (MAX_DEPTH + 1, False)):
        text = b"[" * depth + b"]" * depth
        assert (find_excess(text) is None) == is_fine
    assert find_excess(b'{"a":' * 100_000) is not None


def test_brackets_in_strings_do_not_count() -> None:
    inside = json.dumps(["[" * 1000, '\\"[' * 1000])
    assert find_excess(inside.encode()) is None


def test_parts_are_bounded() -> None:
    assert "more than" in str(find_excess(b"[" + b"[]," * MAX_PARTS + b"[]]"))
    bias = json.dumps({str(token): 1 for token in range(MAX_PARTS + 1)})
    assert find_excess(bias.encode()) is not None


@pytest.mark.parametrize(
    "text",
    [
        b'"' + b'\\"' * 2_000_000,  # a string that nothing ends
        b'"' * 4_000_001,
        b'["' + b"\\" * 4_000_001,
        b'"a' * 2_000_000,
        b"[" * 4_000_000,
        b"]" * 4_000_000 + b"[" * 70,
    ],
)
def test_no_text_is_slow(text: bytes) -> None:
    started_s = time.process_time()
    find_excess(text)
    assert time.process_time() - started_s < 2.0  # all in one pass; quadratic would take hours
