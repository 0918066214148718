"""The HTML leaderboard in a browser, on a desktop and on a phone."""

from __future__ import annotations

from pathlib import Path

import pytest

from plastibench.leaderboard.html import page
from plastibench.leaderboard.standings import standings
from plastibench.plotting.leaderboard_plots import plot_settings
from tests.browser.conftest import PHONE, Browser
from tests.leaderboard.made import acting, result

pytestmark = pytest.mark.browser
_FINALS = {"none": (0.5, 0.0), "reset": (0.7, 0.4), "rnr": (0.65, 0.02), "shrink-perturb-keep80": (0.6, 0.1)}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    found = [
        result(name, seed, final + 0.01 * seed, drop=drop)
        for name, (final, drop) in _FINALS.items()
        for seed in range(3)
    ]
    found += [acting(name, seed, 100.0 + seed) for name in ("none", "reset") for seed in range(3)]
    shown = standings(found)
    path: Path = tmp_path_factory.mktemp("page") / "leaderboard.html"
    path.write_text(page(shown, plot_settings(shown)), encoding="utf-8")
    return path.as_uri()


def first_column(browser: Browser, table: int) -> list[str]:
    script = (
        "return [...document.querySelectorAll('table')[arguments[0]].tBodies[0].rows].map(r => r.cells[0].innerText)"
    )
    found: list[str] = browser.driver.execute_script(script, table)
    return found


def test_clicks_on_a_heading_sort_best_first_then_reverse(browser: Browser, address: str) -> None:
    browser.open(address)
    browser.keep("page")
    assert first_column(browser, 1) == ["reset", "rnr", "shrink-perturb-keep80", "none"]
    drop = next(head for head in browser.all("#setting-2 th") if head.text.startswith("drop"))
    browser.click(drop)
    assert first_column(browser, 1) == ["none", "rnr", "shrink-perturb-keep80", "reset"]
    assert drop.get_attribute("aria-sort") == "ascending"
    browser.click(drop)
    assert first_column(browser, 1) == ["reset", "shrink-perturb-keep80", "rnr", "none"]
    browser.click(browser.all("#setting-2 th")[0])
    assert first_column(browser, 1) == ["none", "reset", "rnr", "shrink-perturb-keep80"]


@pytest.mark.parametrize("phone", [False, True])
def test_page_is_self_contained_and_fits_the_window(browser: Browser, address: str, phone: bool) -> None:
    if phone:
        browser.resize(*PHONE, phone=True)
    browser.open(address)
    images = browser.all("img")
    assert len(images) == 3 and all(image.get_property("naturalWidth") == 900 for image in images)
    fetched = browser.driver.execute_script("return performance.getEntriesByType('resource').map(r => r.name)")
    assert [name for name in fetched if not name.startswith("data:")] == []
    wide, window = browser.driver.execute_script(
        "return [document.body.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide <= window
    size = "return parseFloat(getComputedStyle(document.querySelector('td')).fontSize)"
    assert browser.driver.execute_script(size) >= 12
    browser.driver.execute_script("document.querySelector('#setting-2').scrollIntoView()")
    browser.keep("page-phone" if phone else "page-desktop")
    box = browser.all("#setting-2 .scroll")[0]
    browser.driver.execute_script("arguments[0].scrollLeft = 1000", box)
    name = browser.all("#setting-2 td")[0]
    assert name.text == "reset" and name.rect["x"] >= 0  # the first column stays visible
    assert not [entry for entry in browser.driver.get_log("browser") if entry["level"] == "SEVERE"]
