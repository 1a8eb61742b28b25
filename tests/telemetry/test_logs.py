"""Log lines: one record each, with their request, without secrets."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest

from weft.telemetry.logs import bind_request, create_formatter
from weft.tenancy.keys import create_key


def record(message: str, *args: object, **extra: Any) -> logging.LogRecord:
    logger = logging.getLogger("weft.test")
    exc_info = extra.pop("exc_info", None)
    return logger.makeRecord(
        "weft.test", logging.WARNING, "f", 1, message, args, exc_info, extra=extra
    )


def test_a_line_is_json_and_has_its_requests_id() -> None:
    bind_request("req_1")
    line = create_formatter("json").format(record("%d lost", 3, status=200, tenant_id="t"))
    said = json.loads(line)
    assert (said["event"], said["level"], said["logger"]) == ("3 lost", "warning", "weft.test")
    assert (said["request_id"], said["status"], said["tenant_id"]) == ("req_1", 200, "t")
    assert said["timestamp"].endswith("Z")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_secrets_and_line_breaks_do_not_reach_a_line(log_format: Any) -> None:
    key = str(create_key("live"))
    line = create_formatter(log_format).format(
        record("bad key %s\nweft: forged\x1b[31m", key, password="hunter2")
    )
    assert key not in line
    assert "hunter2" not in line
    assert "\n" not in line
    assert "\x1b" not in line


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_an_exception_is_told_without_its_secrets(log_format: Any) -> None:
    key = str(create_key("admin"))
    try:
        raise ValueError(f"no such key: {key}")
    except ValueError:
        line = create_formatter(log_format).format(record("failed", exc_info=sys.exc_info()))
    assert "ValueError: no such key: [redacted]" in line
    assert key not in line
