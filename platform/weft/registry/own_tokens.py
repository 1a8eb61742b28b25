"""Takes what is an adapter's own from the tokenizer files of an upload, and puts it in its config.

The files are read in a process of its own (`weft.tokenizer_intake`): megabytes of JSON would hold
the server's threads up, and they are a stranger's.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

from weft.errors import WeftError
from weft.registry.intake import ReceivedAdapter
from weft.subprocesses import bare_environment
from weft_adapters.config import parse_config
from weft_adapters.faults import AdapterFaultError
from weft_adapters.own_tokens import CONFIG_KEY

logger = logging.getLogger("weft.registry")

_WORKER = "weft.tokenizer_intake"
_TIMEOUT_S = 60.0
_MAX_LOGGED = 2000


class TokenizerRefusedError(Exception):
    """A sentence for the tenant."""


async def take_own_tokens(files: ReceivedAdapter, base_dir: Path) -> ReceivedAdapter:
    """The files with their tokenizer's own part in their config. TokenizerRefusedError."""
    try:
        config = parse_config(files.config_bytes)
    except AdapterFaultError:
        return files  # validation says why
    if config.own_tokens is not None:
        raise TokenizerRefusedError(
            f"The key {CONFIG_KEY} is the server's; send tokenizer.json and what goes with it."
        )
    if files.tokenizer_folder is None:
        return files
    own = await _run(base_dir, files.tokenizer_folder)
    if own is None:
        return files
    raw = {**json.loads(files.config_bytes), CONFIG_KEY: own}
    return replace(files, config_bytes=json.dumps(raw).encode())


async def _run(base_dir: Path, folder: Path) -> object:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        _WORKER,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=bare_environment(),
    )
    job = {"base_dir": str(base_dir.resolve()), "folder": str(folder.resolve())}
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            out, err = await process.communicate(json.dumps(job).encode())
    except TimeoutError:
        raise TokenizerRefusedError("The adapter's tokenizer takes too long.") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode is not None and process.returncode < 0:  # ended by its limits
        raise TokenizerRefusedError("The adapter's tokenizer takes too much time or memory.")
    if process.returncode != 0:
        said = err.decode(errors="replace")[-_MAX_LOGGED:]
        logger.error("reading a tokenizer ended with code %s: %s", process.returncode, said)
        raise WeftError("The adapter's tokenizer could not be read.", code="tokenizer_failed")
    answer = json.loads(out)
    if "refused" in answer:
        raise TokenizerRefusedError(answer["refused"])
    return answer["tokenizer"]
