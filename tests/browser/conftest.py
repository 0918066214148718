"""A headless Chromium from Debian's packages chromium and chromium-driver; nothing is downloaded."""

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
    """What tests do with a page. All queries include shadow roots."""

    driver: Any
    shots: Path

    def open(self, address: str) -> None:
        """Load a page, even if only the fragment after ``#`` differs from the current one."""
        self.driver.get("about:blank")
        self.driver.get(address)

    def resize(self, width: int, height: int, phone: bool = False) -> None:
        """Set the size of the window in CSS pixels; a phone also uses the viewport that the page asks for."""
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def all(self, selector: str) -> list[Any]:
        """Visible elements that match a CSS selector."""
        found: list[Any] = self.driver.execute_script(_FIND, selector)
        return found

    def texts(self, selector: str) -> list[str]:
        """Visible texts of these elements."""
        script = f"{_DEEP} return deep(arguments[0]).map(one => said(one).replace(/\\s+/g, ' ').trim())"
        found: list[str] = self.driver.execute_script(script, selector)
        return found

    def wait(self, selector: str, containing: str = "", seconds: float = 20) -> Any:
        """Wait for a matching element that contains a text, and return the first one."""

        def first() -> Any:
            found = zip(self.all(selector), self.texts(selector), strict=False)
            return next((one for one, text in found if containing in text), None)

        return self.until(first, f"{selector} with '{containing}'", seconds)

    def click(self, element: Any) -> None:
        """Click an element, even if another one covers it."""
        self.driver.execute_script("arguments[0].click()", element)

    def until(self, condition: Callable[[], Any], what: str, seconds: float = 20) -> Any:
        """Wait until a condition is true, and return its value.

        Raises:
            AssertionError: It is false until the timeout; a screenshot is kept.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := condition():
                return found
            time.sleep(0.1)
        raise AssertionError(f"no {what} within {seconds} s; see {self.keep('failed')}")

    def keep(self, name: str) -> Path:
        """Write a screenshot of the window."""
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
    """One Chromium for all tests, which are skipped if it is not installed."""
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
    """The browser with a desktop window; screenshots go to ``$PLASTIBENCH_SCREENSHOTS``."""
    shots = Path(os.environ.get("PLASTIBENCH_SCREENSHOTS") or tmp_path)
    shots.mkdir(parents=True, exist_ok=True)
    opened = Browser(driver, shots)
    opened.resize(*DESKTOP)
    yield opened
    driver.get("about:blank")
