"""The main job in a real browser, on a running portal with the real engine: ask, watch, reload, stop, kill things."""

import os
import re
import signal
import time
from collections.abc import Callable
from html.parser import HTMLParser

import httpx
import psutil
import pytest
from django.test import override_settings
from playwright.sync_api import Browser, Locator, Page, expect

from chat.markdown import render
from models_admin.secret_box import unseal
from tests.portal import Portal

pytestmark = [pytest.mark.portal, pytest.mark.slow, pytest.mark.timeout(400)]

STORY = "Tell me a story of 300 words about a lighthouse keeper."
LONG_STORY = "Write a very long story of 2000 words about a lighthouse keeper, with many chapters."
ANSWER_MS = 90_000
ENDED = {"done", "failed", "stopped"}


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found = ""

    def handle_data(self, data: str) -> None:
        self.found += data


def letters(text: str) -> str:
    """A text without what rendering changes: spaces, the marks of markdown, and a number that may begin a list."""
    text = re.sub(r"\n\s*\d{1,3}[.)]?\s*$", "", text)
    return re.sub(r"[\s*_`#|>~=+-]+", "", text)


def as_rendered(markdown: str) -> str:
    parser = _Text()
    parser.feed("".join(render(markdown)))
    return letters(parser.found)


def ask(page: Page, text: str) -> Locator:
    """Send a message; returns the answer's article."""
    before = page.locator('article[data-role="assistant"]').count()
    page.get_by_role("textbox", name="Message").fill(text)
    page.get_by_role("button", name="Send").click()
    page.wait_for_url("**/c/**")
    answers = page.locator('article[data-role="assistant"]')
    expect(answers).to_have_count(before + 1)
    return answers.last


def text_of(answer: Locator) -> str:
    return answer.locator('[data-part="text"]').inner_text(timeout=30_000)


def watch(answer: Locator, until: Callable[[list[str]], bool], timeout_s: float = 120) -> list[str]:
    """The different texts an answer went through."""
    seen: list[str] = []
    deadline = time.monotonic() + timeout_s
    while not until(seen):
        assert time.monotonic() < deadline, f"only {len(seen)} states: {seen[-1:]}"
        text = letters(text_of(answer))
        if text and (not seen or text != seen[-1]):
            seen.append(text)
        time.sleep(0.03)
    return seen


def stored(portal: Portal, page: Page) -> str:
    conversation = page.url.rstrip("/").rsplit("/", 1)[-1]
    ((text,),) = portal.query(
        "SELECT text FROM chat_message WHERE conversation_id = %s AND role = 'assistant'"
        " ORDER BY number DESC LIMIT 1",
        conversation,
    )
    return str(text)


def ended(answer: Locator) -> None:
    expect(answer).to_have_attribute("data-status", "done", timeout=ANSWER_MS)


def new_chat(page: Page) -> None:
    page.goto("/")
    expect(page.get_by_role("textbox", name="Message")).to_be_visible()


def test_an_answer_grows_survives_a_reload_and_is_the_same_everywhere(
    signed_in: Page, portal: Portal, browser: Browser
):
    page = signed_in
    new_chat(page)
    answer = ask(page, STORY)
    seen = watch(answer, lambda seen: len(seen) >= 5)

    page.reload()
    answer = page.locator('article[data-role="assistant"]').last
    after = watch(answer, lambda seen: len(seen) >= 2)
    assert after[0].startswith(seen[-1]), "the reload lost what was seen"

    other = browser.new_context(
        storage_state=page.context.storage_state(), base_url=portal.base_url
    ).new_page()
    other.goto(page.url)
    ended(answer)
    ended(other.locator('article[data-role="assistant"]').last)

    kept = stored(portal, page)
    final = letters(text_of(answer))
    assert final == as_rendered(kept)
    assert letters(text_of(other.locator('article[data-role="assistant"]').last)) == final
    assert all(final.startswith(one) for one in [*seen, *after])
    expect(answer.locator('[data-part="meta"]')).to_contain_text("tokens")


def test_stop_frees_the_slot_within_a_second(signed_in: Page, portal: Portal):
    page = signed_in
    new_chat(page)
    answer = ask(page, LONG_STORY)
    watch(answer, lambda seen: len(seen) >= 3)

    page.get_by_role("button", name="Stop").click()
    began = time.monotonic()
    while busy_slots(portal):
        assert time.monotonic() - began < 1.0, "the slot is still busy after a second"
        time.sleep(0.02)

    expect(answer).to_have_attribute("data-status", "stopped")
    assert letters(text_of(answer)) == as_rendered(stored(portal, page))


def busy_slots(portal: Portal) -> int:
    """What the model's own server says."""
    ((port, sealed),) = portal.query(
        "SELECT port, api_key_encrypted FROM models_admin_instance WHERE state = 'ready'"
    )
    with override_settings(SECRET_KEY=(portal.data_dir / "secret_key").read_text().strip()):
        headers = {"authorization": f"Bearer {unseal(sealed)}"}
    slots = httpx.get(f"http://127.0.0.1:{port}/slots", headers=headers).json()
    return sum(slot["is_processing"] for slot in slots)


@pytest.mark.parametrize("victim", ["web", "generator", "llama-server"])
def test_whatever_is_killed_the_answer_ends_and_nothing_seen_is_lost(
    signed_in: Page, portal: Portal, victim: str
):
    page = signed_in
    new_chat(page)
    answer = ask(page, LONG_STORY)
    seen = watch(answer, lambda seen: bool(seen) and len(seen[-1]) > 200)

    pid = portal.llama_servers()[0] if victim == "llama-server" else portal.pids[victim]
    os.kill(pid, signal.SIGKILL)

    seen += watch(answer, lambda _: answer.get_attribute("data-status") in ENDED, timeout_s=120)
    ended(answer)
    kept = as_rendered(stored(portal, page))
    shown = letters(text_of(answer))
    assert shown == kept
    assert [one for one in seen if not shown.startswith(one)] == []
    assert len(shown) > len(seen[0])
    portal.wait_ready(models=1)


def test_a_killed_node_worker_leaves_the_models_running(portal: Portal):
    (before,) = portal.llama_servers()
    os.kill(portal.pids["node"], signal.SIGKILL)
    portal.wait_ready(models=1)
    time.sleep(5)

    assert portal.llama_servers() == [before]
    assert psutil.pid_exists(before)
    portal.wait_ready(models=1)


def test_the_pages_have_no_errors_and_obey_the_content_security_policy(signed_in: Page, portal: Portal):
    page = signed_in
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    for path in (
        "/",
        "/c/",
        "/dashboard/",
        "/models/",
        "/models/smollm2-135m-instruct/",
        "/accounts/password/change/",
    ):
        response = page.goto(path)
        assert response is not None
        assert response.status == 200, path
        page.wait_for_timeout(300)

    assert problems == []
