"""A headless Chromium, as Debian's packages chromium and chromium-driver bring it; nothing is downloaded."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

DESKTOP = (1600, 1000)
PHONE = (390, 844)


@dataclass
class Browser:
    """What tests do with a page; shadow roots are looked into everywhere."""

    driver: Any
    shots: Path

    def open(self, address: str) -> None:
        """Open a page from its beginning, even where only what follows the ``#`` differs."""
        self.driver.get("about:blank")
        self.driver.get(address)

    def resize(self, width: int, height: int, phone: bool = False) -> None:
        """Show pages in a window of this size in CSS pixels; a phone also obeys the page's own viewport."""
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def all(self, selector: str) -> list[Any]:
        """Elements of the page that are shown and match a CSS selector, those inside of shadow roots included."""
        found: list[Any] = self.driver.execute_script(_FIND, selector)
        return found

    def texts(self, selector: str) -> list[str]:
        """Their texts, as they are read on the page."""
        script = f"{_DEEP} return deep(arguments[0]).map(one => said(one).replace(/\\s+/g, ' ').trim())"
        found: list[str] = self.driver.execute_script(script, selector)
        return found

    def wait(self, selector: str, containing: str = "", seconds: float = 20) -> Any:
        """The first such element, as soon as there is one with this text."""

        def first() -> Any:
            found = zip(self.all(selector), self.texts(selector), strict=False)
            return next((one for one, text in found if containing in text), None)

        return self.until(first, f"{selector} with '{containing}'", seconds)

    def click(self, element: Any) -> None:
        """Click an element, even where something lies above it for the moment."""
        self.driver.execute_script("arguments[0].click()", element)

    def until(self, condition: Callable[[], Any], what: str, seconds: float = 20) -> Any:
        """What the condition returns as soon as it is true.

        Raises:
            AssertionError: It is not within this time; a picture of the page is kept.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := condition():
                return found
            time.sleep(0.1)
        raise AssertionError(f"no {what} within {seconds} s; see {self.keep('failed')}")

    def keep(self, name: str) -> Path:
        """Write a picture of the window."""
        path = self.shots / f"{name}.png"
        self.driver.save_screenshot(str(path))
        return path


_DEEP = """
const deep = selector => {
  const found = [];
  const look = root => {
    for (const one of root.querySelectorAll('*')) {
      if (one.matches(selector) && one.getClientRects().length) found.push(one);
      if (one.shadowRoot) look(one.shadowRoot);
    }
  };
  look(document);
  return found;
};
const said = one => {
  const inner = one.shadowRoot ? [...one.shadowRoot.children].map(said).join(' ') : '';
  const below = one.shadowRoot || !one.querySelector('*') ? '' : [...one.children].map(said).join(' ');
  const plain = one.innerText ?? one.textContent;
  return inner || below.length > plain.length ? inner + ' ' + (one.shadowRoot ? plain : below) : plain;
};
"""
_FIND = f"{_DEEP} return deep(arguments[0])"


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One Chromium for all tests; they are skipped where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="pip install -e '.[browser]'")
    program, control = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or control is None:
        pytest.skip("needs Debian's packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "hide-scrollbars"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(control))
    yield started
    started.quit()


@pytest.fixture
def browser(driver: Any, tmp_path: Path) -> Iterator[Browser]:
    """The browser with a desktop's window; pictures go to ``$PLASTIBENCH_SCREENSHOTS``."""
    shots = Path(os.environ.get("PLASTIBENCH_SCREENSHOTS") or tmp_path)
    shots.mkdir(parents=True, exist_ok=True)
    opened = Browser(driver, shots)
    opened.resize(*DESKTOP)
    yield opened
    driver.get("about:blank")
