"""A headless browser for the tests of pages; in CI it must be there."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_REMEDY = "no browser: install Chromium (Debian: apt-get install chromium) and playwright (pip install playwright)"


def lacking(reason: str) -> None:
    """Skip, but in CI fail."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, as playwright drives it."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        lacking(_REMEDY)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        lacking(_REMEDY)
    with sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield launched
        launched.close()
