"""Builds an engine from its configuration: base, memory, adapter tiers, runner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from weft.engine.active import ActiveSet
from weft.engine.config import (
    EngineConfig,
    resolve_async_scheduling,
    resolve_device,
    resolve_dtype,
    resolve_kv_dtype,
    resolve_loader_share,
)
from weft.engine.engine import Engine
from weft.engine.grammar import Grammars
from weft.engine.kv_cache import create_kv_cache
from weft.engine.kv_memory import LentKVCache
from weft.engine.memory_plan import MemoryPlan, resolve_memory
from weft.engine.model.config import ModelConfig, create_model_config, read_hf_config
from weft.engine.model.decoder import Decoder, KVCache
from weft.engine.model.served_weights import ServedWeights
from weft.engine.model.weights import load_weights
from weft.engine.prefix import PrefixRoots
from weft.engine.runner import AdapterSet, Runner
from weft.messages import EngineInfo, EngineRequest, SamplingParams
from weft.tokenizer import BaseTokenizer
from weft_adapters.digest import base_digest
from weft_adapters.disk import DiskTier
from weft_adapters.fetch import DownloadedSource
from weft_adapters.pace import Pace
from weft_adapters.policy import create_policy
from weft_adapters.pool import PagePool
from weft_adapters.row_scales import RowScales
from weft_adapters.sites import BaseSpec
from weft_adapters.store import FolderStore, RemoteStore
from weft_adapters.tiers import AdapterTiers
from weft_kernels.backend import create_backend


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine with what its owner needs beside it."""

    engine: Engine
    decoder: Decoder
    info: EngineInfo
    memory: MemoryPlan
    pool: PagePool
    tiers: AdapterTiers
    tokenizer: BaseTokenizer
    base: BaseSpec


def build_engine(
    config: EngineConfig,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    on_adapter_change: Callable[[], None] = lambda: None,
    remote_store: RemoteStore | None = None,
) -> BuiltEngine:
    """Load everything; `on_progress(what, done, total)` feeds progress bars. Adapters come from
    `remote_store` where there is one, else from the folder that the configuration names.

    ValueError for an unsupported base or a memory budget that does not hold.
    """
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    raw = read_hf_config(config.base_dir)
    model = create_model_config(raw)
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    backend = create_backend(config.kernels, device, dtype)
    memory = resolve_memory(
        config,
        model,
        dtype,
        device,
        copies_adapters=not (backend.reads_pages or backend.reads_page_tables),
    )
    tokenizer = BaseTokenizer.from_dir(config.base_dir)
    on_progress("hash the base", 0, 1)
    digest = base_digest(config.base_dir)
    weights = load_weights(
        config.base_dir, model, dtype, device, backend,
        on_layer=lambda i: on_progress("load the base", i + 1, model.num_layers),
        quantization=config.quantization,
    )  # fmt: skip
    base = BaseSpec.from_config(raw, digest)
    pool = PagePool(
        base, config.adapter_bytes, dtype, device, keep_checksums=config.check_integrity,
        max_bytes=memory.max_adapter_bytes if memory.is_lent else None,
    )  # fmt: skip
    served = ServedWeights(weights, base, config.quantization)
    tiers = _create_tiers(config, remote_store, pool, base, served, on_adapter_change)
    kv_dtype = resolve_kv_dtype(config.kv_dtype, dtype)
    kv, host_kv, lent = _create_caches(config, model, memory, kv_dtype, device)
    if lent is not None:
        tiers.lend(lent, config.min_adapter_bytes or config.adapter_bytes)
    decoder = Decoder(model, weights, memory.max_model_len, backend)
    runner = _create_runner(config, decoder, kv, host_kv, base, pool, tokenizer.eos_token_ids)
    engine = Engine(
        config, runner, tiers, tokenizer,
        Grammars(lambda: tokenizer.vocabulary, model.vocab_size, tokenizer.eos_token_ids),
        is_async=resolve_async_scheduling(config.async_scheduling, device),
        memory=memory,
        vocab_size=model.vocab_size,
        eos_token_ids=tokenizer.eos_token_ids,
        prefix_roots=_prefix_roots(config, digest, dtype, kv_dtype),
    )  # fmt: skip
    info = EngineInfo(
        base_name=config.base_name or config.base_dir.resolve().name,
        base_digest=digest,
        hf_config=raw,
        max_model_len=memory.max_model_len,
        max_adapter_rank=config.max_adapter_rank,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        kernels=backend.name,
        quantization=config.quantization,
        kv_dtype=None if kv_dtype is dtype else str(kv_dtype).removeprefix("torch."),
        max_adapters_in_batch=config.max_adapters_in_batch,
        memory_bytes={
            "weights": weights.num_bytes, "kv": memory.kv_bytes, "adapters": memory.adapter_bytes,
        },
    )  # fmt: skip
    return BuiltEngine(engine, decoder, info, memory, pool, tiers, tokenizer, base)


