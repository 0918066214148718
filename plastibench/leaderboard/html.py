"""The leaderboard as a page of its own: tables that sort at a click, intervals as pictures, no network."""

from __future__ import annotations

import base64
import html
import statistics
from collections.abc import Mapping, Sequence

from plastibench.leaderboard.columns import COLUMNS, OVERALL, Column, value_of
from plastibench.leaderboard.rows import Row
from plastibench.leaderboard.settings import Setting, origin
from plastibench.leaderboard.standings import Standings, notes
from plastibench.leaderboard.text import cells, columns_of, headings
from plastibench.results.confidence import Interval

_WIDTH, _HEIGHT, _MARGIN = 120, 14, 5  # of the picture of an interval, in pixels
_REACH = 3  # interquartile ranges beyond the quartiles; means outside stand, hollow, at the edge

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 90rem; color: #1b1b1b;
  background: #fff; }
h1 { font-size: 1.5rem; margin: .2rem 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; overflow-wrap: anywhere; }
nav ul { padding-left: 1.2rem; } nav a { overflow-wrap: anywhere; } a { color: #0060a0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th { position: sticky; top: 0; background: #f4f4f4; cursor: pointer; user-select: none; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff;
  min-width: 12rem; max-width: 20rem; white-space: normal; overflow-wrap: break-word; }
th:first-child { background: #f4f4f4; z-index: 1; }
th[aria-sort=descending]::after { content: " ▾"; } th[aria-sort=ascending]::after { content: " ▴"; }
td.figure { padding: 0 .6rem; } svg { vertical-align: middle; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
ul.notes, dl { font-size: 13px; color: #444; } dt { font-weight: 600; } dd { margin: 0 0 .3rem 1rem; }
@media (max-width: 40rem) { body { padding: .6rem; } th, td { padding: .3rem .45rem; }
  figure { overflow-x: auto; } img { max-width: none; width: 40rem; }
  th:first-child, td:first-child { min-width: 7.5rem; max-width: 8.5rem; } }
"""

_SCRIPT = """
for (const head of document.querySelectorAll("th")) head.addEventListener("click", () => {
  const table = head.closest("table"), column = head.cellIndex, body = table.tBodies[0];
  const before = head.getAttribute("aria-sort");
  const up = before ? before === "descending" : head.dataset.better === "less";
  for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = row => row.cells[column].dataset.value;
  const number = text => text !== "" && !isNaN(text);
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    const order = number(x) && number(y) ? x - y : x.localeCompare(y);
    return up ? order : -order;
  });
  body.append(...rows);
});
"""


def page(shown: Standings, pictures: Mapping[str, Sequence[tuple[str, bytes]]] | None = None) -> str:
    """HTML that needs nothing else.

    Args:
        shown: What is compared.
        pictures: By title of a contest: what each picture shows, and the PNG.
    """
    pictures = pictures or {}
    titles = [contest.title for contest, _ in shown.tables]
    parts = [_contest(f"c{n}", contest, made, pictures) for n, (contest, made) in enumerate(shown.tables)]
    links = [f'<li><a href="#c{n}">{html.escape(title)}</a></li>' for n, title in enumerate(titles)]
    if shown.overall:
        links.insert(0, '<li><a href="#all">all scenarios</a></li>')
        parts.insert(0, _overall(shown))
    meanings = {column.heading: column.meaning for column in (*OVERALL, *COLUMNS)}
    legend = "".join(f"<dt>{html.escape(head)}</dt><dd>{html.escape(text)}</dd>" for head, text in meanings.items())
    runs = sum(len(row["seeds"]) for _, made in shown.tables for row in made)
    contents = f"<nav><ul>{''.join(links)}</ul></nav>" if len(links) > 1 else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>plastibench leaderboard</title><style>{_STYLE}</style></head><body>
<h1>plastibench leaderboard</h1>
<p>{runs:,} runs. A click on a heading sorts by it; dots and bars are means and their 95 % intervals,
hollow dots lie outside of the picture.</p>
{contents}
{"".join(parts)}
<h2>What the columns mean</h2><dl>{legend}</dl>
<script>{_SCRIPT}</script></body></html>
"""


def _contest(
    anchor: str, contest: Setting, made: Sequence[Row], pictures: Mapping[str, Sequence[tuple[str, bytes]]]
) -> str:
    columns = columns_of(contest)
    runs = [run for entry in contest.entries for run in entry.runs.values()]
    bounds = _range([row["final"] for row in made])
    lines = []
    for row in made:
        shown = [_cell(text, row, column) for text, column in zip(cells(row, columns, contest), columns, strict=True)]
        shown.insert(1, f'<td class=figure data-value="{row["final"].value}">{_picture(row["final"], bounds)}</td>')
        lines.append(f"<tr>{''.join(shown)}</tr>")
    header = [_head(head, column) for head, column in zip(headings(columns, contest), columns, strict=True)]
    low, high = (f"{100 * b:.0f}" if not contest.is_rl else f"{b:.4g}" for b in bounds)
    header.insert(1, f'<th data-better=more title="final and its 95 % interval">{low} … {high}</th>')
    images = "".join(
        f'<figure><img alt="{html.escape(what)}" src="data:image/png;base64,{base64.b64encode(png).decode()}"></figure>'
        for what, png in pictures.get(contest.title, ())
    )
    table = f"<table><thead><tr>{''.join(header)}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return (
        f'<section id="{anchor}"><h2>{html.escape(contest.title)}</h2><div class=scroll>{table}</div>'
        f"{_notes([*notes(contest, made), origin(runs)])}{images}</section>\n"
    )


