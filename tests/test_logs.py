"""Logs carry request ids and no secrets."""

import json
import logging
import secrets

import pytest
import structlog

from llamaproj import env, logs


@pytest.fixture(autouse=True)
def as_before():
    yield
    logs.configure(level=env.LOG_LEVEL, format_=env.LOG_FORMAT)


def fail(api_key: str) -> None:
    raise ValueError("something broke")


@pytest.mark.parametrize("format_", ["json", "console"])
def test_an_exception_is_logged_without_the_values_it_met(format_, capsys):
    logs.configure(level="INFO", format_=format_)
    secret = secrets.token_urlsafe()
    try:
        fail(secret)
    except ValueError:
        logging.getLogger("test").exception("failed")

    logged = capsys.readouterr().err
    assert "something broke" in logged
    assert secret not in logged


def test_json_lines_carry_what_is_bound(capsys):
    logs.configure(level="INFO", format_="json")
    with structlog.contextvars.bound_contextvars(request_id="r-1"):
        structlog.get_logger("test").info("hello", model="m")
        logging.getLogger("other").warning("plain %s", "words")

    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (first["event"], first["model"], first["request_id"], first["level"]) == (
        "hello",
        "m",
        "r-1",
        "info",
    )
    assert (second["event"], second["request_id"]) == ("plain words", "r-1")


def test_health_checks_that_go_well_and_beginnings_of_requests_leave_no_line(capsys):
    logs.configure(level="INFO", format_="json")
    log = structlog.get_logger("test")
    log.info("request_started", request="GET /")
    log.info("request_finished", request="GET /readyz", code=200)
    log.info("request_finished", request="GET /readyz", code=503)
    log.info("request_finished", request="GET /", code=200)

    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(one["request"], one["code"]) for one in lines] == [("GET /readyz", 503), ("GET /", 200)]
