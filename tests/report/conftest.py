"""A browser, for pages of reports."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

#: What Debian and others call a Chromium. `make test` installs it where apt-get can.
CHROMIUM = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
#: With the value `required`, a browser that is not installed is a failure; else a skipped test.
SWITCH = "LLAVA_REMAP_PROGRAMS"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium, without a window and without a profile."""
    chromium = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if chromium is None:
        why = f"none of {', '.join(CHROMIUM)} is installed: run `make chromium`, which tries to."
        (pytest.fail if os.environ.get(SWITCH) == "required" else pytest.skip)(why)
    driven = pytest.importorskip("playwright.sync_api", reason="run `make install` again")
    with (
        driven.sync_playwright() as driver,
        driver.chromium.launch(executable_path=chromium) as launched,
    ):
        yield launched
