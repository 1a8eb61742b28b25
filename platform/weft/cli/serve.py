"""`weft serve`: one process with gateway, control plane and engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weft.cli.base import check_base
from weft.cli.output import DataOption, err, fail
from weft.cli.progress import progress_bars
from weft.settings import DEFAULT_DATA_DIR, MIB, ServerSettings, base_url

if TYPE_CHECKING:
    from weft.engine.worker import InProcessEngine
    from weft.messages import EngineInfo
    from weft.tenancy.secret_files import SecretFiles

_D = ServerSettings(base_dir=Path("."))  # every default is read off here
_AUTO = "Default: the engine's own."


def serve(
    base: Annotated[Path, typer.Option(help="Folder of the base model (Hugging Face layout).")],
    data: DataOption = DEFAULT_DATA_DIR,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = _D.host,
    port: Annotated[int, typer.Option(help="Port to listen on.")] = _D.port,
    base_name: Annotated[
        str | None, typer.Option(help="The base's name in requests. Default: its folder's.")
    ] = _D.base_name,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = _D.dtype,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = _D.device,
    quantization: Annotated[
        str | None, typer.Option(help="Round the weights to int8 or int4. Default: neither.")
    ] = _D.quantization,
    kv_dtype: Annotated[str, typer.Option(help="auto or int8: keys and values.")] = _D.kv_dtype,
    kernels: Annotated[
        str,
        typer.Option(help="auto, torch, native (C++ for float32 on a CPU) or triton (CUDA)."),
    ] = _D.kernels,
    async_scheduling: Annotated[
        bool | None,
        typer.Option(help="Schedule a step while the one before it runs. Default: on CUDA."),
    ] = _D.async_scheduling,
    max_model_len: Annotated[
        int | None, typer.Option(help="Prompt plus answer. Default: the base's limit.")
    ] = _D.max_model_len,
    max_running: Annotated[
        int | None, typer.Option(help=f"Requests in one batch. {_AUTO}")
    ] = _D.max_running,
    max_waiting: Annotated[
        int | None, typer.Option(help=f"Requests in the queue; more are refused. {_AUTO}")
    ] = _D.max_waiting,
    max_step_tokens: Annotated[
        int | None, typer.Option(help=f"Tokens in one step. {_AUTO}")
    ] = _D.max_step_tokens,
    max_running_per_tenant: Annotated[
        int | None, typer.Option(help="Requests of one tenant in one batch. Default: no cap.")
    ] = _D.max_running_per_tenant,
    max_adapters: Annotated[
        int | None, typer.Option(help=f"Adapters in one batch. {_AUTO}")
    ] = _D.max_adapters_in_batch,
    max_rank: Annotated[
        int | None, typer.Option(help=f"Highest rank of an adapter. {_AUTO}")
    ] = _D.max_adapter_rank,
    kv_mib: Annotated[int | None, typer.Option(help=f"MiB of KV cache. {_AUTO}")] = None,
    adapter_mib: Annotated[
        int | None, typer.Option(help=f"MiB for adapters on the device. {_AUTO}")
    ] = None,
    host_adapter_mib: Annotated[
        int | None, typer.Option(help=f"MiB for adapters in host memory. {_AUTO}")
    ] = None,
    disk_adapter_mib: Annotated[
        int | None, typer.Option(help=f"MiB on disk for adapters of a remote store. {_AUTO}")
    ] = None,
    eviction_policy: Annotated[
        str,
        typer.Option(help="Which adapters leave device, memory and disk first: cost, lru, lfu."),
    ] = _D.eviction_policy,
    adapter_store: Annotated[
        str | None, typer.Option(help="s3://bucket/prefix. Default: a folder below --data.")
    ] = _D.adapter_store,
    s3_endpoint: Annotated[
        str | None, typer.Option(help="URL of an S3 server that is not Amazon's.")
    ] = _D.s3_endpoint_url,
    swap_mib: Annotated[
        int | None, typer.Option(help="MiB of host memory for preempted requests. Default: none.")
    ] = None,
    prefix_cache: Annotated[
        bool, typer.Option(help="Keep prompts for later ones that begin alike.")
    ] = _D.prefix_cache,
    share_base_prefix: Annotated[
        bool,
        typer.Option(help="Share prompts to the base model itself between tenants, too."),
    ] = _D.share_base_prefix,
    threads: Annotated[
        int | None, typer.Option(help=f"CPU threads of the engine. {_AUTO}")
    ] = _D.num_threads,
    max_upload_mib: Annotated[
        int, typer.Option(help="MiB of one adapter's tensors.")
    ] = _D.max_upload_bytes // MIB,
    hub: Annotated[
        str, typer.Option(help="The host of the Hugging Face hub that versions are imported from.")
    ] = _D.hub_host,
    import_host: Annotated[
        list[str] | None,
        typer.Option(help="A host that imports may read from; '*.name': all below it."),
    ] = None,
    import_network: Annotated[
        list[str] | None,
        typer.Option(help="A network that is not public and may be imported from, as 10.1.0.0/16."),
    ] = None,
    import_bucket: Annotated[
        list[str] | None,
        typer.Option(help="bucket or bucket/folder; '{tenant}' in it: the tenant's id."),
    ] = None,
    retention_days: Annotated[
        float, typer.Option(help="Days for which the files of deleted versions are kept.")
    ] = _D.version_retention_s / 86400,
    queue_timeout: Annotated[
        float | None, typer.Option(help="Seconds that a request may wait to start. Default: any.")
    ] = _D.queue_timeout_s,
    adapter_timeout: Annotated[
        float | None,
        typer.Option(help="Seconds that a request may wait for its adapter to be loaded."),
    ] = _D.adapter_timeout_s,
    request_timeout: Annotated[
        float | None, typer.Option(help="Seconds that a request may take in all. Default: any.")
    ] = _D.request_timeout_s,
    drain_deadline: Annotated[
        float, typer.Option(help="Seconds that running requests get at shutdown.")
    ] = _D.drain_deadline_s,
    lorax_status_codes: Annotated[
        bool, typer.Option(help="/generate answers 424, as LoRAX, where an adapter is unknown.")
    ] = _D.lorax_status_codes,
) -> None:
    """Serve a base model and its tenants' adapters over an OpenAI-compatible API."""
    try:
        settings = ServerSettings(
            base_dir=base,
            data_dir=data,
            host=host,
            port=port,
            base_name=base_name,
            dtype=dtype,
            device=device,
            quantization=quantization,
            kv_dtype=kv_dtype,
            kernels=kernels,
            async_scheduling=async_scheduling,
            max_model_len=max_model_len,
            max_running=max_running,
            max_waiting=max_waiting,
            max_step_tokens=max_step_tokens,
            max_running_per_tenant=max_running_per_tenant,
            max_adapters_in_batch=max_adapters,
            max_adapter_rank=max_rank,
            kv_bytes=_bytes(kv_mib),
            adapter_bytes=_bytes(adapter_mib),
            host_adapter_bytes=_bytes(host_adapter_mib),
            disk_adapter_bytes=_bytes(disk_adapter_mib),
            eviction_policy=eviction_policy,
            adapter_store=adapter_store,
            s3_endpoint_url=s3_endpoint,
            swap_bytes=_bytes(swap_mib),
            prefix_cache=prefix_cache,
            share_base_prefix=share_base_prefix,
            num_threads=threads,
            max_upload_bytes=max_upload_mib * MIB,
            hub_host=hub,
            import_hosts=_D.import_hosts if import_host is None else tuple(import_host),
            import_networks=tuple(import_network or ()),
            import_buckets=tuple(import_bucket or ()),
            version_retention_s=retention_days * 86400,
            queue_timeout_s=queue_timeout,
            adapter_timeout_s=adapter_timeout,
            request_timeout_s=request_timeout,
            drain_deadline_s=drain_deadline,
            lorax_status_codes=lorax_status_codes,
        )
    except ValueError as error:
        raise fail(str(error)) from error
    check_base(base)
    _run(settings)


def _bytes(mib: int | None) -> int | None:
    return None if mib is None else mib * MIB


def _run(settings: ServerSettings) -> None:
    from sqlalchemy.exc import DatabaseError

    from weft.app import create_app, prepare_data
    from weft.db.lock import DataFolderInUseError, lock_data_folder
    from weft.db.schema import SchemaMismatchError
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
        raise fail(f"{settings.database_file} could not be used: {error.orig}") from error


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
