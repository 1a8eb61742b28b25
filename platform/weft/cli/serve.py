"""`weft serve`: one process with gateway, control plane and engine, or several."""

from __future__ import annotations

import asyncio
import logging
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from weft.cli.base import check_base
from weft.cli.options import takes_settings
from weft.cli.output import err, fail
from weft.cli.progress import progress_bars
from weft.settings import MIB, ServerSettings, base_url
from weft.settings.dangers import find_dangers

if TYPE_CHECKING:
    from weft.messages import EngineInfo
    from weft.tenancy.secret_files import SecretFiles

logger = logging.getLogger("weft.server")


@takes_settings
def serve(settings: ServerSettings) -> None:
    """Serve a base model and its tenants' adapters over an OpenAI-compatible API."""
    check_base(settings.base_dir)
    _run(settings)


def _run(settings: ServerSettings) -> None:
    from sqlalchemy.exc import DatabaseError

    from weft.app import prepare_data
    from weft.db.errors import DatabaseUnavailableError
    from weft.db.lock import DataFolderInUseError
    from weft.db.schema import SchemaMismatchError
    from weft.db.urls import database_url, redacted
    from weft.server.http import check_address
    from weft.telemetry.logs import set_up_logging
    from weft.tenancy.secret_files import SecretFileError

    set_up_logging(settings.log_format)
    try:
        # before the model is loaded: these need no minute to find out
        check_address(settings.host, settings.port)
        if settings.probes_at is not None:
            check_address(*settings.probes_at, option="--probe")
        secrets = prepare_data(settings)
        for danger in find_dangers(settings):
            logger.warning(danger)
        serve_it = _serve_alone if settings.num_workers == 1 else _serve_with_workers
        serve_it(settings, secrets)
    except (
        DataFolderInUseError,
        DatabaseUnavailableError,
        OSError,
        RuntimeError,
        SchemaMismatchError,
        SecretFileError,
        ValueError,
    ) as error:
        raise fail(str(error)) from error
    except DatabaseError as error:
        url = database_url(settings.database_url, settings.database_file)
        raise fail(f"{redacted(url)} could not be used: {error.orig}") from error


def _serve_alone(settings: ServerSettings, secrets: SecretFiles) -> None:
    """All in this process."""
    from weft.app import build_engine, create_app
    from weft.db.lock import lock_data_folder
    from weft.server.http import run_server
    from weft.tokenizer import BaseTokenizer

    with lock_data_folder(settings.data_dir):
        tokenizer = BaseTokenizer.from_dir(settings.base_dir)
    with progress_bars() as report:
        engine = build_engine(settings, report)
    try:
        app = create_app(settings, engine, tokenizer)
        _greet(settings, engine.info, secrets)
        run_server(app, settings)
    finally:
        engine.close()


def _serve_with_workers(settings: ServerSettings, secrets: SecretFiles) -> None:
    """This process starts and watches the others."""
    from weft.app import recover
    from weft.db.lock import lock_data_folder
    from weft.server.supervisor import supervise

    with lock_data_folder(settings.data_dir):
        asyncio.run(recover(settings))
        bars = ExitStack()
        report = bars.enter_context(progress_bars())

        def on_started(info: EngineInfo, port: int) -> None:
            bars.close()
            _greet(replace(settings, port=port), info, secrets)

        with bars:
            supervise(settings, report, on_started)


def _formats(info: EngineInfo) -> str:
    weights = f", weights {info.quantization}" if info.quantization else ""
    kv = f", KV {info.kv_dtype}" if info.kv_dtype else ""
    return f"{info.dtype}{weights}{kv} on {info.device}, {info.kernels} kernels"


def _greet(settings: ServerSettings, info: EngineInfo, secrets: SecretFiles) -> None:
    memory = ", ".join(f"{key} {size / MIB:.0f} MiB" for key, size in info.memory_bytes.items())
    lines = [
        f"model           {info.base_name}  ({_formats(info)})",
        f"max_model_len   {info.max_model_len}",
        f"memory          {memory}",
        f"data            {settings.data_dir}",
        f"listening on    {base_url(settings.host, settings.port)}",
        f"operator file   {secrets.operator_key_file or 'none: the environment holds the key'}",
    ]
    if settings.probes_at is not None:
        host, probe_port = settings.probes_at
        lines.append(f"probes on       {host}:{probe_port}")
    if secrets.is_new:
        lines += [
            f"operator key    {secrets.operator_key}",
            "                for /admin/v1, shown this once; it is kept in the file",
        ]
    for line in lines:
        err.print(line, markup=False, soft_wrap=True)
