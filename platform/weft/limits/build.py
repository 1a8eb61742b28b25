"""Which limiter a process uses, and under which defaults."""

from __future__ import annotations

from weft.limits.in_process import InProcessLimiter
from weft.limits.limiter import Limiter, Rates
from weft.settings import LimitSettings


def create_limiter(redis_url: str | None) -> Limiter:
    """Redis' where there is one, else this process's own: then it must be the only one."""
    if redis_url is None:
        return InProcessLimiter()
    # its client takes a tenth of a second to import
    from weft.limits.redis_limiter import RedisLimiter, create_client

    return RedisLimiter(create_client(redis_url))


def default_rates(settings: LimitSettings) -> Rates:
    """Of a tenant without limits of its own."""
    return Rates(
        settings.tenant_requests_per_minute,
        settings.tenant_tokens_per_minute,
        settings.tenant_max_running,
    )
