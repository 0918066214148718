from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import pytest

from plastibench.leaderboard.html import page
from plastibench.leaderboard.standings import standings
from tests.leaderboard.made import acting, result

FOUND = [
    result(name, seed, final + 0.01 * seed, drop=drop)
    for name, final, drop in (("none", 0.5, 0.0), ("reset", 0.7, 0.3), ("rnr", 0.6, 0.05))
    for seed in range(3)
]
PNG = b"\x89PNG picture"


class Reader(HTMLParser):
    """Sections, the cells of their tables, and everything that is fetched or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.sources: list[str] = []
        self.tags: list[str] = []
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.tables[-1][-1][-1] += data


def test_it_holds_the_tables_and_needs_no_network() -> None:
    shown = standings(FOUND + [acting(name, s, 9.0 + s) for name in ("none", "reset") for s in range(2)])
    text = page(shown, {shown.tables[0][0].title: [("accuracy by task", PNG)]})
    found = Reader(text)
    together, supervised, control = found.tables
    assert [row[0] for row in supervised[1:]] == ["reset", "rnr", "none"]
    column = supervised[0].index("final %")
    assert supervised[1][column].startswith("71.0 ± ")
    assert "final" in control[0] and "IQM %" in together[0]
    images = [source for source in found.sources if not source.startswith("#")]
    assert images == [f"data:image/png;base64,{base64.b64encode(PNG).decode()}"]
    assert not re.search(r"https?:|@import|url\(", text)
    assert found.tags.count("svg") == 5
    assert "9 runs: commit 0123456789ab; torch 2.15.0; some CPU, 2 cores; on cpu" in text
    assert "width=device-width" in text


def test_dots_and_bars_lie_where_the_figures_are() -> None:
    text = page(standings(FOUND))
    places = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', text)]
    bars = [(float(a), float(b)) for a, b in re.findall(r'<line x1="([\d.]+)" x2="([\d.]+)"', text)]
    assert places[0] - places[1] == pytest.approx(places[1] - places[2], abs=0.2)  # 0.71, 0.61, 0.51
    assert places[0] > places[1] > places[2]
    for place, (low, high) in zip(places, bars, strict=True):
        assert low < place < high and place - low == pytest.approx(high - place, abs=0.2)
    assert 'fill="#fff"' not in text


def test_an_outlier_does_not_flatten_the_others() -> None:
    others = [
        result(name, 0, 0.5 + 0.01 * n) for n, name in enumerate(("none", "redo", "reset", "rnr", "fire", "dash"))
    ]
    text = page(standings([*others, result("l2", 0, 0.2)]))
    places = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', text)]
    assert text.count('fill="#fff"') == 1 and places[-1] == 5.0
    assert places[0] - places[-2] > 80


def test_names_from_elsewhere_cannot_bring_markup() -> None:
    evil = result("reset", 0, 0.9)
    evil.group = "another"
    evil.intervention = "<script>alert(1)</script>"
    evil.origin.commit = "<img src=x>"
    text = page(standings([*FOUND, evil]))
    found = Reader(text)
    assert found.tags.count("script") == 1 and "img" not in found.tags
    assert found.tables[0][1][0] == "<script>alert(1)</script>"
