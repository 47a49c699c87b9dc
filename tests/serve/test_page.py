"""The chat page in a real browser, against a stand-in for the server (on the server itself: test_page_server.py).

Set MODELWORKS_SHOTS to a folder to keep pictures of what the tests saw.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra `e2e`")

from .page_browser import CHROMIUM, FLAGS, Seen, open_page  # noqa: E402
from .page_hostile import HOSTILE  # noqa: E402
from .page_stub import ANSWER, MODELS, PASSAGES, Stub, serving, stub_app  # noqa: E402

expect = sync_api.expect
expect.set_options(timeout=20_000)  # a busy machine is slow, not wrong
TAGS = set(
    "P BR CODE PRE STRONG EM A UL OL LI H3 H4 BLOCKQUOTE HR SPAN DIV BUTTON SVG PATH MARK SECTION HEADER FOOTER".split()
)
ATTRIBUTES = {
    *("class id href target rel role title tabindex start type width height viewbox focusable d".split()),
    *("aria-label aria-hidden aria-busy aria-expanded aria-controls data-test data-state".split()),
}
pytestmark = pytest.mark.timeout(600)  # a minute for all of them on a machine of their own, much more beside others
Opener = Callable[..., Seen]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("needs chromium on the path")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Stub]]:
    stub = Stub()
    with serving(stub_app(stub)) as url:
        yield url, stub


@pytest.fixture
def opened(browser: Any, server: tuple[str, Stub]) -> Iterator[Opener]:
    pages: list[Seen] = []
    url, stub = server
    stub.__init__()  # type: ignore[misc]

    def open_one(**options: Any) -> Seen:
        pages.append(open_page(browser, url, stub, **options))
        return pages[-1]

    yield open_one
    for seen in pages:
        seen.check()
        seen.page.context.close()


# how long the answer was at each change of the page, while it was written
GROWTH = """() => {
  window.lengths = [];
  const look = () => {
    const text = document.querySelector("[data-state=writing] .prose")?.textContent.length;
    if (text) window.lengths.push(text);
  };
  new MutationObserver(look).observe(document.querySelector("main"), { subtree: true, childList: true, characterData: true });
}"""


def test_answer_streams_with_its_passages(opened: Opener) -> None:
    seen = opened()
    page = seen.page
    expect(page.get_by_role("heading", level=1)).to_have_text(str(MODELS[0]["title"]))
    expect(page.locator("[data-test=example]")).to_have_count(4)
    expect(page.locator("#question")).to_be_focused()
    seen.shot("welcome")
    page.evaluate(GROWTH)
    page.locator("[data-test=example]").first.click()
    answer = page.locator("[data-test=answer]").last
    expect(answer).to_have_attribute("data-state", "done")
    lengths = page.evaluate("window.lengths")
    assert len(set(lengths)) > 2, "the text did not grow while it was written"
    expect(answer.locator("pre code")).to_have_text(">>> os.path.join('/var', 'log', 'app.txt')\n'/var/log/app.txt'")
    expect(answer.locator("li")).to_have_count(2 + 2)  # two points, two chips
    expect(answer.locator("strong")).to_have_text("trailing separator")
    expect(answer.locator("[data-test=grounding]")).to_contain_text("In its own words, checked")
    assert seen.stub.bodies[-1] == {
        "model": "assistant",
        "messages": [{"role": "user", "content": "What does os.path.join do?"}],
        "stream": True,
    }
    chips = answer.locator("[data-test=citation]")
    expect(chips).to_have_count(2)
    chips.first.click()
    passage = answer.locator("[data-test=passage]")
    expect(passage.get_by_role("heading")).to_have_text(PASSAGES[0]["title"])
    expect(passage).to_contain_text("Join one or more path segments intelligently.")
    expect(passage).to_contain_text(PASSAGES[0]["source"])
    expect(passage.locator("mark")).to_have_text("If a segment is an absolute path, all previous segments are ignored.")
    expect(chips.first).to_have_attribute("aria-expanded", "true")
    seen.shot("cited")
    answer.locator("button.cite").nth(1).click()  # the mark [2] in the text
    expect(passage.get_by_role("link")).to_have_attribute("href", PASSAGES[1]["source"])
    expect(passage.get_by_role("link")).to_have_attribute("rel", re.compile("noopener"))
    passage.get_by_role("button").focus()
    page.keyboard.press("Escape")
    expect(passage).to_have_count(0)
    expect(chips.nth(1)).to_be_focused()
    # the next question carries the conversation; a new conversation carries nothing
    expect(seen.ask("How do I read a CSV file?").locator("[data-test=grounding]")).to_contain_text("Quoted")
    assert [turn["role"] for turn in seen.stub.bodies[-1]["messages"]] == ["user", "assistant", "user"]
    assert seen.stub.bodies[-1]["messages"][1]["content"] == ANSWER
    expect(seen.ask("What is the capital of France?").locator("[data-test=grounding]")).to_contain_text("Does not know")
    seen.shot("grounding")
    page.reload()  # the tab remembers the conversation
    expect(page.locator("[data-test=answer]")).to_have_count(3)
    page.locator("[data-test=new]").click()
    expect(page.locator("[data-test=answer]")).to_have_count(0)
    seen.ask("And now?")
    assert len(seen.stub.bodies[-1]["messages"]) == 1


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_ends_the_answer_on_both_sides(opened: Opener, how: str) -> None:
    seen = opened()
    answer = seen.ask("slow", wait=False)
    expect(answer).to_contain_text("word3")
    seen.shot("writing")
    if how == "button":
        seen.page.locator("[data-test=stop]").click()
    else:
        seen.page.keyboard.press("Escape")
    expect(answer).to_have_attribute("data-state", "stopped")
    expect(answer).to_contain_text("Stopped.")
    assert seen.stub.stopped.wait(5), "the server was not told"
    text = answer.inner_text()
    seen.page.wait_for_timeout(200)
    assert answer.inner_text() == text
    expect(seen.ask("What does os.path.join do?")).to_have_attribute("data-state", "done")


def test_new_conversation_while_an_answer_is_written(opened: Opener) -> None:
    seen = opened()
    expect(seen.ask("slow", wait=False)).to_contain_text("word1")
    seen.page.locator("[data-test=new]").click()
    expect(seen.page.locator("[data-test=answer]")).to_have_count(0)
    expect(seen.ask("What does os.path.join do?")).to_have_attribute("data-state", "done")
    assert seen.page.locator("[data-test=answer]").count() == 1


def test_keyboard(opened: Opener) -> None:
    seen = opened()
    box = seen.page.locator("#question")
    box.fill("first")
    seen.page.keyboard.press("Shift+Enter")
    seen.page.keyboard.type("second")
    assert box.input_value() == "first\nsecond"
    box.evaluate(
        "box => box.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true}))"
    )
    assert seen.page.locator("[data-test=answer]").count() == 0, "Enter that chooses a word must not send"
    seen.page.keyboard.press("Enter")
    expect(seen.page.locator("[data-test=question]")).to_have_text("first\nsecond")
    expect(box).to_have_value("")
    expect(box).to_be_focused()


def test_language_and_theme(opened: Opener) -> None:
    seen = opened()
    page = seen.page
    colour = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(colour)
    page.locator("[data-test=theme]").click()
    dark = page.evaluate(colour)
    assert dark != light
    page.locator("[data-test=language]").click()
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    expect(page.locator("#question")).to_have_attribute("placeholder", "输入问题")
    page.reload()
    expect(page.locator("#question")).to_have_attribute("placeholder", "输入问题")
    assert page.evaluate(colour) == dark
    page.emulate_media(color_scheme="dark")
    page.locator("[data-test=theme]").click()
    assert page.evaluate(colour) == light
    page.locator("[data-test=theme]").click()  # back to what the system has: it is followed again
    assert page.evaluate("localStorage.getItem('modelworks.theme')") is None
    page.emulate_media(color_scheme="light")
    assert page.evaluate(colour) == light


def test_follows_the_browser(opened: Opener) -> None:
    seen = opened(locale="zh-CN", color_scheme="dark")
    expect(seen.page.locator("#question")).to_have_attribute("placeholder", "输入问题")
    answer = seen.ask("os.path.join 有什么用？")
    expect(answer.locator("strong")).to_have_text("连接")
    expect(answer.locator("[data-test=grounding]")).to_contain_text("自行表述，已核对")
    seen.shot("zh-dark")


@pytest.mark.parametrize("width", [320, 375, 768])
def test_narrow_screens_do_not_scroll_sideways(opened: Opener, width: int) -> None:
    seen = opened(viewport={"width": width, "height": 700}, has_touch=True, is_mobile=True)
    page = seen.page
    expect(page.locator("[data-test=example]").first).to_be_enabled()
    seen.stub.payloads["wide"] = "w" * 500 + "\n\n```\n" + "c" * 500 + "\n```\n\n" + "- " * 40 + "\n\n" + "路" * 300
    for question in ("What does os.path.join do?", "wide", "q" * 300):
        answer = seen.ask(question)
        answer.locator("[data-test=citation]").first.click()
        sizes = page.evaluate(
            "[...document.querySelectorAll('html, body, main, [data-test=answer], [data-test=passage]')]"
            ".map((e) => [e.tagName, e.scrollWidth, e.clientWidth])"
        )
        assert all(scroll <= client for _, scroll, client in sizes), sizes
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth && visualViewport.scale === 1")
    seen.shot(f"phone-{width}")


def test_errors_are_one_sentence_and_can_be_retried(opened: Opener) -> None:
    seen = opened()
    page, stub = seen.page, seen.stub
    problem = page.locator("[data-test=problem]")
    for question, kind, sentence in [
        ("broken", "broken", "The connection broke before the answer was whole."),
        ("error", "failed", "The model stopped at a number that is not finite."),
        ("bad", "refused", "temperature must be at most 2."),
    ]:
        expect(seen.ask(question)).to_have_attribute("data-state", "failed")
        expect(problem).to_have_attribute("data-kind", kind)
        expect(problem.locator("p")).to_have_text(sentence)
        expect(problem).to_have_attribute("role", "alert")
    seen.shot("error")
    # busy: the server says when to come back
    stub.busy = 1
    seen.ask("What does os.path.join do?")
    retry = page.locator("[data-test=retry]")
    expect(retry).to_be_disabled()
    expect(retry).to_have_text("Try again in 1 s")
    expect(retry).to_be_enabled(timeout=5000)
    retry.click()
    expect(page.locator("[data-test=answer]").last).to_have_attribute("data-state", "done")
    expect(problem).to_have_count(0)
    # failed turns are not told to the model
    assert [turn["role"] for turn in stub.bodies[-1]["messages"]] == ["user"]
    # a conversation that no longer fits is shortened, and the reader is told
    seen.ask("How do I read a CSV file?")
    answer = seen.ask("long question")
    expect(answer).to_contain_text("its earliest turns were left out")


def test_server_gone_and_back(browser: Any) -> None:
    if CHROMIUM is None:
        pytest.skip("needs chromium on the path")
    stub = Stub()
    with serving(stub_app(stub)) as url:
        seen = open_page(browser, url, stub)
        expect(seen.page.locator("[data-test=example]").first).to_be_enabled()
        seen.page.route("**/v1/**", lambda route: route.abort("connectionrefused"))
        seen.ask("What does os.path.join do?")
        problem = seen.page.locator("[data-test=problem]")
        expect(problem.locator("p")).to_have_text("The server cannot be reached; check that it is still running.")
        seen.page.reload()  # not even the list of models comes
        expect(problem).to_have_attribute("data-kind", "unreachable")
        seen.page.unroute("**/v1/**")
        seen.page.locator("[data-test=retry]").click()
        expect(seen.page.locator("[data-test=answer]").last).to_have_attribute("data-state", "done")
        expect(problem).to_have_count(0)
        seen.check()
        seen.page.context.close()


def test_key_is_asked_for_and_kept_in_the_tab_only(opened: Opener, server: tuple[str, Stub]) -> None:
    server[1].key = None
    seen = opened()
    seen.stub.key = "open sesame"
    page = seen.page
    page.reload()
    problem = page.locator("[data-test=problem]")
    expect(problem.locator("p")).to_have_text("This server asks for a key.")
    seen.shot("key")
    problem.locator("input").fill("wrong")
    page.keyboard.press("Enter")
    expect(problem.locator("p")).to_have_text("The server did not accept this key.")
    problem.locator("input").fill("open sesame")
    page.keyboard.press("Enter")
    expect(problem).to_have_count(0)
    expect(seen.ask("What does os.path.join do?")).to_have_attribute("data-state", "done")
    assert page.evaluate("JSON.stringify(localStorage)").find("sesame") < 0
    assert "sesame" in page.evaluate("JSON.stringify(sessionStorage)")
    # a key that is withdrawn in the middle of a conversation: asked again, and the question goes on
    seen.stub.key = "another"
    seen.ask("How do I read a CSV file?")
    expect(problem).to_have_attribute("data-kind", "key")
    problem.locator("input").fill("another")
    page.keyboard.press("Enter")
    expect(page.locator("[data-test=answer]").last).to_have_attribute("data-state", "done")


def test_model_is_chosen(opened: Opener) -> None:
    seen = opened()
    picker = seen.page.get_by_role("combobox")
    expect(picker.locator("option")).to_have_text([str(MODELS[0]["title"]), "base"])
    picker.select_option("base")
    expect(seen.page.get_by_role("heading", level=1)).to_have_text("What would you like to know?")
    seen.ask("hello")
    assert seen.stub.bodies[-1]["model"] == "base"


def test_copy(opened: Opener) -> None:
    seen = opened(permissions=["clipboard-read", "clipboard-write"])
    seen.ask("What does os.path.join do?").locator("[data-test=copy]").click()
    expect(seen.page.locator("[data-test=copy]")).to_have_text("Copied")
    assert seen.page.evaluate("navigator.clipboard.readText()") == ANSWER


# opens the passage, then lists the elements of the answer
SHAPE = """async (root) => {
  root.querySelector("[data-test=citation]").click();
  await new Promise((resolve) => setTimeout(resolve, 0));
  return [...root.querySelectorAll("*")].map((e) => [e.tagName.toUpperCase(), e.getAttributeNames(), e.getAttribute("href")]);
}"""


def test_hostile_text_runs_nothing_and_fetches_nothing(opened: Opener) -> None:
    seen = opened()
    page = seen.page
    assert len(HOSTILE) >= 50
    for number, payload in enumerate(HOSTILE):
        seen.stub.payloads[payload.strip().replace("\x00", "\ufffd")] = payload
        seen.stub.payloads[payload.strip()] = payload
        if number % 10 == 0 and number:
            page.locator("[data-test=new]").click()
        answer = seen.ask(payload)
        expect(answer).to_have_attribute("data-state", "done")
        shape = answer.evaluate(SHAPE)
        assert "SECTION" in {tag for tag, _, _ in shape}, "the passage did not open"
        for tag, names, href in shape:
            assert tag in TAGS, (payload, tag)
            strange = {name.lower() for name in names} - ATTRIBUTES
            assert not {name for name in strange if not name.startswith("svelte-")}, (payload, strange)
            assert href is None or href.startswith(("http://", "https://")), (payload, href)
            assert href is None or "@" not in href.split("/")[2], (payload, href)
    # where a link leads is written beside it
    page.locator("[data-test=new]").click()
    seen.stub.payloads["link"] = "[your bank](https://xn--bnk-sna.test/login)"
    expect(seen.ask("link").locator(".host")).to_have_text(" (xn--bnk-sna.test)")


def test_hostile_words_of_the_server_itself(opened: Opener) -> None:
    seen = opened()
    page = seen.page
    payload = HOSTILE[1]
    model = {"id": payload, "title": payload, "description": payload, "examples": [payload, 7, None]}
    page.route("**/v1/models", lambda route: route.fulfill(json={"data": [model, None, 3, {"id": None}]}))
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=400, json={"error": {"message": payload}}))
    page.reload()
    expect(page.get_by_role("heading", level=1)).to_have_text(payload)
    page.locator("[data-test=example]").first.click()
    expect(page.locator("[data-test=problem] p")).to_have_text(payload)
    assert page.locator("img, script[src*=evil]").count() == 0


def test_hostile_conversation_in_the_store_of_the_tab(opened: Opener) -> None:
    seen = opened()
    for kept in ("not json", "{}", '{"turns": 3}', '{"turns": [null, {"question": 1}]}'):
        seen.page.evaluate("kept => sessionStorage.setItem('modelworks.conversation', kept)", kept)
        seen.page.reload()
        expect(seen.page.locator("[data-test=example]").first).to_be_enabled()


def fulfill(answer: dict[str, Any], route: Any) -> None:
    route.fulfill(json={"choices": [answer]})


def test_long_hostile_text_is_read_in_linear_time(opened: Opener) -> None:
    seen = opened()
    page = seen.page
    for unit in [
        "*a ",
        "**a* ",
        "[",
        "![",
        "`a``",
        "> ",
        "- a\n  ",
        "\\*",
        "<a ",
        "[a](",
        "https://a",
        "_*~`",
        "[1]",
        "***",
    ]:
        answer = {"message": {"content": unit * (50_000 // len(unit))}, "finish_reason": "stop"}
        page.route("**/v1/chat/completions", partial(fulfill, answer))
        started = time.monotonic()
        expect(seen.ask("huge")).to_have_attribute("data-state", "done")
        assert time.monotonic() - started < 30, unit  # far more than it takes; a search that runs back takes minutes
        page.locator("[data-test=new]").click()
        page.unroute("**/v1/chat/completions")


MARKDOWN = [
    ("a *b* **c** `d`", "a <em>b</em> <strong>c</strong> <code>d</code>"),
    ("join(*args, **kwargs)", "join(*args, **kwargs)"),
    ("`__init__` and __init__ and snake_case_name", "<code>__init__</code> and __init__ and snake_case_name"),
    ("2 * 3 * 4", "2 * 3 * 4"),
    ("***both***", "<strong><em>both</em></strong>"),
    ("``a ` b``", "<code>a ` b</code>"),
    ("这是**重点**吗", "这是<strong>重点</strong>吗"),
    (r"\*plain\*", "*plain*"),
    ("a\nb", "a<br>b"),
    ("one `open", "one `open"),
]


def test_markdown_is_read_as_meant(opened: Opener) -> None:
    seen = opened()
    for text, html in MARKDOWN:
        seen.stub.payloads[text] = text
        prose = seen.ask(text).locator(".prose")
        shown = prose.evaluate("e => e.innerHTML")
        shown = re.sub(r"<!--.*?-->| class=\"[^\"]*\"", "", shown).strip()
        assert shown == f"<p>{html}</p>"
    blocks = "# Title\ntext\n- a\n- b\n  1. x\n  2. y\n\n3. three\n4. four\n\n> said\n\n>>> 1 + 1\n2\n\nend\n\n---\n\n~~~\nopen <b>"
    seen.stub.payloads["blocks"] = blocks
    prose = seen.ask("blocks").locator(".prose")
    assert prose.evaluate("e => [...e.children].map(c => c.tagName).join(' ')") == "H3 P UL OL BLOCKQUOTE PRE P HR PRE"
    assert prose.locator("ul > li").count() == 2 and prose.locator("ul ol > li").count() == 2
    assert prose.locator(":scope > ol").get_attribute("start") == "3"
    expect(prose.locator("pre").first).to_have_text(">>> 1 + 1\n2")
    expect(prose.locator("pre").last).to_have_text("open <b>")
