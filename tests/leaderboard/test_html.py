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
    """Collect tags, links, and the cells of tables."""

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
            self.tables[-1][-1][-1] = self.tables[-1][-1][-1].strip()

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.tables[-1][-1][-1] += data


def test_page_contains_the_tables_and_is_self_contained() -> None:
    shown = standings(FOUND + [acting(name, s, 9.0 + s) for name in ("none", "reset", "rnr") for s in range(2)])
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
    assert found.tags.count("svg") == 6
    assert "9 runs: commit 0123456789ab; torch 2.15.0; some CPU, 2 cores; on cpu" in text
    assert "width=device-width" in text


def test_counts_agree_with_their_nouns() -> None:
    assert "<p>1 run. " in page(standings([result("none", 0, 0.5)]))
    assert "<p>9 runs. " in page(standings(FOUND))


def test_dots_and_bars_are_at_their_values() -> None:
    text = page(standings(FOUND))
    positions = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', text)]
    bars = [(float(a), float(b)) for a, b in re.findall(r'<line x1="([\d.]+)" x2="([\d.]+)"', text)]
    assert positions[0] - positions[1] == pytest.approx(positions[1] - positions[2], abs=0.2)  # 0.71, 0.61, 0.51
    assert positions[0] > positions[1] > positions[2]
    for position, (low, high) in zip(positions, bars, strict=True):
        assert low < position < high and position - low == pytest.approx(high - position, abs=0.2)
    assert 'class="outlier"' not in text


def test_an_outlier_does_not_compress_the_scale() -> None:
    others = [
        result(name, 0, 0.5 + 0.01 * n) for n, name in enumerate(("none", "redo", "reset", "rnr", "fire", "dash"))
    ]
    text = page(standings([*others, result("l2", 0, 0.2)]))
    positions = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', text)]
    assert text.count('class="outlier"') == 1 and positions[-1] == 5.0
    assert positions[0] - positions[-2] > 80


def test_names_cannot_inject_markup() -> None:
    evil = result("reset", 0, 0.9)
    evil.group = "another"
    evil.intervention = "<script>alert(1)</script>"
    evil.origin.commit = "<img src=x>"
    text = page(standings([*FOUND, evil]))
    found = Reader(text)
    assert found.tags.count("script") == 1 and "img" not in found.tags
    assert "<script>alert(1)</script>" in [row[0] for row in found.tables[0]]
