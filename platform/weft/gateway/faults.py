"""What an engine's error is in a caller's words: status, code, and whether trying again helps."""

from __future__ import annotations

from weft.errors import InvalidRequestError, OverloadedError, WeftError
from weft.messages import EngineOutput

# OpenAI's SDK retries every status from 500 on unless it is told not to
_FINAL = {"x-should-retry": "false"}


class DeadlineExceededError(WeftError):
    """The request took longer than it was allowed to.

    504 and not 408: the SDK retries a 408 whatever its headers say in some versions, and a retry
    would do all the work again and run into the same deadline.
    """

    status_code = 504
    code = "deadline_exceeded"


def fault_of(output: EngineOutput) -> WeftError | None:
    """The error of an output that ends a choice badly, else None."""
    if output.finish_reason == "abort":
        return draining_error()
    if output.finish_reason != "error":
        return None
    message, code = output.error or "The engine failed.", output.error_code
    if code in ("queue_timeout", "adapter_unavailable"):
        return OverloadedError(message, retry_after_s=1, code=code)
    if code == "adapter_loading":
        return OverloadedError(message, retry_after_s=2, code=code)
    if code == "engine_failed":
        return OverloadedError(message, retry_after_s=30, code="engine_stopped")
    if code == "deadline_exceeded":
        return DeadlineExceededError(message, headers=_FINAL)
    if code == "no_token_allowed":
        return InvalidRequestError(message, param="response_format", code=code)
    if code == "non_finite":  # the same weights give the same numbers again
        return WeftError(message, code=code, headers=_FINAL)
    return WeftError(message)


def draining_error() -> OverloadedError:
    return OverloadedError("The server is shutting down.", retry_after_s=5, code="draining")


def slow_reader_error() -> OverloadedError:
    return OverloadedError("The client reads too slowly.", code="slow_reader")
