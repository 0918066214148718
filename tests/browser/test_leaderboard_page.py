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
    assert first_column(browser, 0) == ["reset", "rnr", "shrink-perturb-keep80", "none"]
    drop = next(head for head in browser.all("#setting-1 th") if head.text.startswith("drop"))
    browser.click(drop)
    assert first_column(browser, 0) == ["none", "rnr", "shrink-perturb-keep80", "reset"]
    assert drop.get_attribute("aria-sort") == "ascending"
    browser.click(drop)
    assert first_column(browser, 0) == ["reset", "shrink-perturb-keep80", "rnr", "none"]
    browser.click(browser.all("#setting-1 th")[0])
    assert first_column(browser, 0) == ["none", "reset", "rnr", "shrink-perturb-keep80"]


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
    assert all(image.rect["x"] + image.rect["width"] <= window for image in images)
    size = "return parseFloat(getComputedStyle(document.querySelector('td')).fontSize)"
    assert browser.driver.execute_script(size) >= 12
    browser.driver.execute_script("document.querySelector('#setting-1').scrollIntoView()")
    browser.keep("page-phone" if phone else "page-desktop")
    assert not [entry for entry in browser.driver.get_log("browser") if entry["level"] == "SEVERE"]


_SCROLLED = "return [...document.querySelectorAll('.scroll')].map(box => box.scrollWidth - box.clientWidth)"


def test_a_phone_shows_name_final_drop_and_seeds_without_scrolling(browser: Browser, address: str) -> None:
    browser.resize(*PHONE, phone=True)
    browser.open(address)
    assert browser.driver.execute_script(_SCROLLED) == [0, 0]
    assert browser.texts("#setting-1 th") == ["intervention", "final %", "drop %", "seeds"]
    assert browser.texts("#setting-1 tbody tr:first-child td") == ["reset", "71.0 ± 2.5", "40.0 ± 0.0", "3"]
    assert set(browser.texts("dt")) == {"final %", "drop %", "seeds", "final"}  # the legend of these columns
    browser.click(browser.all("#all")[0])
    assert len(browser.texts("#setting-1 th")) > 10 and "AUC %" in browser.texts("dt")
    box = browser.all("#setting-1 .scroll")[0]
    browser.driver.execute_script("arguments[0].scrollLeft = 1000", box)
    name = browser.all("#setting-1 td")[0]
    assert name.text == "reset" and name.rect["x"] >= 0  # the first column stays visible
    browser.keep("page-phone-all")


def test_a_filter_keeps_matching_rows(browser: Browser, address: str) -> None:
    browser.open(address)
    box = browser.all("#filter")[0]
    box.send_keys("R")
    assert set(browser.texts("#setting-1 tbody td:first-child")) == {"reset", "rnr", "shrink-perturb-keep80"}
    box.send_keys("es cl-digits")
    assert browser.texts("tbody td:first-child") == ["reset"] and len(browser.all("section")) == 1
    assert not browser.all(".none-left")
    box.send_keys("x")
    assert browser.texts(".none-left") == ["No row matches."] and not browser.all("section")
    box.clear()
    box.send_keys(" ")
    assert len(browser.all("section")) == 2
