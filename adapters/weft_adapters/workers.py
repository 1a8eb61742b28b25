"""Threads that work off versions by digest, fairly between tenants.

Knows neither stores nor tiers: what is to be done with a digest is its owner's.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable

logger = logging.getLogger("weft.adapters")


class CancelledError(Exception):
    """Nobody wants the work any more."""


class Cancellation:
    """How work learns that nobody wants it any more; `owner` may say so at any time."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        self._event.set()

    @property
    def is_cancelled(self) -> bool:
        return self._event.is_set()

    def check(self) -> None:
        """CancelledError once it is cancelled."""
        if self._event.is_set():
            raise CancelledError

    def sleep(self, seconds: float) -> None:
        """CancelledError at once when it is cancelled meanwhile."""
        if self._event.wait(seconds):
            raise CancelledError


Work = Callable[[str, Cancellation], None]


class FairWorkers:
    """At most `num_threads` digests are worked on at a time, each by one thread.

    Next is the tenant with the fewest under way, in turn among equals; of a tenant's, the first
    that came. While others could come, a tenant leaves one thread free for them. `work` gets the
    digest and how to learn that it was cancelled; it must not raise.
    """

    def __init__(self, name: str, num_threads: int, work: Work) -> None:
        self._work = work
        self._most_of_one_tenant = max(1, num_threads - 1)
        self._ready = threading.Condition()
        self._waiting: OrderedDict[str, OrderedDict[str, None]] = OrderedDict()  # by tenant
        self._tenant_of: dict[str, str] = {}
        self._running: dict[str, Cancellation] = {}
        self._num_running: dict[str, int] = {}
        self._is_closing = False
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{i}", daemon=True)
            for i in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def add(self, digest: str, tenant_id: str) -> None:
        """Have it worked on; nothing where it waits already."""
        with self._ready:
            if digest in self._tenant_of:
                return
            self._tenant_of[digest] = tenant_id
            self._waiting.setdefault(tenant_id, OrderedDict())[digest] = None
            self._ready.notify()

    def cancel(self, digest: str) -> bool:
        """True when it waited, and is not begun any more; what is under way is told and ends
        soon."""
        with self._ready:
            if digest in self._tenant_of:
                self._drop(digest)
                return True
            if digest in self._running:
                self._running[digest].cancel()
            return False

    def close(self) -> None:
        """Cancel everything and wait for the threads."""
        with self._ready:
            self._is_closing = True
            for cancellation in self._running.values():
                cancellation.cancel()
            self._ready.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            digest, tenant_id, cancellation = taken
            try:
                self._work(digest, cancellation)
            except Exception:  # a fault of ours must not end the thread
                logger.exception("the work on adapter %s failed", digest)
            with self._ready:
                del self._running[digest]
                self._num_running[tenant_id] -= 1
                if self._num_running[tenant_id] == 0:
                    del self._num_running[tenant_id]
                self._ready.notify_all()  # its tenant may have another begun

    def _take(self) -> tuple[str, str, Cancellation] | None:
        with self._ready:
            while not self._is_closing:
                digest = self._next()
                if digest is not None:
                    tenant_id = self._tenant_of[digest]
                    self._drop(digest)
                    if tenant_id in self._waiting:
                        self._waiting.move_to_end(tenant_id)
                    self._num_running[tenant_id] = self._num_running.get(tenant_id, 0) + 1
                    cancellation = self._running[digest] = Cancellation()
                    return digest, tenant_id, cancellation
                self._ready.wait()
            return None

    def _next(self) -> str | None:
        """The caller holds the lock."""
        under_way = {tenant: self._num_running.get(tenant, 0) for tenant in self._waiting}
        for tenant_id in sorted(under_way, key=under_way.__getitem__):  # stable: in turn
            if under_way[tenant_id] < self._most_of_one_tenant:
                for digest in self._waiting[tenant_id]:
                    if digest not in self._running:  # a cancelled one may not have ended yet
                        return digest
        return None

    def _drop(self, digest: str) -> None:
        tenant_id = self._tenant_of.pop(digest)
        del self._waiting[tenant_id][digest]
        if not self._waiting[tenant_id]:
            del self._waiting[tenant_id]
