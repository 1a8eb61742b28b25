"""Puts the platform together: settings, database, engine and routes become one application.

`create_app` takes any `EngineClient`; `build_engine` makes the real one and is the only place that
needs torch, imported when it is called.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import Depends, FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.responses import JSONResponse

from weft.billing import endpoints as billing
from weft.billing import invoice_endpoints as invoices
from weft.billing import price_endpoints as prices
from weft.billing.exporting import Exporter
from weft.billing.sending import sending
from weft.billing.sent_verification import check_meter_events
from weft.billing.verification import check_invoices, check_periods
from weft.db.database import Database
from weft.db.lock import lock_data_folder
from weft.db.urls import database_url
from weft.gateway import budget_endpoints as budgets
from weft.gateway import endpoints as inference
from weft.gateway import limit_endpoints as limits
from weft.gateway import lorax, vllm_compat
from weft.gateway import probe_endpoints as probes
from weft.gateway.direct_routes import DirectRoutes
from weft.gateway.error_handlers import install_error_handlers
from weft.gateway.hosts import AllowedHosts
from weft.gateway.middleware import RequestContextMiddleware
from weft.gateway.openapi import describe
from weft.gateway.proxies import ForwardedClients, TrustedProxies
from weft.gateway.rate_limit_headers import RateLimitHeaders
from weft.gateway.request_guard import RequestGuard
from weft.gateway.runtime import Gateway
from weft.gateway.tracing import TracingMiddleware
from weft.limits.build import create_limiter
from weft.messages import EngineClient
from weft.registry import endpoints as adapters
from weft.registry import placement_endpoints as placements
from weft.registry import upload_endpoints as uploads
from weft.registry import version_endpoints as versions
from weft.registry.build import create_registry
from weft.registry.recovery import make_up_for_crash
from weft.registry.runtime import Registry
from weft.settings import EngineSettings, ServerSettings
from weft.storage.build import create_export_target, create_remote_store
from weft.telemetry.build import create_span_sender
from weft.tenancy import admin_key_endpoints as admin_keys
from weft.tenancy import audit_endpoints as audit
from weft.tenancy import endpoints as tenants
from weft.tenancy import member_endpoints as members
from weft.tenancy import oidc_endpoints as oidc
from weft.tenancy import oidc_provider_endpoints as oidc_providers
from weft.tenancy import organization_endpoints as organization
from weft.tenancy import session_endpoints as sessions
from weft.tenancy import user_endpoints as users
from weft.tenancy.auth import public
from weft.tenancy.authenticator import Authenticator
from weft.tenancy.build import create_sign_in
from weft.tenancy.installation import prepare_installation
from weft.tenancy.secret_files import SecretFiles
from weft.tenancy.sign_in import SignIn
from weft.tokenizer import BaseTokenizer
from weft.usage import endpoints as usage
from weft.usage import report_endpoints as reports
from weft.usage.metering import Metering
from weft.usage.sinks import create_sinks

if TYPE_CHECKING:
    from weft.engine.worker import InProcessEngine
    from weft.telemetry.spans import SpanSender


def prepare_data(settings: ServerSettings) -> SecretFiles:
    """Make a new data folder ready; as `prepare_installation`, with its errors."""
    url = database_url(settings.database_url, settings.database_file)
    return prepare_installation(settings.data_dir, url)


# every route there is
_ROUTES = (
    inference,
    lorax,
    vllm_compat,
    adapters,
    versions,
    placements,
    uploads,
    usage,
    reports,
    invoices,
    prices,
    billing,
    limits,
    budgets,
    tenants,
    audit,
    members,
    users,
    sessions,
    oidc_providers,
    oidc,
    organization,
    admin_keys,
    probes,
)


# the framework's own, which a variable turns on: its logs and spans quote bodies and URLs
_NO_TELEMETRY = TelemetryConfig(
    tracing=False, metrics=False, logs=False, operation_spans=False, auto_configure=False
)


@dataclasses.dataclass(frozen=True, slots=True)
class Services:
    """What the routes work with; each is found by its name in the app's state."""

    database: Database
    metering: Metering
    gateway: Gateway
    registry: Registry
    authenticator: Authenticator
    sign_in: SignIn
    exporter: Exporter
    spans: SpanSender | None
    idempotency_secret: bytes = dataclasses.field(repr=False)


