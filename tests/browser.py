"""Chromium of the system, for the tests that open what medad writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

CHROMIUM = os.environ.get("MEDAD_CHROMIUM", "/usr/bin/chromium")
# WebGL without a graphics card; continuous integration is root, for whom Chromium has no sandbox.
ARGUMENTS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


@contextmanager
def chromium() -> Iterator[Callable[[list[str]], Browser]]:
    """Starts Chromium with arguments; fails the test where there is none."""
    if not Path(CHROMIUM).is_file():
        pytest.fail(f"no browser at {CHROMIUM}: apt install chromium, or set MEDAD_CHROMIUM to its path")
    with sync_playwright() as playwright:
        yield lambda arguments: playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
