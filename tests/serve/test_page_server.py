"""The chat page on the server itself: a tiny real language model, and an assistant that cites."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr

pytest.importorskip("fastapi", reason="needs the extra `serve`")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra `e2e`")

from modelworks.data.grounding import Answer  # noqa: E402
from modelworks.data.retrieve import Passage  # noqa: E402
from modelworks.serve.app import create_app  # noqa: E402
from modelworks.serve.settings import ServeSettings  # noqa: E402

from ..infer.tiny import language_model  # noqa: E402
from .page_browser import CHROMIUM, FLAGS, open_page  # noqa: E402
from .page_stub import Stub, serving  # noqa: E402

expect = sync_api.expect
pytestmark = pytest.mark.timeout(600)
PASSAGE = Passage("os.path.join", "os.path.join", "Join paths.\nA later absolute path wins.", "Lib/posixpath.py")


class Desk:
    """Answers as an assistant with passages does, from a table."""

    about = {"title": "Desk", "description": "Knows one thing.", "examples": ["What wins in os.path.join?"]}  # noqa: RUF012

    def __init__(self) -> None:
        model = language_model()
        self.tokenizer, self.engine = model.tokenizer, model.engine

    def answer(self, messages: list[dict[str, str]]) -> Answer:
        if "wins" in messages[-1]["content"]:
            return Answer("A later absolute path wins.", "quoted", (PASSAGE,))
        return Answer("I don't know.", "declined")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("needs chromium on the path")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def test_page_and_server_together(browser: Any) -> None:
    app = create_app({"desk": Desk(), "free": language_model()}, ServeSettings(api_keys=[]))
    with serving(app) as url:
        seen = open_page(browser, url, Stub())
        page = seen.page
        expect(page.get_by_role("heading", level=1)).to_have_text("Desk")
        page.locator("[data-test=example]").click()
        answer = page.locator("[data-test=answer]").last
        expect(answer.locator("[data-test=grounding]")).to_contain_text("Quoted")
        expect(answer.locator(".prose")).to_have_text("A later absolute path wins.")
        answer.locator("[data-test=citation]").click()
        expect(answer.locator("[data-test=passage]")).to_contain_text("Join paths.")
        expect(answer.locator("mark")).to_have_text("A later absolute path wins.")
        expect(seen.ask("What else?").locator("[data-test=grounding]")).to_contain_text("Does not know")
        seen.shot("server")
        # a real model writes freely (here: noise); it streams, and it can be stopped
        page.locator("[data-test=new]").click()
        page.get_by_role("combobox").select_option("free")
        answer = seen.ask("hello", wait=False)
        expect(answer).to_have_attribute("data-state", re.compile("writing|done"))
        page.keyboard.press("Escape")
        expect(answer).to_have_attribute("data-state", re.compile("stopped|done"))
        assert answer.locator("[data-test=grounding]").count() == 0
        seen.shot("server-free")
        page.locator("#question").fill("word " * 2000)
        page.keyboard.press("Enter")
        expect(page.locator("[data-test=problem]")).to_have_attribute("data-kind", "too_long")
        seen.check()
        page.context.close()


def test_question_is_quicker_than_the_list_of_models(browser: Any) -> None:
    """It waits for the list; it used to be sent to a model without a name, and failed."""
    app = create_app({"desk": Desk()}, ServeSettings(api_keys=[]))
    with serving(app) as url:
        seen = open_page(browser, "about:blank", Stub())
        seen.url = url
        seen.page.route("**/v1/models", lambda route: (seen.page.wait_for_timeout(500), route.continue_()))
        seen.page.goto(url, wait_until="commit")
        expect(seen.ask("What wins?").locator("[data-test=grounding]")).to_contain_text("Quoted")
        seen.check()
        seen.page.context.close()


def test_key_of_the_server(browser: Any) -> None:
    app = create_app({"desk": Desk()}, ServeSettings(api_keys=[SecretStr("open sesame")]))
    with serving(app) as url:
        seen = open_page(browser, url, Stub())
        problem = seen.page.locator("[data-test=problem]")
        expect(problem.locator("p")).to_have_text("This server asks for a key.")
        problem.locator("input").fill("open sesame")
        seen.page.keyboard.press("Enter")
        expect(problem).to_have_count(0)
        expect(seen.ask("What wins?").locator("[data-test=grounding]")).to_contain_text("Quoted")
        seen.check()
        seen.page.context.close()