def create_services(
    settings: ServerSettings, engine: EngineClient, tokenizer: BaseTokenizer
) -> Services:
    """On a data folder that is made ready where it is new."""
    secrets = prepare_data(settings)
    database = Database(database_url(settings.database_url, settings.database_file))
    registry = create_registry(settings, engine, database, tokenizer)
    metering = Metering(
        database,
        engine,
        create_sinks(settings.usage_sink_targets, settings.usage_sink_token),
        is_alone=settings.database_url is None,
        more_checks=(check_invoices, check_periods, check_meter_events),
    )
    gateway = Gateway(
        settings,
        engine,
        tokenizer,
        database,
        create_limiter(settings.redis_url),
        metering.recorder,
        registry.merger,
        registry.read_config,
    )
    gateway.metrics.include(metering.metrics)
    authenticator = Authenticator(database, secrets.pepper, secrets.operator_key)
    sign_in = create_sign_in(settings, database, secrets)
    exporter = Exporter(database, create_export_target(settings))
    spans = create_span_sender(settings.otlp_endpoint)
    return Services(
        database,
        metering,
        gateway,
        registry,
        authenticator,
        sign_in,
        exporter,
        spans,
        secrets.derive("idempotency"),
    )


@asynccontextmanager
async def running(settings: ServerSettings, services: Services) -> AsyncIterator[None]:
    """The services at work; at the end all is closed.

    A process that serves alone holds the data folder and makes up for a crash; where there are
    several, that is their supervisor's.
    """
    with ExitStack() as stack:
        if settings.num_workers == 1:
            stack.enter_context(lock_data_folder(settings.data_dir))
            await make_up_for_crash(services.database, settings.uploads_dir)
        async with services.metering.running(), services.gateway.admission.running():
            async with (
                services.registry.running(),
                services.sign_in.upkeep.running(),
                services.authenticator.running(),
                sending(settings, services.database),
            ):
                yield
            await services.gateway.close()
        await services.database.close()
        if services.spans is not None:
            await asyncio.to_thread(services.spans.close)


async def recover(settings: ServerSettings) -> None:
    """Make up for a crash, before any of several processes works on the data."""
    database = Database(database_url(settings.database_url, settings.database_file))
    try:
        await make_up_for_crash(database, settings.uploads_dir)
    finally:
        await database.close()


def create_app(settings: ServerSettings, engine: EngineClient, tokenizer: BaseTokenizer) -> FastAPI:
    """The application over an engine that the caller owns, starts and closes."""
    services = create_services(settings, engine, tokenizer)
    # the routers' own routes: `include_router` would derive each of them anew at the first request,
    # which took 0.2 s, and look into every router before it at every request
    app = FastAPI(
        routes=[route for module in _ROUTES for route in module.router.routes],
        title="Weft",
        version="0.1.0",
        lifespan=lambda _app: running(settings, services),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        telemetry=_NO_TELEMETRY,
    )
    for field in dataclasses.fields(services):
        setattr(app.state, field.name, getattr(services, field.name))
    install_error_handlers(app)
    # each added one is around those before it
    app.add_middleware(DirectRoutes, routes=app.routes, endpoints=inference.DIRECT_ENDPOINTS)
    app.add_middleware(
        RequestGuard,
        hosts=AllowedHosts.of(settings.allowed_hosts, settings.host, settings.public_host),
        max_body_bytes=settings.max_body_bytes,
        body_timeout_s=settings.body_timeout_s,
    )
    app.add_middleware(RequestContextMiddleware)
    app.add_middleware(RateLimitHeaders)
    if services.spans is not None:
        app.add_middleware(TracingMiddleware, sender=services.spans)
    if settings.trusted_proxies:
        app.add_middleware(ForwardedClients, proxies=TrustedProxies(settings.trusted_proxies))

    @app.get("/openapi.json", include_in_schema=False, dependencies=[Depends(public)])
    async def openapi() -> JSONResponse:
        return JSONResponse(describe(app))

    return app


def build_engine(
    settings: ServerSettings,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> InProcessEngine:
    """Load the base and start the engine's thread; ValueError when it does not fit or is unknown.

    What the settings leave open is the engine's own default.
    """
    from weft.engine.config import EngineConfig
    from weft.engine.start import start_engine

    keys = [field.name for field in dataclasses.fields(EngineSettings)]
    chosen = {key: value for key in keys if (value := getattr(settings, key)) is not None}
    config = EngineConfig(
        base_dir=settings.base_dir,
        adapters_dir=settings.adapters_dir,
        disk_dir=settings.adapter_cache_dir,
        derived_dir=settings.data_dir / "derived",
        **chosen,
    )
    return start_engine(config, on_progress, create_remote_store(settings))
