"""A headless browser for the tests of pages, and what is seen in its pictures."""

from __future__ import annotations

import io
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome")


def start():
    """Yields a browser, or skips: CI installs one and fails if a line says that there was none."""
    driver = pytest.importorskip("playwright.sync_api", reason="no browser: playwright is not installed")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)}")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found)
        yield browser
        browser.close()


@contextmanager
def opened(browser, file, *, width=1280, scheme="light"):
    """The page of a file; whatever it complains about or asks of a network fails the test."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    complaints, asked = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    yield page
    assert complaints == []
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [file.as_uri()]
    context.close()


def picture(place):
    """What a place of the page, or the page, looks like: (height, width, 3), 0 to 255."""
    return np.asarray(Image.open(io.BytesIO(place.screenshot())).convert("RGB"))


def share(pixels, color, within=40):
    """The share of pixels that have about a colour, such as "#0072B2"."""
    wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    return float((np.abs(pixels.astype(int) - wanted).max(axis=-1) <= within).mean())
