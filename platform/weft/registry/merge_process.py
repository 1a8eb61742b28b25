"""Runs one merge in a process of its own: PEFT's import alone would hold a server up for long."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys

from weft.errors import WeftError
from weft_adapters.merge import MergeJob, MergeRefusedError

logger = logging.getLogger("weft.registry")

_WORKER = "weft_adapters.merge_worker"
_MAX_LOGGED = 2000


async def run_merge(job: MergeJob, timeout_s: float) -> None:
    """The merged files are in the job's folder when this returns.

    MergeRefusedError where there is no merge; WeftError, with the reason in the log, where the
    process failed or took longer than `timeout_s`. Cancelled, it ends the process.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        _WORKER,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"},
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate(job.to_json().encode())
    except TimeoutError:
        logger.error("a merge took over %.0f s and was ended", timeout_s)
        raise WeftError("The adapters could not be merged in time.", code="merge_failed") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        said = err.decode(errors="replace")[-_MAX_LOGGED:]
        logger.error("a merge ended with exit code %s: %s", process.returncode, said)
        raise WeftError("The adapters could not be merged.", code="merge_failed")
    refusal = json.loads(out).get("refused")
    if refusal is not None:
        raise MergeRefusedError(refusal)
