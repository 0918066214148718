"""TensorBoard in a browser: the tabs and sorting."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from plastibench.leaderboard import tensorboard
from plastibench.leaderboard.standings import standings
from tests.browser.conftest import Browser
from tests.leaderboard import boards

pytestmark = pytest.mark.browser
_WIDE = 2300  # wide enough for all columns of the table


@pytest.fixture(scope="module")
def served(driver: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[boards.Served]:
    runs_dir = tmp_path_factory.mktemp("runs")
    found = boards.make(runs_dir)
    tensorboard.write(runs_dir, standings(found), {"overview": boards.png(300, 200)})
    with boards.serve(runs_dir, found) as served:
        yield served


def table(browser: Browser) -> list[list[str]]:
    """Rows of the HParams table from top to bottom; the first one is the header."""
    cells = browser.driver.execute_script(_CELLS)
    lines: dict[int, list[tuple[float, str]]] = {}
    for top, left, text in cells:
        lines.setdefault(round(top), []).append((left, " ".join(text.split())))
    return [[text for _, text in sorted(line)] for _, line in sorted(lines.items())]


_CELLS = """
const grid = (function find(root) {
  for (const one of root.querySelectorAll('*')) {
    if (one.localName === 'vaadin-grid' && one.getClientRects().length) return one;
    const inside = one.shadowRoot && find(one.shadowRoot);
    if (inside) return inside;
  }
})(document);
if (!grid) return [];
return [...grid.querySelectorAll('vaadin-grid-cell-content')]
  .filter(cell => cell.getClientRects().length && cell.assignedSlot)
  .map(cell => [
    cell.assignedSlot.closest('tr').getBoundingClientRect().top, cell.getBoundingClientRect().left, cell.innerText
  ]);
