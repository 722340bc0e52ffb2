"""Structured logs: one configuration for Django, Celery, the ASGI server and our own code.

On a terminal lines are coloured text, otherwise JSON (LOG_FORMAT chooses). What `structlog.contextvars` carries, the
request id among it, stands in every line.
"""

import logging
import logging.config
import re
import sys
from logging import DEBUG as DEBUG

import structlog
from structlog.typing import EventDict, Processor

# An invitation's token is part of its address.
_TOKEN_IN_ADDRESS = re.compile(r"(/join/)[^/?\s\"']+")
_HEALTH_CHECKS = {"GET /healthz", "GET /readyz", "GET /metrics"}


def _hide_tokens(_: object, __: str, event: EventDict) -> EventDict:
    """What opens a door by itself isn't logged."""
    for name in ("event", "request", "path"):
        if isinstance(said := event.get(name), str) and "/join/" in said:
            event[name] = _TOKEN_IN_ADDRESS.sub(r"\1…", said)
    return event


_SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.stdlib.PositionalArgumentsFormatter(),
    structlog.processors.StackInfoRenderer(),
    _hide_tokens,
]


def _drop_noise(_: object, __: str, event: EventDict) -> EventDict:
    """One line a request, its end; none for health checks that went well. Raises `DropEvent`."""
    if event.get("event") == "request_started":
        raise structlog.DropEvent
    if event.get("request") in _HEALTH_CHECKS and event.get("code") == 200:
        raise structlog.DropEvent
    return event


# Never the frames' local variables: keys and passwords are among them.
_tracebacks = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)


def configure(*, level: str, format_: str) -> None:
    """Send every logger of this process to stderr. `format_` is console, json or empty (by the terminal)."""
    as_text = format_ == "console" or (not format_ and sys.stderr.isatty())
    tail: list[Processor] = (
        [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
        if as_text
        else [_tracebacks, structlog.processors.JSONRenderer()]
    )
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "structured": {
                    "()": structlog.stdlib.ProcessorFormatter,
                    "foreign_pre_chain": _SHARED,
                    "processors": [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *tail],
                }
            },
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "structured"}},
            "root": {"handlers": ["stderr"], "level": level},
            "loggers": {
                # Each request is one line of django_structlog already.
                "uvicorn.access": {"handlers": [], "propagate": False},
                "uvicorn.error": {"level": "WARNING"},
                "daphne.access": {"handlers": [], "propagate": False},
                "django.channels.server": {"level": "WARNING"},
                "httpx": {"level": "WARNING"},
                "httpx2": {"level": "WARNING"},
                "celery.app.trace": {"level": "WARNING"},
                "celery.worker.strategy": {"level": "WARNING"},
                "celery.beat": {"level": "WARNING"},
                "gateway.openai.access": {"level": "WARNING"} if as_text else {},
                "django_structlog.middlewares.request": {"level": "WARNING"} if as_text else {},
            },
        }
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            _drop_noise,
            *_SHARED,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
