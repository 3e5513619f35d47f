"""The page at /, in a real browser."""

from __future__ import annotations

import shutil

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from watching import FakeApp, FakeService, served

from c2v_engine.serving.contract import BatchReport, State
from c2v_engine.serving.watch.recent import Recent

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def app():
    return FakeApp()


@pytest.fixture
def page(app: FakeApp, browser: Browser):
    """The page of ``app``; a test fails where its console says an error that it does not expect."""
    with served(app.make()) as address:
        context = browser.new_context()
        page = context.new_page()
        page.said = []
        page.on(
            "console", lambda line: page.said.append(line.text) if line.type == "error" else None
        )
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.goto(address)
        page.set_default_timeout(5000)
        yield page
        context.close()


def rank(page: Page, query: str, *texts: str) -> list[str]:
    page.get_by_label("Query", exact=True).fill(query)
    page.get_by_label("Texts, one a line").fill("\n".join(texts))
    page.get_by_role("button", name="Rank").click()
    expect(page.locator("#rank")).to_be_enabled()
    return page.locator("#ranking .text").all_text_contents()


def test_it_shows_the_state_in_words_and_follows_it(app, page):
    expect(page.locator("#state")).to_have_text("READY")
    expect(page.get_by_role("heading", level=1)).to_have_text("tiny")
    expect(page.locator("#facts")).to_contain_text("cpu, float32 · 3 dimensions · reads 64 tokens")
    expect(page.locator("#waiting")).to_have_text("queue: 120 of 1K tokens")
    app.service.set(state=State.FAILED, reason="the GPU fell off the bus")
    expect(page.locator("#state")).to_have_text("FAILED")
    expect(page.locator("#reason")).to_have_text("the GPU fell off the bus")
    assert page.said == []


def test_it_shows_what_is_computed(app, page):
    app.metrics.recent = Recent(clock=lambda: 1000.0)
    app.metrics.batch(BatchReport(texts=600, tokens=12_000_000, budget=512, seconds=60.0))
    app.metrics.recent.add_request(0.0123)
    expect(page.locator("#texts-rate")).to_have_text("10")
    expect(page.locator("#tokens-rate")).to_have_text("200K")
    expect(page.locator("#p99")).to_have_text("12.3 ms")
    expect(page.locator("#peak")).to_have_text("peak 10 texts/s")
    page.get_by_label("tokens", exact=True).check()
    expect(page.locator("#peak")).to_have_text("peak 200K tokens/s")
    assert page.locator("#curve").get_attribute("d").count("L") == 119


def test_texts_are_ranked_against_the_query_with_the_prompts(app, page):
    ranking = rank(page, "aaa", "bbb", "aab", "", "  aaaa ", "abb")
    assert ranking == ["aaaa", "aab", "abb", "bbb"]
    assert page.locator("#ranking .score").all_text_contents() == [
        "1.000",
        "0.894",
        "0.447",
        "0.000",
    ]
    expect(page.locator("#message")).to_contain_text("4 texts, 5 tokens")
    asked = {body["model"]: body["input"] for body in app.asked}
    assert asked == {"tiny:query": ["aaa"], "tiny:document": ["bbb", "aab", "aaaa", "abb"]}
    widths = page.locator("#ranking .track span").evaluate_all(
        "bars => bars.map(b => b.style.width)"
    )
    assert widths[0] == "100%"
    assert widths[-1] == "0%"
    assert page.said == []


def test_a_model_without_prompts_is_asked_by_its_name(app, page):
    app.service.prompts = {"other": "x"}
    page.reload()
    rank(page, "a", "b")
    assert {body["model"] for body in app.asked} == {"tiny"}


@pytest.mark.parametrize("app", [FakeApp(FakeService(name="<i>tiny</i>"))])
def test_a_text_is_never_html(app, page):
    evil = '<img src=x onerror="document.title = 1"><b>a</b>'
    app.service.set(reason="<script>a</script>")
    assert rank(page, "a", evil) == [evil]
    expect(page.get_by_role("heading", level=1)).to_have_text("<i>tiny</i>")
    expect(page.locator("#reason")).to_have_text("<script>a</script>")
    assert page.locator("li b, main img, h1 i, #reason script").count() == 0
    assert page.said == []


