"""A model's own page in a browser, beside a model that really runs: its log, its slots, its trouble."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.portal import DEMO_MODEL, Portal

pytestmark = [pytest.mark.portal, pytest.mark.slow]
READY_MS = 60_000
FLAG = "--frequency-penalty"


@pytest.fixture
def own_page(signed_in: Page) -> Page:
    signed_in.goto(f"/models/{DEMO_MODEL}/")
    expect(signed_in.locator("body")).to_have_attribute("data-live", "yes")
    expect(signed_in.locator("#model-head")).to_have_attribute("data-state", "ready", timeout=READY_MS)
    return signed_in


@contextmanager
def asking(portal: Portal) -> Iterator[None]:
    """Somebody has the model write, for as long as the block runs."""
    key = portal.manage("apikey", "create", "--user", "admin", "--name", "slots").split()[-1]
    body = {
        "model": DEMO_MODEL,
        "messages": [{"role": "user", "content": "Count."}],
        "stream": True,
        "ignore_eos": True,
        "max_tokens": 3000,
    }
    url, headers = f"{portal.base_url}/v1/chat/completions", {"authorization": f"Bearer {key}"}
    with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as answer:
        assert answer.status_code == 200
        yield


def test_the_log_is_filtered_held_still_and_goes_on(own_page: Page, portal: Portal) -> None:
    lines = own_page.locator(".log-line:visible")
    expect(lines.first).to_be_visible()
    own_page.get_by_label("Only lines with this text").fill("model loaded")
    expect(lines.first).to_contain_text("model loaded")
    expect(own_page.locator("[data-log-count]")).to_contain_text("of")
    shown = lines.count()
    own_page.get_by_label("Which lines").select_option("error")
    expect(lines).to_have_count(0)
    own_page.get_by_label("Which lines").select_option("")
    own_page.get_by_label("Only lines with this text").fill("")
    assert lines.count() > shown
    own_page.get_by_role("button", name="Pause").click()
    held = own_page.locator("#model-log").inner_text()
    with asking(portal):
        expect(own_page.locator('.slot[data-busy="yes"]')).to_have_count(1, timeout=READY_MS)
        assert own_page.locator("#model-log").inner_text() == held
        own_page.get_by_role("button", name="Go on").click()
        expect(own_page.locator("#model-log")).to_contain_text("processing task", timeout=READY_MS)
    expect(own_page.locator('.slot[data-busy="yes"]')).to_have_count(0, timeout=READY_MS)


def test_a_choice_of_lines_lasts_over_the_socket(own_page: Page) -> None:
    own_page.get_by_label("How many lines").select_option("50")
    own_page.wait_for_url("**/?*lines=50*")
    expect(own_page.locator("body")).to_have_attribute("data-live", "yes")
    expect(own_page.get_by_label("How many lines")).to_have_value("50")
    expect(own_page.get_by_label("Only lines with this text")).to_be_visible()


def test_a_flag_the_engine_refuses_is_found_and_left_out_in_one_click(own_page: Page, portal: Portal) -> None:
    settings = {"extra_flags": [FLAG, "1"]}
    portal.manage(
        "shell", "--no-imports", "-c",
        "from models_admin import actions; from models_admin.models import ServedModel; "
        f"actions.change(ServedModel.objects.get(slug='{DEMO_MODEL}'), by=None, **{settings!r})",
    )  # fmt: skip
    trouble = own_page.locator("[data-cause=wrong_flag]")
    expect(trouble).to_contain_text(f"doesn't take {FLAG}", timeout=READY_MS)
    expect(trouble.locator("pre")).to_contain_text("unrecognized arguments")
    # The old one still answers, and its log can be had, too.
    expect(own_page.get_by_label("Which replica").locator("option").nth(2)).to_be_attached()
    trouble.get_by_role("button", name=f"Leave out {FLAG}").click()
    expect(trouble).to_have_count(0)
    expect(own_page.locator("#model-head")).to_have_attribute("data-state", "ready", timeout=READY_MS)
    portal.wait_ready(models=1)
