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
        *("Trial ID", "Show Metrics", "agent", "env", "intervention", "options", "seed"),
        *("final accuracy or return", "drop", "auc", "recovery", "cost"),
    ]
    shown = {
        (e, i, o, float(s)): f
        for e, i, o, s, f in zip(
            *(column(rows, name) for name in ("env", "intervention", "options", "seed", "final accuracy or return")),
            strict=True,
        )
    }
    for result in served.found:
        options = ", ".join(f"{key}={value}" for key, value in result.changed.intervention.items())
        row = (result.env, result.intervention, options, result.seed)
        assert float(shown.pop(row)) == pytest.approx(result.final, rel=1e-4)
    assert shown == {("cl-digits", "none", "", 7.0): ""}

    def finals() -> list[float | None]:
        return [float(cell) if cell else None for cell in column(table(browser), "final accuracy or return")]

    browser.keep("hparams")
    before = finals()
    expected = sorted((final for final in before if final is not None), reverse=True)
    assert before != [*expected, None]
    choose(browser, 0, "final accuracy or return")
    choose(browser, 1, "Ascending")
    browser.until(lambda: finals() == [*reversed(expected), None], "rows in ascending order")
    choose(browser, 1, "Descending")
    browser.until(lambda: finals() == [*expected, None], "rows in descending order")
    browser.keep("hparams-sorted")


def test_metrics_of_a_run_open_below_the_table(browser: Browser, served: boards.Served) -> None:
    browser.resize(_WIDE, 1400)
    browser.open(f"{served.address}#hparams")
    browser.wait("vaadin-grid-cell-content", "rl-cartpole")
    shown = [row[2:5] for row in table(browser)]  # its second column has boxes
    boxes = sorted(browser.all("vaadin-grid-cell-content > paper-checkbox"), key=lambda box: box.rect["y"])
    browser.click(boxes[shown.index(["mlp", "cl-digits", "none"]) - 1])
    browser.wait("tf-scalar-card", "final accuracy or return")
    browser.until(lambda: len(browser.all("vz-line-chart2")) == 5, "five charts")
    browser.wait("text", "60")  # the update of the last point, on the axis
    browser.keep("hparams-run")


def test_charts_compare_methods(browser: Browser, served: boards.Served) -> None:
    browser.open(f"{served.address}#custom_scalars")
    browser.wait("tf-custom-scalar-margin-chart-card", "accuracy at the end of each task, %")
    browser.until(lambda: len(browser.all("tf-custom-scalar-margin-chart-card")) == 3, "three charts")
    browser.until(lambda: "Matches (3)" in " ".join(browser.texts("tf-custom-scalar-margin-chart-card")), "lines")
    browser.keep("custom-scalars")


def test_text_tab_shows_tables(browser: Browser, served: boards.Served) -> None:
    browser.open(f"{served.address}#text")
    browser.wait("td", "rnr quantile=0.2")
    assert "final %" in browser.texts("th")
    browser.keep("text")


def test_images_tab_shows_plots(browser: Browser, served: boards.Served) -> None:
    browser.open(f"{served.address}#images")
    picture = browser.wait("#main-image-container img, img#main-image, img")
    size = browser.until(
        lambda: browser.driver.execute_script("const i = arguments[0]; return i.complete && i.naturalWidth", picture),
        "picture",
    )
    assert size == 300
    browser.keep("images")
