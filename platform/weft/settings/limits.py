"""What a tenant may use where the operator has set nothing else for it."""

from __future__ import annotations

from dataclasses import dataclass

from weft.settings.fields import Settings, setting


@dataclass(frozen=True, kw_only=True)
class LimitSettings(Settings):
    """Defaults of every tenant's rates, and what happens while the limiter cannot be asked.

    `fail_open_limits` is about rates and running requests only: money is counted in the database
    and without it nothing runs.
    """

    tenant_requests_per_minute: int = setting(
        60_000, "Requests a minute of a tenant that has no limit of its own.", at_least=0
    )
    tenant_tokens_per_minute: int = setting(
        60_000_000,
        "Tokens a minute, prompt and answer, of a tenant that has no limit of its own.",
        at_least=0,
    )
    tenant_max_running: int | None = setting(
        None,
        "Requests at a time of a tenant that has no limit of its own. Default: any number.",
        at_least=0,
    )
    fail_open_limits: bool = setting(
        False, "Serve without rate limits while Redis cannot be reached, instead of answering 503."
    )