"""


def column(rows: list[list[str]], title: str) -> list[str]:
    return [row[rows[0].index(title)] for row in rows[1:]]


def choose(browser: Browser, menu: int, entry: str) -> None:
    """Choose an entry of a menu that sorts the table: column or direction."""

    def value() -> str:
        return str(browser.driver.execute_script("return arguments[0].value", browser.all("paper-dropdown-menu")[menu]))

    def attempt() -> bool:  # a list that is still opening swallows a click
        if not any(entry in text for text in browser.texts("paper-item")):
            browser.click(browser.all("paper-dropdown-menu")[menu])
            return False
        browser.click(browser.wait("paper-item", entry))
        time.sleep(0.5)
        return value() == entry

    browser.until(attempt, f"'{entry}' in the menu")


def test_hparams_table_is_a_leaderboard_that_can_be_sorted(browser: Browser, served: boards.Served) -> None:
    browser.resize(_WIDE, 900)
    browser.open(f"{served.address}#hparams")
    count = len(served.found) + 1  # and the unfinished run
    rows = browser.until(lambda: len(found := table(browser)) == count + 1 and found, f"table of {count} rows")
    assert [title for title in rows[0] if title] == [
        *("Trial ID", "Show Metrics", "env", "intervention", "seed"),
        *("final %", "final return", "drop %", "return drop", "recovered in"),
    ]
    names = column(rows, "Trial ID")
    assert len(set(names)) == count
    shown = dict(zip(names, zip(column(rows, "final %"), column(rows, "final return"), strict=True), strict=True))
    for result in served.found:
        (name,) = (name for name in names if name.endswith(result.id[-6:]))
        percent, value = shown.pop(name)
        expected = ("", result.final) if result.is_rl else (100 * result.final, "")
        assert [float(text) if text else "" for text in (percent, value)] == [
            pytest.approx(each, rel=1e-4) if each else "" for each in expected
        ]
        assert name.startswith(f"{result.intervention}·") and f"·s{result.seed}·" in name
    assert list(shown.values()) == [("", "")]

    def finals() -> list[float | None]:
        return [float(cell) if cell else None for cell in column(table(browser), "final %")]

    browser.keep("hparams")
    before = finals()
    expected = sorted((final for final in before if final is not None), reverse=True)
    empty = [None] * (count - len(expected))
    assert before != [*expected, *empty]
    choose(browser, 0, "final %")
    choose(browser, 1, "Ascending")
    browser.until(lambda: finals() == [*reversed(expected), *empty], "rows in ascending order")
    choose(browser, 1, "Descending")
    browser.until(lambda: finals() == [*expected, *empty], "rows in descending order")
    browser.keep("hparams-sorted")


@pytest.mark.parametrize("width", [1400, 1920])
def test_names_and_final_values_are_visible(browser: Browser, served: boards.Served, width: int) -> None:
    browser.resize(width, 1000)
    browser.open(f"{served.address}#hparams")
    browser.wait("vaadin-grid-cell-content", "rl-cartpole")
    browser.keep(f"hparams-{width}")
    cells = browser.driver.execute_script(_CELLS)
    header = min(top for top, _, _ in cells)
    lefts = [left for top, left, text in cells if top == header and text.strip() in ("final %", "final return")]
    assert len(lefts) == 2 and max(lefts) + 80 < width  # such as 71.234, which is 60 pixels wide
    for cell in browser.all("vaadin-grid-cell-content .table-cell"):
        text = cell.text.strip()
        if "·s" in text:  # at most the digest after the seed is cut
            room, needed = browser.driver.execute_script(_ROOM, cell, text[: text.rindex("·")])
            assert needed <= room, text


_ROOM = """
const [cell, text] = arguments, copy = document.createElement('span'), style = getComputedStyle(cell);
copy.style.cssText = `position: absolute; visibility: hidden; white-space: nowrap; font: ${style.font}`;
copy.textContent = text;
document.body.append(copy);
const needed = copy.getBoundingClientRect().width;
copy.remove();
return [cell.getBoundingClientRect().width, needed];
"""


def test_metrics_of_a_run_open_below_the_table(browser: Browser, served: boards.Served) -> None:
    browser.resize(_WIDE, 1400)
    browser.open(f"{served.address}#hparams")
    browser.wait("vaadin-grid-cell-content", "rl-cartpole")
    names = column(table(browser), "Trial ID")
    wanted = next(result for result in served.found if not result.is_rl)
    boxes = sorted(browser.all("vaadin-grid-cell-content > paper-checkbox"), key=lambda box: box.rect["y"])
    browser.click(boxes[next(row for row, name in enumerate(names) if name.endswith(wanted.id[-6:]))])
    browser.wait("tf-scalar-card", "final %")
    browser.wait("text", "60")  # the update of the last point, on the axis
    browser.keep("hparams-run")


def test_charts_compare_methods(browser: Browser, served: boards.Served) -> None:
    browser.open(f"{served.address}#custom_scalars")
    browser.wait("tf-custom-scalar-margin-chart-card", "accuracy at the end of each task, %")
    browser.until(lambda: len(browser.all("tf-custom-scalar-margin-chart-card")) == 3, "three charts")
    browser.until(lambda: "Matches (3)" in " ".join(browser.texts("tf-custom-scalar-margin-chart-card")), "lines")
    browser.keep("custom-scalars")


@pytest.mark.parametrize("width", [1400, 1920])
def test_cells_of_the_text_tab_are_single_lines(browser: Browser, served: boards.Served, width: int) -> None:
    browser.resize(width, 1000)
    browser.open(f"{served.address}#text&regexInput=leaderboard")
    browser.wait("td", "rnr quantile=0.2")
    browser.keep(f"text-{width}")
    cells = [cell for cell in browser.all("td, th") if cell.text]
    assert "final %" in [cell.text.replace("\N{NO-BREAK SPACE}", " ") for cell in cells]
    assert max(cell.rect["height"] for cell in cells) < 40
    assert {len(row.find_elements("css selector", "td, th")) for row in browser.all("tr")} <= {4, 5, 6}


def test_images_tab_shows_plots(browser: Browser, served: boards.Served) -> None:
    browser.open(f"{served.address}#images")
    picture = browser.wait("#main-image-container img, img#main-image, img")
    size = browser.until(
        lambda: browser.driver.execute_script("const i = arguments[0]; return i.complete && i.naturalWidth", picture),
        "picture",
    )
    assert size == 300
    browser.keep("images")
