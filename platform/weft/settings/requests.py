"""What one request may bring and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass

from weft.settings.fields import MIB, Settings, setting


@dataclass(frozen=True, kw_only=True)
class RequestSettings(Settings):
    """A request that was not started within `queue_timeout_s`, whose adapter was not loaded within
    `adapter_timeout_s`, or that is not over within `request_timeout_s`, is ended (None: never).

    `lorax_status_codes`: LoRAX's routes answer 424 where no text came of a valid request, an
    unknown adapter included, as LoRAX does.
    """

    max_body_bytes: int = setting(4 * MIB, above=0)
    max_prompts_per_request: int = setting(64, above=0)
    max_stream_backlog_bytes: int = setting(MIB, above=0)
    keepalive_s: float = setting(15.0, above=0)
    stall_timeout_s: float = setting(60.0, above=0)
    queue_timeout_s: float | None = setting(
        None,
        "Seconds that a request may wait to start. Default: any.",
        flag="--queue-timeout",
        above=0,
    )
    adapter_timeout_s: float | None = setting(
        30.0,
        "Seconds that a request may wait for its adapter to be loaded.",
        flag="--adapter-timeout",
        above=0,
    )
    request_timeout_s: float | None = setting(
        None,
        "Seconds that a request may take in all. Default: any.",
        flag="--request-timeout",
        above=0,
    )
    lorax_status_codes: bool = setting(
        False, "/generate answers 424, as LoRAX, where an adapter is unknown."
    )
