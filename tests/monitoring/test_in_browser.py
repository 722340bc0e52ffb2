"""The dashboard of a really running portal in a real browser."""

import time

import psutil
import pytest
from playwright.sync_api import Page, WebSocketRoute, expect

pytestmark = [pytest.mark.portal, pytest.mark.slow]
PATIENCE_MS = 30_000
SPARKLINE = "document.querySelector('[data-metric=cpu] .sparkline-line').getAttribute('d')"


@pytest.fixture
def complaints(signed_in: Page) -> list[str]:
    """What the browser complains about, violations of the content security policy among it."""
    heard: list[str] = []
    signed_in.on(
        "console",
        lambda message: heard.append(message.text) if message.type in ("error", "warning") else None,
    )
    signed_in.on("pageerror", lambda error: heard.append(str(error)))
    return heard


def test_the_dashboard_moves_and_tells_the_truth(signed_in: Page, complaints: list[str]):
    signed_in.goto("/dashboard/")
    expect(signed_in.locator("body[data-live=yes]")).to_be_attached(timeout=PATIENCE_MS)
    memory = signed_in.locator("[data-metric=memory]")
    expect(memory).not_to_have_attribute("data-value", "", timeout=PATIENCE_MS)
    # What is shown is a moment old: where something has just taken or given back much, the next figure agrees.
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while float(memory.get_attribute("data-value")) != (
        measured := pytest.approx(psutil.virtual_memory().percent, rel=0.05, abs=2)
    ):
        assert time.monotonic() < deadline, measured
        time.sleep(0.5)
    before = signed_in.evaluate(SPARKLINE)
    signed_in.wait_for_function(f"before => {SPARKLINE} !== before", arg=before, timeout=PATIENCE_MS)
    expect(signed_in.locator("#servers tr [data-cell=state]")).to_have_attribute("data-state", "ready")
    expect(signed_in.locator("[data-cell=slots]")).to_contain_text("of 4")
    assert signed_in.locator(".chart:not([hidden]) canvas").count() >= 5
    assert complaints == []


def test_a_lost_connection_is_shown_and_mended(signed_in: Page, complaints: list[str]):
    sockets: list[WebSocketRoute] = []

    def keep(socket: WebSocketRoute) -> None:
        socket.connect_to_server()
        sockets.append(socket)

    signed_in.route_web_socket("**/ws/monitoring/**", keep)
    signed_in.goto("/dashboard/")
    live, down = signed_in.locator("body[data-live=yes]"), signed_in.locator("body[data-live=no]")
    expect(live).to_be_attached(timeout=PATIENCE_MS)
    sockets[0].close(code=1012)
    expect(down).to_be_attached(timeout=PATIENCE_MS)
    expect(live).to_be_attached(timeout=PATIENCE_MS)
    assert len(sockets) >= 2
    before = signed_in.evaluate(SPARKLINE)
    signed_in.wait_for_function(f"before => {SPARKLINE} !== before", arg=before, timeout=PATIENCE_MS)
    assert complaints == []


def test_it_fits_a_phone(signed_in: Page):
    signed_in.set_viewport_size({"width": 390, "height": 844})
    signed_in.goto("/dashboard/")
    expect(signed_in.locator("[data-metric=cpu]")).not_to_have_attribute(
        "data-value", "", timeout=PATIENCE_MS
    )
    assert signed_in.evaluate("document.documentElement.scrollWidth") == 390


def test_statistics_change_their_time_span_in_place(signed_in: Page, complaints: list[str]):
    signed_in.goto("/dashboard/")
    signed_in.evaluate("window.stayed = true")
    day = signed_in.locator("#statistics nav a", has_text="24 h")
    day.click()
    expect(day).to_have_attribute("aria-current", "true", timeout=PATIENCE_MS)
    # The next refresh keeps the choice.
    with signed_in.expect_response("**/monitoring/statistics/?window=24h", timeout=PATIENCE_MS):
        pass
    expect(day).to_have_attribute("aria-current", "true")
    assert signed_in.evaluate("window.stayed") is True
    assert complaints == []
