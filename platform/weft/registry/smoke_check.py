"""Runs the smoke comparison for versions that have become ready, one after another, and adds what
it shows to their reports.

It asks the engine on the platform's own account: nobody is billed. A version is served meanwhile;
until it was compared, its report says `"smoke": null`, also for good where the server ends before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from weft.db.database import Database
from weft.db.scope import Owner, TenantOwner
from weft.messages import EngineClient, EngineDrainingError, EngineRequest, TokenLogprobs
from weft.registry.models import AdapterVersion
from weft.registry.repository import RegistryRepository
from weft.smoke import SmokeFailedError, compare, create_requests, warnings_of

logger = logging.getLogger("weft.registry")

# versions that wait to be compared; those beyond are not
_MAX_WAITING = 1000


@dataclass(frozen=True, slots=True)
class _Waiting:
    owner: Owner
    version_id: str
    digest: str


class SmokeCheck:
    """`prompt_token_ids`: the fixed prompt, in the base's tokens. None where nothing is compared.

    adapter_timeout_s: how long an adapter may take to be loaded.
    """

    def __init__(
        self,
        database: Database,
        engine: EngineClient,
        prompt_token_ids: Sequence[int] | None,
        adapter_timeout_s: float | None,
    ) -> None:
        self._database, self._engine = database, engine
        self._prompt, self._adapter_timeout_s = prompt_token_ids, adapter_timeout_s
        self._waiting: asyncio.Queue[_Waiting] = asyncio.Queue(_MAX_WAITING)

    def ask(self, version: AdapterVersion) -> None:
        """Have a version that is ready compared when its turn comes."""
        if self._prompt is None or version.digest is None:
            return
        waiting = _Waiting(TenantOwner(version.tenant_id), version.id, version.digest)
        try:
            self._waiting.put_nowait(waiting)
        except asyncio.QueueFull:
            logger.warning("%s is not compared with the base: too many wait", version.id)

    async def run(self) -> None:
        """For ever."""
        while True:
            waiting = await self._waiting.get()
            try:
                await self._compare(waiting)
            except EngineDrainingError:
                return
            except Exception:  # the report goes without it, and the next version has its turn
                logger.exception("%s could not be compared with the base", waiting.version_id)

    async def _compare(self, waiting: _Waiting) -> None:
        assert self._prompt is not None, "nothing waits without a prompt"
        base, adapter = create_requests(self._prompt, waiting.digest)
        try:
            without = await self._first_token(base, "the base")
            with_adapter = await self._first_token(
                replace(adapter, adapter_timeout_s=self._adapter_timeout_s), "the adapter"
            )
        except SmokeFailedError as error:
            await self._note(waiting, None, [f"{error}."])
            return
        smoke = compare(self._prompt, without, with_adapter)
        await self._note(waiting, smoke.to_dict(), warnings_of(smoke))

    async def _first_token(self, request: EngineRequest, what: str) -> TokenLogprobs:
        # another version of the same bytes may be compared at once, by another process
        request = replace(request, request_id=f"{request.request_id}-{id(self):x}")
        found: list[TokenLogprobs] = []
        error = None
        async for output in await self._engine.generate(request):
            found += output.logprobs
            error = output.error or error
        if error is not None or not found:
            raise SmokeFailedError(what, error or "it gave no token")
        return found[0]

    async def _note(
        self, waiting: _Waiting, smoke: dict[str, object] | None, warnings: list[str]
    ) -> None:
        async with self._database.writing() as session:
            repository = RegistryRepository(session, waiting.owner)
            version = await repository.find_version_by_id(waiting.version_id)
            if version is not None:
                known = [w for w in warnings if w not in version.report["warnings"]]
                version.report = {
                    **version.report,
                    "smoke": smoke,
                    "warnings": [*version.report["warnings"], *known],
                }
