"""The page in headless Chromium, served by a real server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from serving import serving

from twofold.run import load

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra interop")
BROWSER = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="needs Chromium on the path")]


@pytest.fixture
def page() -> Iterator[Any]:
    """The page of a server with a key. An error in its script, or a request to another host, fails the test."""
    with serving(load("tiny"), key="open sesame") as served, playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page()
        complaints: list[str] = []
        asked: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"http://127.0.0.1:{served.port}/")
        yield page
        browser.close()
        assert not complaints
        assert all(url.startswith(f"http://127.0.0.1:{served.port}/") for url in asked)


def test_a_problem_is_solved_on_the_page(page: Any) -> None:
    page.click("#go")
    page.locator("#key-row").wait_for(state="visible")  # the page asks for the key after a refusal
    page.fill("#key", "open sesame")
    page.fill("#problem", "Start with 47. Add 38. What is the result?")
    page.select_option("#n", "8")
    page.click("#go")
    page.get_by_text("Done.", exact=True).wait_for(timeout=20_000)
    assert page.inner_text("#answer") == "85"
    samples = page.locator("#samples > li")
    assert samples.count() == 8
    assert all("P(Yes)" in text and r"\boxed{85}" in text for text in samples.all_inner_texts())
    assert "100%" in page.inner_text("#votes")
    cost = page.inner_text("#cost")
    assert all(word in cost for word in ("Prompt", "Generated", "To judge", "Time"))


def test_the_page_says_what_the_server_knows(page: Any) -> None:
    page.locator("#key-row").wait_for(state="visible")  # the page asks for the key when it is loaded
    page.fill("#key", "open sesame")
    page.press("#key", "Tab")
    page.get_by_text("knows arithmetic puzzles").wait_for()
    assert page.inner_text("#about").startswith("Model: tiny.") and "2048 tokens" in page.inner_text("#about")
    assert page.get_attribute("#tokens", "max") == "2048"


def test_the_posterior_is_no_share_of_votes_and_the_answer_is_announced(page: Any) -> None:
    page.fill("#key", "open sesame")
    page.fill("#problem", "Start with 47. Add 38. What is the result?")
    page.select_option("#rule", "posterior")
    page.select_option("#n", "4")
    page.press("#problem", "Control+Enter")
    page.get_by_text("Done.", exact=True).wait_for(timeout=20_000)
    said = page.inner_text("#confidence")
    assert said.startswith("Posterior probability ") and said.endswith("%") and "votes" not in said
    assert page.inner_text("#votes-title") == "Posterior probabilities"
    live = page.locator("[aria-live=polite]")
    assert live.inner_text() == f"Done. The answer is 85. {said}."


def test_what_is_typed_is_never_markup(page: Any) -> None:
    page.click("#go")
    page.fill("#key", "open sesame")
    page.fill("#problem", "<img src=x onerror='document.title=1'> Add 2 and 3.")
    page.click("#go")
    page.get_by_text("Done.", exact=True).wait_for(timeout=20_000)
    assert page.title() != "1" and page.locator("img").count() == 0
