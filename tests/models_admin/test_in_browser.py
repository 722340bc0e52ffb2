import os
import re
import signal

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.portal import Portal, runs

pytestmark = [pytest.mark.portal, pytest.mark.slow]
SLUG = "smollm2-135m-instruct"
READY_MS = 60_000


def state(model: Locator, word: str) -> None:
    expect(model).to_have_attribute("data-state", word, timeout=READY_MS)


@pytest.fixture
def card(signed_in: Page) -> Locator:
    signed_in.goto("/models/")
    expect(signed_in.locator("body")).to_have_attribute("data-live", "yes")
    card = signed_in.locator(f"[data-model={SLUG}]")
    state(card, "ready")
    return card


def test_a_model_is_stopped_and_started_on_the_page(card: Locator, portal: Portal) -> None:
    page = card.page
    old = portal.llama_servers()
    card.get_by_role("button", name="Stop").click()
    question = page.get_by_role("dialog")
    expect(question).to_contain_text("Stop SmolLM2 135M Instruct?")
    question.get_by_role("button", name="Cancel").click()
    state(card, "ready")
    card.get_by_role("button", name="Stop").click()
    question.get_by_role("button", name="Stop").click()
    state(card, "stopped")
    # The button that had the focus is gone; a keyboard goes on from its card.
    assert card.evaluate("card => card.contains(document.activeElement)")
    assert not any(runs(pid) for pid in old)
    card.get_by_role("button", name="Start").click()
    state(card, "ready")
    portal.wait_ready(models=1)


def test_a_crash_and_the_new_start_show_without_a_reload(card: Locator, portal: Portal) -> None:
    page = card.page
    page.goto(f"/models/{SLUG}/")
    expect(page.locator("body")).to_have_attribute("data-live", "yes")
    head = page.locator("#model-head")
    state(head, "ready")
    (pid,) = portal.llama_servers()
    expect(page.locator("#model-replicas")).to_contain_text(str(pid))
    os.kill(pid, signal.SIGKILL)
    expect(page.locator("#model-replicas")).not_to_contain_text(str(pid), timeout=READY_MS)
    expect(page.locator(".timeline")).to_contain_text("SIGKILL")
    state(head, "ready")
    expect(page.locator("#model-log pre")).to_contain_text(
        re.compile(r"model loaded[\s\S]*model loaded"), timeout=READY_MS
    )
    portal.wait_ready(models=1)


def test_the_command_line_tells_what_runs(portal: Portal) -> None:
    said = portal.manage("models", "list")
    (pid,) = portal.llama_servers()
    assert re.search(rf"{SLUG} +ready .* {pid} ", said)
    assert "1 models" in portal.manage("models", "scan")
