"""A page in headless Chromium that remembers everything it did besides what was asked of it."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import expect

from .page_stub import Stub

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => window.violations.push(event.violatedDirective + " " + event.blockedURI));
"""


@dataclass
class Seen:
    """What a page did besides what was asked of it."""

    url: str
    page: Any
    stub: Stub
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def ask(self, question: str, wait: bool = True) -> Any:
        """Types a question, sends it with Enter, waits until the answer is whole; gives the answer's element."""
        self.page.locator("#question").fill(question)
        self.page.keyboard.press("Enter")
        answer = self.page.locator("[data-test=answer]").last
        if wait:
            expect(answer).to_have_attribute("data-state", re.compile("done|failed|stopped"), timeout=60_000)
        return answer

    def shot(self, name: str) -> None:
        if folder := os.environ.get("MODELWORKS_SHOTS"):
            self.page.wait_for_timeout(200)
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"))

    def check(self) -> None:
        """No script ran, nothing was fetched from elsewhere, the content policy had nothing to say."""
        assert self.page.evaluate("window.pwned === undefined")
        assert self.page.evaluate("window.violations") == []
        assert [url for url in self.requests if not url.startswith((self.url, "data:"))] == []
        assert self.complaints == []


def open_page(browser: Any, url: str, stub: Stub, **options: Any) -> Seen:
    options = {"viewport": {"width": 1200, "height": 800}, "locale": "en-US", "color_scheme": "light"} | options
    context = browser.new_context(**options)
    context.add_init_script(WATCH)
    page = context.new_page()
    seen = Seen(url, page, stub)
    context.on("request", lambda request: seen.requests.append(request.url))
    context.on("dialog", lambda dialog: (seen.complaints.append(f"dialog {dialog.message}"), dialog.dismiss()))
    context.on("page", lambda other: seen.complaints.append(f"window {other.url}"))
    page.on("pageerror", lambda error: seen.complaints.append(f"error {error}"))
    # a refused request is reported by the browser itself: that is the point of some tests here
    page.on(
        "console",
        lambda message: (
            seen.complaints.append(message.text)
            if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource")
            else None
        ),
    )
    page.goto(url)
    return seen
