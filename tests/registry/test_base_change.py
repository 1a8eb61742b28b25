"""An adapter is bound to the base that it was uploaded for."""

from __future__ import annotations

from typing import Any

import pytest
from tests.tiny import BASE

from weft.errors import InvalidRequestError
from weft.registry import service
from weft.registry.service import ServedBase


async def test_after_a_change_of_base_old_uploads_are_refused(shelf: Any) -> None:
    acme = await shelf.tenant("acme", "bot")
    published = await shelf.publish(acme, "bot")
    async with shelf.database.reading() as session:
        resolved = await service.resolve_model(session, acme, shelf.base, "bot")
        assert (resolved.name, resolved.digest) == ("bot@v1", published.version.digest)
        with pytest.raises(InvalidRequestError) as caught:
            await service.resolve_model(session, acme, ServedBase(BASE, "sha256:new"), "bot")
    assert caught.value.code == "base_mismatch"
