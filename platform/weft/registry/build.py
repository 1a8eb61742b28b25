"""Puts the registry together for one server."""

from __future__ import annotations

import ipaddress

from weft.db.database import Database
from weft.messages import EngineClient
from weft.registry.addresses import HostRules
from weft.registry.buckets import S3Reader
from weft.registry.fetcher import Fetcher
from weft.registry.imports import Importer
from weft.registry.merging import MergeLimits, Merger
from weft.registry.parts import FolderPartStore, PartStore
from weft.registry.pinning import Pins
from weft.registry.publishing import Publisher
from weft.registry.purging import Purger
from weft.registry.quota import Quota
from weft.registry.reading import BucketRules, Reading
from weft.registry.runtime import Registry
from weft.registry.s3_parts import S3PartStore
from weft.registry.service import ServedBase
from weft.registry.smoke_check import SmokeCheck
from weft.registry.uploads import Uploads
from weft.settings import ServerSettings
from weft.smoke import PROMPT
from weft.storage.build import create_remote_store, create_store
from weft.storage.s3 import S3Location
from weft.tokenizer import BaseTokenizer
from weft_adapters.sites import BaseSpec
from weft_adapters.store import AdapterStore


def create_registry(
    settings: ServerSettings, engine: EngineClient, database: Database, tokenizer: BaseTokenizer
) -> Registry:
    """Intake and store of adapters for the engine's base."""
    info = engine.info
    store = create_store(settings)
    publisher = _create_publisher(settings, engine, database, store)
    smoke_check = SmokeCheck(
        database,
        engine,
        tokenizer.encode(PROMPT) if settings.smoke_check else None,
        settings.adapter_timeout_s,
    )
    publisher.on_ready = smoke_check.ask
    parts = _create_part_store(settings)
    folder, max_bytes, quota = settings.uploads_dir, settings.max_upload_bytes, publisher.quota
    uploads = Uploads(database, parts, folder, max_bytes, quota, settings.upload_ttl_s)
    fetcher = _create_fetcher(settings)
    reading = Reading(
        database,
        fetcher,
        settings.hub_host,
        BucketRules(settings.import_buckets),
        S3Reader(settings.s3_endpoint_url) if settings.import_buckets else None,
        uploads,
        parts,
        max_bytes,
    )

    async def digests_in_use() -> set[str]:
        stats = await engine.stats()
        return {*stats.running_adapters, *stats.waiting_adapters}

    limits = MergeLimits(max_bytes, wait_s=settings.adapter_timeout_s)
    return Registry(
        database=database,
        publisher=publisher,
        merger=Merger(database, publisher, store, folder, dict(info.hf_config), limits),
        importer=Importer(database, publisher, reading, folder, engine.prefetch_adapter),
        uploads=uploads,
        purger=Purger(database, store, digests_in_use, on_purged=engine.discard_adapter),
        fetcher=fetcher,
        remote_store=create_remote_store(settings),
        uploads_dir=folder,
        max_upload_bytes=max_bytes,
        retention_s=settings.version_retention_s,
        sweep_interval_s=settings.sweep_interval_s,
        pins=Pins(database, info.base_digest, engine.pin_adapters),
        engine=engine,
        read_config=store.read_config,
        smoke_check=smoke_check,
    )


def _create_publisher(
    settings: ServerSettings, engine: EngineClient, database: Database, store: AdapterStore
) -> Publisher:
    info = engine.info
    return Publisher(
        database,
        store,
        ServedBase(info.base_name, info.base_digest),
        BaseSpec.from_config(info.hf_config, info.base_digest),
        info.max_adapter_rank,
        Quota(
            max_versions=settings.max_versions_per_tenant,
            max_stored_bytes=settings.max_stored_bytes_per_tenant,
        ),
        info.dtype,
        settings.base_dir,
    )


def _create_fetcher(settings: ServerSettings) -> Fetcher:
    networks = tuple(ipaddress.ip_network(network) for network in settings.import_networks)
    return Fetcher(HostRules(settings.import_hosts, networks))


def _create_part_store(settings: ServerSettings) -> PartStore:
    if settings.adapter_store is None:
        return FolderPartStore(settings.uploads_dir / "parts")
    return S3PartStore(S3Location.parse(settings.adapter_store), settings.s3_endpoint_url)