def test_it_can_be_used_by_keys_alone(page):
    page.get_by_label("Query", exact=True).fill("aaa")
    page.keyboard.press("Enter")
    expect(page.locator("#ranking li")).to_have_count(5)
    page.keyboard.press("Tab")
    page.keyboard.press("ControlOrMeta+A")
    page.keyboard.type("ab")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#ranking .text")).to_have_text(["ab"])
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "rank"


REFUSALS = [
    (429, {"Retry-After": "7"}, "full", "has more to do than can wait. Try again in 7 seconds."),
    (503, {}, "it warms up", "can not embed now: it warms up"),
    (504, {}, "late", "did not get to it in time"),
    (422, {}, "text 0: has a lone surrogate", "Refused (422): text 0: has a lone surrogate"),
]


def test_a_refusal_is_said_in_words(app, page):
    for status, headers, message, words in REFUSALS:
        app.refuse = None
        assert rank(page, "a", "b") == ["b"]
        app.refuse = status, headers, message
        assert rank(page, "a", "b") == []
        expect(page.locator("#message")).to_contain_text(words)
    # A browser says itself that an answer was an error; nothing else is said.
    assert {line.partition(" (")[0] for line in page.said} == {
        f"Failed to load resource: the server responded with a status of {status}"
        for status, *_ in REFUSALS
    }


@pytest.mark.parametrize("app", [FakeApp(key="k-1")])
def test_a_key_is_asked_for_and_stays_in_the_tab(app, page):
    key = page.get_by_label("API key")
    expect(key).to_be_visible()
    assert rank(page, "a", "b") == []
    expect(page.locator("#message")).to_have_text("The server wants an API key.")
    expect(key).to_be_focused()
    key.fill("wrong")
    assert rank(page, "a", "b") == []
    expect(page.locator("#message")).to_have_text("The server does not know this API key.")
    key.fill("k-1")
    assert rank(page, "a", "b") == ["b"]
    page.reload()
    expect(key).to_have_value("k-1")
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.get_by_label("API key")).to_have_value("")


def test_nothing_is_asked_without_a_query_or_texts(app, page):
    assert rank(page, " ", "b") == []
    expect(page.locator("#message")).to_have_text("Write a query.")
    assert rank(page, "a", "", " ") == []
    expect(page.locator("#message")).to_have_text("Write at least one text.")
    assert app.asked == []


def test_a_hidden_page_asks_nothing(app, page):
    expect(page.locator("#state")).to_have_text("READY")
    page.evaluate(
        "Object.defineProperty(document, 'hidden', {get: () => window.away, configurable: true});"
        "window.away = true"
    )
    page.wait_for_timeout(1200)  # the poll that was planned before
    before = app.statuses
    page.wait_for_timeout(1200)
    assert app.statuses == before
    page.evaluate("window.away = false; document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_timeout(300)
    assert app.statuses == before + 1


def test_a_server_that_is_gone_is_said(browser):
    with served(FakeApp().make()) as address:
        page = browser.new_page()
        page.goto(address)
        expect(page.locator("#state")).to_have_text("READY")
    expect(page.locator("#state")).to_have_text("DOES NOT ANSWER")
    page.get_by_role("button", name="Rank").click()
    expect(page.locator("#message")).to_have_text("The server does not answer.")
    page.close()


def test_nothing_is_wider_than_the_screen(page):
    rank(page, "a" * 200, "b" * 300, "c")
    page.get_by_text("Call it from code").click()
    for width in (320, 390, 1280):
        page.set_viewport_size({"width": width, "height": 700})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_its_policy_lets_nothing_else_run(page):
    policy = page.request.get(page.url).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    page.evaluate(
        "document.body.append("
        "Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))"
    )
    assert page.evaluate("window.ran") is None
    assert any("Content Security Policy" in line for line in page.said)
