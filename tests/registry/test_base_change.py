"""An adapter is bound to the base that it was uploaded for."""

from __future__ import annotations

from pathlib import Path

import pytest

from weft.db.database import Database, sqlite_url
from weft.db.schema import prepare
from weft.db.scope import TenantOwner
from weft.errors import InvalidRequestError
from weft.registry import service
from weft.registry.service import ServedBase
from weft.tenancy.service import create_tenant
from weft_adapters.validation import ValidationReport


async def test_after_a_change_of_base_old_uploads_are_refused(tmp_path: Path) -> None:
    prepare(sqlite_url(tmp_path / "weft.db", driver="sqlite"))
    database = Database(sqlite_url(tmp_path / "weft.db"))
    old, new = ServedBase("tiny", "sha256:old"), ServedBase("tiny", "sha256:new")
    report = ValidationReport(ok=True, digest="sha256:adapter", ranks=(4,), num_bytes=9)
    async with database.writing() as session:
        owner = TenantOwner((await create_tenant(session, "acme")).id)
        await service.create_adapter(
            session, owner, old, name="bot", base_model="tiny", description="", tags={}
        )
        await service.add_version(session, owner, old, "bot", report)
    async with database.reading() as session:
        resolved = await service.resolve_model(session, owner, old, "bot")
        assert (resolved.name, resolved.digest) == ("bot@v1", "sha256:adapter")
        with pytest.raises(InvalidRequestError) as caught:
            await service.resolve_model(session, owner, new, "bot")
    assert caught.value.code == "base_mismatch"
    await database.close()
