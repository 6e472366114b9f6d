"""Debian's Chromium, driven by Playwright, and what is asked of every page in it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
VIOLATIONS_ONLY = {"resultTypes": ["violations"]}  # to describe what is right as well takes axe longer than all else


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Return a running Chromium."""
    if not CHROMIUM.exists():
        pytest.skip(f"needs Chromium at {CHROMIUM} ('apt-get install chromium')")
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - only these tests need it

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield chromium
        chromium.close()


@contextmanager
def chromium() -> "Iterator[Page]":
    """Open a new browser with one empty page."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - only these need it

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser.new_page(viewport={"width": 1280, "height": 800})
        browser.close()


def complaints(page: "Page") -> list[str]:
    """Collect from now on what a page's scripts and its content policy complain about."""
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    return said


def barriers(page: "Page", rules: Sequence[str] = ()) -> list[str]:
    """What axe finds that keeps people out, by all rules or some: serious and critical only."""
    from axe_core_python.sync_playwright import Axe  # noqa: PLC0415

    chosen = {"runOnly": list(rules)} if rules else {}
    found = Axe().run(page, options={**VIOLATIONS_ONLY, **chosen})["violations"]
    return [
        f"{page.url}: {violation['id']}: {node['html'][:120]}"
        for violation in found
        if violation["impact"] in {"serious", "critical"}
        for node in violation["nodes"][:3]
    ]
