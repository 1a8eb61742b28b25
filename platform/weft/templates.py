"""Chat templates of adapters, rendered by a process that can be ended: see `template_worker`.

A template that took too long is refused for a while, so that one tenant's cannot hold up those of
the others again and again.
"""

from __future__ import annotations

import hashlib
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping

from weft.subprocesses import bare_environment

_TIMEOUT_S = 1.0
_START_TIMEOUT_S = 20.0
_REFUSED_S = 60.0
_WORKER = "weft.template_worker"
_CHUNK = 1 << 16

TOO_SLOW = "The adapter's chat template takes too long."


class TemplateRenderer:
    """`render` may be called by any thread; one is served at a time. `close` ends the process."""

    def __init__(self, timeout_s: float = _TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._refused_until: dict[bytes, float] = {}

    def render(self, template: str, variables: Mapping[str, object]) -> str:
        """ValueError, a sentence, where the template gives no text."""
        key = hashlib.sha256(template.encode()).digest()
        with self._lock:
            now = time.monotonic()
            self._refused_until = {k: t for k, t in self._refused_until.items() if t > now}
            if key in self._refused_until:
                raise ValueError(TOO_SLOW)
            if self._process is None or self._process.poll() is not None:
                self._start()
            try:
                answer = self._ask({"template": template, "variables": variables}, self._timeout_s)
            except TimeoutError:
                self._refused_until[key] = time.monotonic() + _REFUSED_S
                self._stop()
                raise ValueError(TOO_SLOW) from None
            except (OSError, EOFError):
                self._refused_until[key] = time.monotonic() + _REFUSED_S
                self._stop()
                raise ValueError("The adapter's chat template ended the process.") from None
        if "refused" in answer:
            raise ValueError(answer["refused"])
        return answer["text"]

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=bare_environment(),
        )
        # the imports are not the template's time
        self._ask({"template": "", "variables": {}}, _START_TIMEOUT_S)

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ask(self, job: Mapping[str, object], timeout_s: float) -> dict[str, str]:
        """TimeoutError; OSError or EOFError where the process has ended."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        deadline = time.monotonic() + timeout_s
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()
        answer = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not answer.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                chunk = os.read(process.stdout.fileno(), _CHUNK)
                if not chunk:
                    raise EOFError
                answer += chunk
        found: dict[str, str] = json.loads(answer)
        return found
