"""The pages as a person meets them: every width, both themes, keyboard only, no complaint in the console."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.portal import DEMO_MODEL, Portal

pytestmark = [pytest.mark.portal]

PAGES = [
    "/",
    "/c/",
    "/c/shared/",
    "/dashboard/",
    "/models/",
    "/models/config/",
    "/models/downloads/",
    "/models/external/",
    "/models/external/add/",
    "/models/nodes/",
    "/usage/",
    "/usage/all/",
    "/usage/settings/",
    "/prompts/",
    "/prompts/new/",
    "/teams/",
    "/audit/",
    "/settings/",
    "/settings/keys/",
    "/settings/keys/new/",
    "/settings/limits/",
    "/settings/limits/all/",
    "/settings/limits/all/add/",
    "/settings/sessions/",
    "/settings/security/",
    "/accounts/2fa/",
    "/accounts/password/change/",
    "/accounts/logout/",
    "/nowhere/",
]


@pytest.fixture
def context(signed_in: Page, browser: Browser, portal: Portal) -> Iterator[BrowserContext]:
    """A phone with a dark theme, signed in."""
    context = browser.new_context(
        base_url=portal.base_url,
        storage_state=signed_in.context.storage_state(),
        viewport={"width": 390, "height": 844},
        color_scheme="dark",
    )
    yield context
    context.close()


def complaints(page: Page) -> list[str]:
    """What the page writes to the console from now on; a content security policy violation is an error there."""
    heard: list[str] = []
    page.on("console", lambda message: heard.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: heard.append(str(error)))
    return heard


def is_too_wide(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth > innerWidth"))


@pytest.mark.parametrize("width", [1440, 900, 390])
def test_no_page_scrolls_sideways_or_breaks_its_own_rules(context, width):
    page = context.new_page()
    page.set_viewport_size({"width": width, "height": 844})
    heard = complaints(page)
    for path in PAGES:
        page.goto(path)
        page.wait_for_load_state("load")
        assert not is_too_wide(page), path

    assert [one for one in heard if "404" not in one] == []


def test_the_way_in_fits_a_phone_and_says_what_was_wrong(browser, portal):
    page = browser.new_page(base_url=portal.base_url, viewport={"width": 390, "height": 844})
    heard = complaints(page)
    page.goto("/accounts/login/")
    page.get_by_label("Username or e-mail").fill("nobody")
    page.get_by_label("Password").fill("wrong")
    page.get_by_role("button", name="Sign in").click()

    expect(page.get_by_role("alert")).to_be_visible()
    assert not is_too_wide(page)
    assert heard == []


def test_the_theme_is_the_persons_and_stays(context):
    page = context.new_page()
    page.set_viewport_size({"width": 1440, "height": 844})
    page.goto("/c/")
    dark = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")

    page.locator(".person > summary").click()
    page.get_by_label("Light", exact=True).check()
    page.reload()

    light = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert page.locator("html").get_attribute("data-theme") == "light"
    assert light != dark


def test_the_drawer_takes_the_focus_and_gives_it_back(context):
    page = context.new_page()
    page.goto("/c/")
    opener = page.get_by_label("Open the menu")

    opener.press("Enter")
    expect(page.get_by_label("Close the menu")).to_be_focused()
    page.keyboard.press("Escape")

    expect(opener).to_be_focused()


def test_a_chat_is_renamed_and_deleted_by_name(signed_in):
    page = signed_in
    page.goto("/")
    page.get_by_role("textbox", name="Message").fill("Count from one to one thousand, in words")
    page.get_by_role("button", name="Send", exact=True).click()
    page.wait_for_url("**/c/**")
    expect(page.locator("body")).to_have_attribute("data-live", "yes")
    answer = page.locator('article[data-role="assistant"]')
    page.get_by_role("textbox", name="Message").press("Escape")
    expect(answer).to_have_attribute("data-status", "stopped")
    expect(page.get_by_role("button", name="Retry")).to_be_visible()

    entry = page.locator(".sidebar .conversation", has_text="Count from one").first
    entry.hover()
    entry.get_by_role("button", name="Rename").click()
    page.get_by_label("Title").fill("A greeting")
    page.get_by_role("button", name="Rename", exact=True).click()
    expect(page.locator("#conversation-title")).to_have_text("A greeting")

    entry = page.locator(".sidebar .conversation", has_text="A greeting").first
    entry.hover()
    entry.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("dialog")).to_contain_text("A greeting")
    page.get_by_role("button", name="Delete", exact=True).click()

    page.wait_for_url("**/")
    expect(page.locator(".sidebar .conversation", has_text="A greeting")).to_have_count(0)


def test_only_the_last_answer_offers_to_be_written_anew(signed_in):
    page = signed_in
    page.goto("/")
    message = page.get_by_role("textbox", name="Message")
    answers = page.locator('article[data-role="assistant"]')
    for count in (1, 2):
        message.fill("Count from one to one thousand, in words")
        message.press("Enter")
        expect(answers).to_have_count(count)
        expect(page.locator("body")).to_have_attribute("data-live", "yes")
        message.press("Escape")
        expect(answers.last).to_have_attribute("data-status", "stopped")

    expect(page.get_by_role("button", name="Retry")).to_have_count(1)
    expect(answers.last.get_by_role("button", name="Retry")).to_be_visible()


def test_half_a_thought_survives_a_reload(context):
    page = context.new_page()
    page.goto("/")
    page.get_by_role("textbox", name="Message").fill("half a thought")
    page.reload()

    expect(page.get_by_role("textbox", name="Message")).to_have_value("half a thought")


def test_a_message_is_sent_without_scripts(browser, portal, signed_in):
    context = browser.new_context(
        base_url=portal.base_url,
        storage_state=signed_in.context.storage_state(),
        java_script_enabled=False,
    )
    page = context.new_page()
    page.goto("/")
    page.get_by_role("textbox", name="Message").fill("Say nothing more")
    page.get_by_role("button", name="Send", exact=True).click()
    page.wait_for_url("**/c/**")

    expect(page.locator('article[data-role="user"] [data-part="text"]')).to_have_text("Say nothing more")
    page.goto(page.url)
    stop = page.get_by_role("button", name="Stop", exact=True)
    if stop.is_visible():
        stop.click()
    expect(page.locator('article[data-role="assistant"]')).to_have_count(1)
    context.close()


def test_a_lost_network_and_a_broken_answer_are_said_and_the_page_stays(signed_in):
    page = signed_in
    page.goto("/dashboard/")
    said, hour = page.locator("#failure"), page.locator("#statistics").get_by_role("link", name="1 h")
    address = "**/monitoring/statistics/**"

    page.route(address, lambda route: route.abort())
    hour.click()
    expect(said).to_contain_text("doesn't answer")
    expect(page.locator("#statistics h2")).to_have_text("API requests")

    page.unroute(address)
    hour.click()
    expect(said).to_be_hidden()

    words = "The portal made a mistake."
    page.route(address, lambda route: route.fulfill(status=500, body=f'<p class="lede">{words}</p>'))
    hour.click()
    expect(said).to_contain_text(words)
    expect(page.locator("#statistics h2")).to_have_text("API requests")
    said.get_by_role("button", name="Close").click()
    expect(said).to_be_hidden()


def test_whoever_was_signed_out_meanwhile_is_led_to_the_entrance(signed_in):
    page = signed_in
    page.goto("/dashboard/")
    page.context.clear_cookies()
    page.locator("#statistics").get_by_role("link", name="1 h").click()

    page.wait_for_url("**/accounts/login/?next=/dashboard/")


def test_a_form_is_sent_once_and_shows_that_it_is(signed_in):
    page = signed_in
    page.goto("/prompts/new/")
    sent = []

    def answer_nothing(route):
        sent.append(route.request.method)
        route.fulfill(status=204)

    page.route("**/prompts/new/", answer_nothing)
    page.get_by_role("textbox", name="Title").fill("Minutes of a meeting")
    page.get_by_role("textbox", name="Prompt", exact=True).fill("Decisions first.")
    save = page.get_by_role("button", name="Save")
    save.click()
    save.click()

    expect(save).to_have_attribute("aria-busy", "true")
    assert sent == ["POST"]


def test_what_a_page_is_refused_is_said_on_it(signed_in):
    page = signed_in
    page.goto(f"/models/{DEMO_MODEL}/")
    page.get_by_role("button", name="Remove the model").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()

    expect(page.get_by_text("stop it first")).to_be_visible()
    assert page.url.endswith(f"/models/{DEMO_MODEL}/")


def test_what_is_written_while_the_portal_is_away_is_kept(signed_in):
    page = signed_in
    page.goto("/")
    message, send = (
        page.get_by_role("textbox", name="Message"),
        page.get_by_role("button", name="Send", exact=True),
    )
    page.route("**/healthz", lambda route: route.abort())
    message.fill("Say nothing more")
    send.click()

    expect(page.locator("#composer-error")).to_contain_text("can't be reached")
    expect(message).to_have_value("Say nothing more")

    page.unroute("**/healthz")
    send.click()
    page.wait_for_url("**/c/**")
    expect(page.locator('article[data-role="user"] [data-part="text"]')).to_have_text("Say nothing more")
    message.press("Escape")