def _create_tiers(
    config: EngineConfig, remote_store: RemoteStore | None, pool: PagePool, base: BaseSpec,
    served: ServedWeights, on_change: Callable[[], None],
) -> AdapterTiers:  # fmt: skip
    pace = Pace(resolve_loader_share(config.loader_cpu_share, pool.device))
    return AdapterTiers(
        _adapter_source(config, remote_store, pace), base, pool, config.host_adapter_bytes,
        on_change=on_change, policy=config.eviction_policy,
        num_downloads=config.num_downloads,
        num_readers=1 if pool.device.type == "cpu" else 4,
        pace=pace,
        base_weights=served,
        row_scales=RowScales(base.digest, served.weight_format, config.derived_dir),
    )  # fmt: skip


def _adapter_source(
    config: EngineConfig, remote_store: RemoteStore | None, pace: Pace
) -> FolderStore | DownloadedSource:
    if remote_store is None:
        return FolderStore(config.adapters_dir)
    if config.disk_dir is None:
        raise ValueError("disk_dir must name a folder where the store of adapters is remote")
    policy = create_policy(config.eviction_policy)
    disk = DiskTier(config.disk_dir, config.disk_adapter_bytes, policy)
    return DownloadedSource(remote_store, disk, pause=pace.pause)


def _create_caches(
    config: EngineConfig, model: ModelConfig, memory: MemoryPlan, kv_dtype: torch.dtype,
    device: torch.device,
) -> tuple[KVCache, KVCache | None, LentKVCache | None]:  # fmt: skip
    """The device's cache, the host's for requests that are swapped out, and the device's once more
    where it lends its memory."""
    shape = (config.block_size, model.num_kv_heads, model.head_dim)
    lent = None
    if memory.is_lent:
        lent = LentKVCache(model.num_layers, memory.max_blocks, memory.num_blocks, shape, kv_dtype)
        kv = lent.cache
    else:
        kv = create_kv_cache(model.num_layers, memory.num_blocks, shape, kv_dtype, device)
    if not memory.num_host_blocks:
        return kv, None, lent
    host_kv = create_kv_cache(
        model.num_layers, memory.num_host_blocks, shape, kv_dtype, torch.device("cpu"),
        is_pinned=device.type == "cuda",
    )  # fmt: skip
    return kv, host_kv, lent


def _create_runner(
    config: EngineConfig, decoder: Decoder, kv: KVCache, host_kv: KVCache | None, base: BaseSpec,
    pool: PagePool, eos_token_ids: frozenset[int],
) -> Runner:  # fmt: skip
    """The runner, and the form of the adapters, that go with the backend."""
    backend = decoder.backend
    if backend.reads_page_tables:
        from weft.engine.cuda_runner import CudaRunner
        from weft.engine.slot_adapters import SlotAdapters

        return CudaRunner(
            decoder, kv,
            SlotAdapters(base, pool, config.max_adapters_in_batch, config.max_adapter_rank),
            config.block_size, host_kv, eos_token_ids,
            max_rows=config.max_step_tokens,
            max_running=config.max_running,
            max_len=decoder.max_model_len,
        )  # fmt: skip
    adapters: AdapterSet
    if backend.reads_pages:
        from weft.engine.in_place import InPlaceAdapters

        adapters = InPlaceAdapters(base, pool)
    else:
        adapters = ActiveSet(base, pool, pool.dtype, config.max_adapters_in_batch)
    return Runner(decoder, kv, adapters, config.block_size, host_kv, eos_token_ids)


def _prefix_roots(
    config: EngineConfig, digest: str, dtype: torch.dtype, kv_dtype: torch.dtype
) -> PrefixRoots | None:
    """None without a prefix cache. Values depend on how the weights are rounded as well."""
    if not config.prefix_cache:
        return None
    computed = f"{dtype}, {config.quantization}" if config.quantization else str(dtype)
    kv_format = computed if kv_dtype is dtype else f"int8 of {computed}"
    return PrefixRoots(digest, kv_format, config.share_base_prefix)


def warm_up(engine: Engine) -> None:
    """Run one short request through prefill and decode, so that the first caller does not pay."""
    engine.warm_up()
    request = EngineRequest("warm-up", "", (0, 0, 0), SamplingParams(3, temperature=0))
    engine.add(request)
    while engine.has_work:
        engine.step()
    engine.counters = type(engine.counters)()
