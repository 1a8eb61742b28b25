"""`weft serve`: one process with gateway, control plane and engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weft.cli.base import check_base
from weft.cli.options import takes_settings
from weft.cli.output import err, fail
from weft.cli.progress import progress_bars
from weft.settings import MIB, ServerSettings, base_url

if TYPE_CHECKING:
    from weft.engine.worker import InProcessEngine
    from weft.messages import EngineInfo
    from weft.tenancy.secret_files import SecretFiles


@takes_settings
def serve(settings: ServerSettings) -> None:
    """Serve a base model and its tenants' adapters over an OpenAI-compatible API."""
    check_base(settings.base_dir)
    _run(settings)


def _run(settings: ServerSettings) -> None:
    from sqlalchemy.exc import DatabaseError

    from weft.app import create_app, prepare_data
    from weft.db.lock import DataFolderInUseError, lock_data_folder
    from weft.db.schema import SchemaMismatchError
    from weft.db.urls import database_url, redacted
    from weft.server import check_address, run_server
    from weft.tenancy.secret_files import SecretFileError
    from weft.tokenizer import BaseTokenizer

    try:
        # before the model is loaded: these need no minute to find out
        check_address(settings.host, settings.port)
        secrets = prepare_data(settings)
        with lock_data_folder(settings.data_dir):
            tokenizer = BaseTokenizer.from_dir(settings.base_dir)
        engine = _load(settings)
        try:
            app = create_app(settings, engine, tokenizer)
            _greet(settings, engine.info, secrets)
            run_server(app, settings)
        finally:
            engine.close()
    except (
        DataFolderInUseError,
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


def _load(settings: ServerSettings) -> InProcessEngine:
    from weft.app import build_engine

    with progress_bars() as report:
        return build_engine(settings, report)


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
        f"operator file   {secrets.operator_key_file}",
    ]
    if secrets.is_new:
        lines += [
            f"operator key    {secrets.operator_key}",
            "                for /admin/v1, shown this once; it is kept in the file",
        ]
    for line in lines:
        err.print(line, markup=False, soft_wrap=True)
