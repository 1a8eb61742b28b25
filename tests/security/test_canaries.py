"""Secrets and prompts are in no log line, error or metric, whatever happens (attack 39)."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Iterator

import pytest
from tests.gateway.site import Site
from tests.security.world import PASSWORD

from weft.telemetry.logs import create_formatter
from weft.tenancy.keys import create_key

PROMPT = "canary-prompt-7f3a"


@pytest.fixture(params=["json", "text"])
def log(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """All that the server logs, at every level, as it would write it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(create_formatter(request.param))
    logger = logging.getLogger("weft")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_39_no_secret_and_no_prompt_is_logged_or_said_back(
    site: Site, mallory: str, log: io.StringIO
) -> None:
    forged = str(create_key("live"))
    bodies = [
        {"model": "tiny", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 3},
        {"model": "tiny", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": -1},
        {"model": "nobody", "messages": [{"role": "user", "content": PROMPT}]},
    ]
    answers = []
    for body in bodies:
        for key in (mallory, forged, site.operator_key, f"{mallory}x"):
            answers.append(site.call(key, "POST", "/v1/chat/completions", json=body))
    site.engine.admission_error = RuntimeError(f"{PROMPT} was too much for {mallory}")
    try:
        failed = site.call(mallory, "POST", "/v1/chat/completions", json=bodies[0])
    finally:
        site.engine.admission_error = None
    assert failed.status_code == 500
    answers.append(failed)
    sign_in = {"email": "nobody@x.example", "password": PASSWORD}
    answers.append(site.http.post("/auth/v1/sign-in", json=sign_in, headers={"origin": site.url}))
    answers.append(site.http.get("/metrics"))
    answers.append(site.call(mallory, "GET", f"/v1/uploads/{forged}"))
    said = "\n".join(answer.text for answer in answers if answer.status_code != 200)
    written = log.getvalue()
    assert written.count("request") > 10, "the log was listened to"
    for secret in (mallory, forged, site.operator_key, PASSWORD):
        assert secret not in written
        assert secret.split("_")[-1] not in written
    # what the engine itself raises may quote a prompt: only its traceback says so, to the operator
    assert PROMPT not in said
    lines = [line for line in written.splitlines() if PROMPT in line]
    assert all("RuntimeError" in line or "exception" in line for line in lines)


def test_39_each_request_has_one_line_of_its_own(site: Site, mallory: str) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(create_formatter("json"))
    logger = logging.getLogger("weft.access")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        answer = site.call(mallory, "GET", "/v1/models", params={"secret": "in-a-query"})
        deadline = time.monotonic() + 5
        while not stream.getvalue().endswith("\n") and time.monotonic() < deadline:
            time.sleep(0.005)  # it is written once the answer has gone out
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    (line,) = stream.getvalue().splitlines()
    said = json.loads(line)
    assert said["request_id"] == answer.headers["x-request-id"]
    assert said["tenant_id"] == answer.headers["openai-organization"]
    assert (said["method"], said["path"], said["status"]) == ("GET", "/v1/models", 200)
    assert said["duration_ms"] >= 0
    assert "in-a-query" not in line
