"""A registry over a real database and folder store, without HTTP and engine."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from tests.tiny import BASE, BASE_DIGEST, HF_CONFIG, create_lora

from weft.db.database import Database
from weft.db.scope import TenantOwner
from weft.registry import service
from weft.registry.intake import ReceivedAdapter
from weft.registry.models import AdapterVersion
from weft.registry.publishing import Keep, Published, Publisher, keep_nothing
from weft.registry.purging import Purger
from weft.registry.quota import Quota
from weft.registry.service import ServedBase
from weft.tenancy.service import create_tenant
from weft_adapters.sites import BaseSpec
from weft_adapters.store import FolderStore

SPEC = BaseSpec.from_config(HF_CONFIG, BASE_DIGEST)


@dataclass
class Shelf:
    """Tenants, one store, and what publishes to it and purges it."""

    root: Path
    database: Database
    store: FolderStore
    quota: Quota = Quota()
    base: ServedBase = ServedBase(BASE, BASE_DIGEST)
    digests_in_use: set[str] = field(default_factory=set)
    purged: list[str] = field(default_factory=list)

    @property
    def publisher(self) -> Publisher:
        return Publisher(self.database, self.store, self.base, SPEC, 16, self.quota)

    @property
    def purger(self) -> Purger:
        async def digests_in_use() -> set[str]:
            return self.digests_in_use

        async def on_purged(digest: str) -> None:
            self.purged.append(digest)

        return Purger(self.database, self.store, digests_in_use, on_purged)

    async def tenant(self, name: str, *adapters: str) -> TenantOwner:
        async with self.database.writing() as session:
            owner = TenantOwner((await create_tenant(session, name)).id)
            for adapter in adapters:
                await service.create_adapter(
                    session, owner, self.base, name=adapter, base_model=BASE,
                    description="", tags={},
                )  # fmt: skip
            return owner

    def files(self, seed: int = 0, **options: int) -> ReceivedAdapter:
        folder = Path(tempfile.mkdtemp(dir=self.root))
        for name, data in create_lora(seed, **options).items():
            (folder / name).write_bytes(data)
        return ReceivedAdapter.in_folder(folder)

    async def publish(
        self, owner: TenantOwner, name: str, seed: int = 0, keep: Keep = keep_nothing
    ) -> Published:
        return await self.publisher.publish(owner, name, self.files(seed), keep)

    async def version(self, owner: TenantOwner, name: str, number: int) -> AdapterVersion:
        async with self.database.reading() as session:
            return (await service.get_version(session, owner, name, number))[1]

    async def delete_version(self, owner: TenantOwner, name: str, number: int) -> None:
        async with self.database.writing() as session:
            await service.delete_version(session, owner, name, number)

    async def delete_adapter(self, owner: TenantOwner, name: str) -> None:
        async with self.database.writing() as session:
            await service.delete_adapter(session, owner, name)
