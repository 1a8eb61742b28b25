"""Receives an upload: an adapter's files, streamed to a temporary folder under a cap.

Judges nothing about adapters.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from weft.registry.card import MAX_README_BYTES, README_NAME, Card, parse_card
from weft.registry.multipart import PartRule, write_parts
from weft_adapters.own_tokens import TOKENIZER_FILES
from weft_adapters.store import CONFIG_NAME, TENSORS_NAME

MAX_CONFIG_BYTES = 1024 * 1024
_TEMPORARY = "upload-"


@dataclass(frozen=True, slots=True)
class ReceivedAdapter:
    """The files of an upload; but for the config they are gone when the receiving context ends.
    `tokenizer_folder`: where those of a tokenizer are, if any came."""

    config_bytes: bytes
    tensors_path: Path
    card: Card = field(default_factory=dict)
    tokenizer_folder: Path | None = None

    @classmethod
    def in_folder(cls, folder: Path) -> ReceivedAdapter:
        """Blocks while the small files are read."""
        readme = folder / README_NAME
        return cls(
            (folder / CONFIG_NAME).read_bytes(),
            folder / TENSORS_NAME,
            parse_card(readme.read_bytes()) if readme.exists() else {},
            folder if any((folder / name).is_file() for name in TOKENIZER_FILES) else None,
        )

    def sha256(self) -> str:
        """Of the files' names and bytes, in the order of the names; blocks."""
        digest = hashlib.sha256()
        for path in sorted(self.tensors_path.parent.iterdir()):
            with path.open("rb") as file:
                of_file = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.name} {of_file}\n".encode())
        return digest.hexdigest()


def part_rules(max_bytes: int) -> dict[str, PartRule]:
    """The files of an adapter; `max_bytes` is for its tensors."""
    return {
        CONFIG_NAME: PartRule(min(MAX_CONFIG_BYTES, max_bytes)),
        TENSORS_NAME: PartRule(max_bytes),
        README_NAME: PartRule(MAX_README_BYTES, is_required=False),
        **{
            name: PartRule(min(num_bytes, max_bytes), is_required=False)
            for name, num_bytes in TOKENIZER_FILES.items()
        },
    }


@asynccontextmanager
async def receive_adapter(
    content_type: str, chunks: AsyncIterator[bytes], folder: Path, max_bytes: int
) -> AsyncIterator[ReceivedAdapter]:
    """Read the body to its end; InvalidRequestError or PayloadTooLargeError for a bad one."""
    async with temporary_folder(folder) as temporary:
        await write_parts(content_type, chunks, temporary, part_rules(max_bytes))
        yield await asyncio.to_thread(ReceivedAdapter.in_folder, temporary)


@asynccontextmanager
async def temporary_folder(folder: Path) -> AsyncIterator[Path]:
    """A folder of its own for the files of one adapter, which a crash leaves to the sweep."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=folder))
    try:
        yield temporary
    finally:
        await asyncio.to_thread(shutil.rmtree, temporary)


def sweep_uploads(folder: Path) -> None:
    """Remove what uploads left when their process was killed; none may be running."""
    for left in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(left, ignore_errors=True)
