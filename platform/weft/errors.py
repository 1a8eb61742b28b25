"""Errors that callers see: each is a sentence, an HTTP status and OpenAI's type and code.

The gateway renders every `WeftError` as OpenAI's error object; domain modules raise them and know
nothing of HTTP beyond the status that belongs to the meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class WeftError(Exception):
    """Base of all errors that a caller may see.

    `details` is a list of plain objects (for example the faults of a refused adapter);
    `headers` are extra response headers such as `retry-after`.
    """

    status_code = 500
    type = "server_error"
    code: str | None = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        details: Sequence[Mapping[str, object]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code
        self.details = tuple(details)
        self.headers = dict(headers or {})


class InvalidRequestError(WeftError):
    """The request itself is wrong: a bad value, an unknown parameter, a prompt too long."""

    status_code = 400
    type = "invalid_request_error"
    code = "invalid_value"


class AuthenticationError(WeftError):
    """Missing, malformed, unknown, expired or revoked key: one message for all."""

    status_code = 401
    type = "invalid_request_error"
    code = "invalid_api_key"

    def __init__(self) -> None:
        super().__init__(
            "Incorrect API key provided. Send it as 'Authorization: Bearer <key>'.",
            headers={"www-authenticate": "Bearer"},
        )


class MismatchedHeaderError(WeftError):
    """`OpenAI-Organization` or `OpenAI-Project` names another than the key's own."""

    status_code = 401
    type = "invalid_request_error"

    def __init__(self, header: str, what: str) -> None:
        super().__init__(
            f"{header} header should match {what} for API key.", code=f"mismatched_{what}"
        )


class PermissionDeniedError(WeftError):
    """The key is valid but lacks the scope."""

    status_code = 403
    type = "permission_error"
    code = "insufficient_permissions"


class TenantSuspendedError(PermissionDeniedError):
    """Whoever asks is right, and its tenant is suspended."""

    code = "tenant_suspended"

    def __init__(self) -> None:
        super().__init__("Your organization is suspended. Please ask whoever operates this server.")


class ModelNotFoundError(WeftError):
    """No such model or adapter, or not the caller's: the same answer for both."""

    status_code = 404
    type = "invalid_request_error"
    code = "model_not_found"

    def __init__(self, model: str) -> None:
        super().__init__(
            f"The model '{model}' does not exist or you do not have access to it.", param="model"
        )


class NotFoundError(WeftError):
    """No such thing, or not the caller's: the same answer for both."""

    status_code = 404
    type = "invalid_request_error"
    code = "not_found"


class ConflictError(WeftError):
    """The write collides with what is there."""

    status_code = 409
    type = "conflict_error"
    code = "version_conflict"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        # OpenAI's SDK retries 409 by itself; most conflicts do not go away by retrying
        headers = {"x-should-retry": "false"}
        if retry_after_s is not None:
            headers = {"x-should-retry": "true", "retry-after": str(retry_after_s)}
        super().__init__(message, param=param, code=code, headers=headers)


class PayloadTooLargeError(WeftError):
    """The body or the adapter is over its cap."""

    status_code = 413
    type = "invalid_request_error"
    code = "payload_too_large"


class RequestTimeoutError(WeftError):
    """The body did not come in time; the connection is closed."""

    status_code = 408
    type = "invalid_request_error"
    code = "request_timeout"

    def __init__(self) -> None:
        super().__init__("The request body did not come in time.", headers={"connection": "close"})


class UnsupportedMediaTypeError(WeftError):
    """The body is in a form that no route reads."""

    status_code = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class RateLimitError(WeftError):
    """Too much at a time; `retry-after` says when to try again."""

    status_code = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message, headers={"retry-after": str(retry_after_s)})


class QuotaExceededError(WeftError):
    """The tenant has as much as it may have; trying again does not help."""

    status_code = 429
    type = "insufficient_quota"
    code = "insufficient_quota"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"x-should-retry": "false"})


class AdapterInvalidError(WeftError):
    """The uploaded adapter was refused; `details` lists each fault."""

    status_code = 422
    type = "invalid_request_error"
    code = "adapter_invalid"


class OverloadedError(WeftError):
    """The engine cannot take the request now; `retry-after` says when to try again."""

    status_code = 503
    type = "server_error"
    code = "server_is_overloaded"

    def __init__(self, message: str, *, retry_after_s: int = 1, code: str | None = None) -> None:
        super().__init__(message, code=code, headers={"retry-after": str(retry_after_s)})