def _overall(shown: Standings) -> str:
    lines = [
        f"<tr>{''.join(_cell(t, row, c) for t, c in zip(cells(row, OVERALL), OVERALL, strict=True))}</tr>"
        for row in shown.overall
    ]
    header = "".join(_head(head, column) for head, column in zip(headings(OVERALL), OVERALL, strict=True))
    table = f"<table><thead><tr>{header}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return (
        f'<section id="all"><h2>all scenarios</h2><div class=scroll>{table}</div>'
        f"{_notes(shown.overall_notes)}</section>\n"
    )


def _head(heading: str, column: Column) -> str:
    return f'<th data-better={column.better} title="{html.escape(column.meaning)}">{html.escape(heading)}</th>'


def _cell(text: str, row: Row, column: Column) -> str:
    value = value_of(row, column.key)
    value = "" if value is None else html.escape(str(value))
    return f'<td data-value="{value}">{html.escape(text)}</td>'


def _notes(found: Sequence[str]) -> str:
    return f"<ul class=notes>{''.join(f'<li>{html.escape(note)}</li>' for note in found)}</ul>" if found else ""


def _range(values: Sequence[Interval]) -> tuple[float, float]:
    """What the pictures of a table span: all means but outliers, and half a usual interval on either side."""
    means = [value.value for value in values]
    halves = [(value.high - value.low) / 2 for value in values if value.low is not None and value.high is not None]
    room = statistics.median(halves) if halves else 0.0
    if len(means) > 3:
        first, _, third = statistics.quantiles(means, n=4)
        reach = _REACH * (third - first)
        means = [mean for mean in means if first - reach <= mean <= third + reach]
    low, high = min(means) - room, max(means) + room
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _picture(value: Interval, bounds: tuple[float, float]) -> str:
    """A dot at the mean, a bar along its interval."""

    def place(figure: float) -> float:
        share = (figure - bounds[0]) / (bounds[1] - bounds[0])
        return _MARGIN + min(1.0, max(0.0, share)) * (_WIDTH - 2 * _MARGIN)

    middle = _HEIGHT / 2
    bar = ""
    if value.low is not None and value.high is not None:
        bar = (
            f'<line x1="{place(value.low):.1f}" x2="{place(value.high):.1f}" y1="{middle}" y2="{middle}" '
            'stroke="#56B4E9" stroke-width="4"/>'
        )
    inside = bounds[0] <= value.value <= bounds[1]
    fill = "#0072B2" if inside else "#fff"
    dot = f'<circle cx="{place(value.value):.1f}" cy="{middle}" r="3.5" fill="{fill}" stroke="#0072B2"/>'
    return f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="interval">{bar}{dot}</svg>'
