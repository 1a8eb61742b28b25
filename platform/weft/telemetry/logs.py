"""Log lines as JSON, each with its request's id, and none with a secret or a prompt.

What a line says is redacted as it is written, whoever logs it: other libraries' lines as well.
"""

from __future__ import annotations

import logging
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

from weft.telemetry.redaction import printable, redact_text, redacted

_MAX_LINE = 16_384


def set_up_logging(log_format: str) -> None:
    """Have this process log to stderr. As `json` a line for each request is among them."""
    handler = logging.StreamHandler()
    handler.setFormatter(create_formatter(log_format))
    logging.basicConfig(handlers=[handler], force=True)
    if log_format == "json":
        logging.getLogger("weft").setLevel(logging.INFO)


def bind_request(request_id: str) -> None:
    """Every line of this request, from here on, has its id."""
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=request_id)


def create_formatter(log_format: str) -> logging.Formatter:
    """What makes a line of a record: `text` for people, or `json`."""
    if log_format == "text":
        return _RedactingFormatter("%(name)s: %(message)s")
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            # frames and messages, never the values of variables
            structlog.processors.format_exc_info,
            _redact,
            structlog.processors.JSONRenderer(),
        ],
    )


def _redact(_logger: Any, _name: str, event: EventDict) -> EventDict:
    event["event"] = str(event["event"])[:_MAX_LINE]
    exception = event.pop("exception", None)
    clean = redacted(event)
    assert isinstance(clean, dict)
    if exception is not None:  # its lines are longer than other values may be
        clean["exception"] = redact_text(str(exception)[-_MAX_LINE:])
    return clean


class _RedactingFormatter(logging.Formatter):
    """Lines for people; what a caller put into one does not begin another."""

    def format(self, record: logging.LogRecord) -> str:
        lines = redact_text(super().format(record)[:_MAX_LINE]).split("\n")
        if record.exc_info is None:
            return printable("\\n".join(lines), _MAX_LINE)
        return "\n".join(printable(line, _MAX_LINE) for line in lines)
