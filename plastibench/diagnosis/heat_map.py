"""A diagnosis as a picture and as a page of its own."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from plastibench.config.errors import UserError
from plastibench.diagnosis.report import RULES, Diagnosis, cell, definition, help_text, needs_labels, value_text
from plastibench.utils.atomic_io import atomic, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# From Okabe and Ito's palette; shapes besides, for those who see no colours.
_SIGNS = {"ok": ("#009E73", "●"), "watch": ("#E69F00", "▲"), "sick": ("#D55E00", "■")}


def draw(found: Sequence[Diagnosis], path: Path) -> None:
    """Draw a heat map of layers by metrics for each network; the darker, the further from a fresh network.

    Raises:
        UserError: matplotlib is missing, or the file name has another ending.
    """
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"cannot draw into '{path.name}'; use a name that ends in .png, .svg or .pdf")
    with atomic(path) as file:
        _save(found, file, path.suffix[1:])


def page(found: Sequence[Diagnosis], path: Path) -> None:
    """Write a stand-alone HTML page: verdict, picture, tables."""
    picture = io.BytesIO()
    _save(found, picture, "png")
    image = base64.b64encode(picture.getvalue()).decode()
    title = html.escape(found[0].title)
    body = "\n".join(_section(each) for each in found)
    write_text(
        path,
        f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Diagnosis: {title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b; }}
table {{ border-collapse: collapse; margin: 1rem 0; font-size: 13px; }}
th, td {{ padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #ddd; }}
th:first-child, td:first-child, td.text, th.text {{ text-align: left; }}
.scroll {{ overflow-x: auto; }}
img {{ max-width: 100%; }}
pre {{ white-space: pre-wrap; background: #f5f5f5; padding: .8rem; }}
</style></head><body>
{body}
<h2>Picture</h2>
<img alt="Heat map of layers by metrics" src="data:image/png;base64,{image}">
<h2>Thresholds</h2>
<pre>{html.escape(help_text())}</pre>
</body></html>
""",
    )


def _section(found: Diagnosis) -> str:
    rules = _rules([found])
    header = "".join(f'<th title="{html.escape(definition(r.metric))}">{html.escape(r.column)}</th>' for r in rules)
    rows = []
    for layer in found.layers:
        figures = "".join(f"<td>{html.escape(cell(rule, layer))}</td>" for rule in rules)
        rows.append(
            f"<tr><td>{html.escape(layer.name)}</td><td class=text>{html.escape(layer.kind)}</td>"
            f"<td>{layer.units or '–'}</td>{figures}<td class=text>{_sign(layer.verdict)}</td>"
            f"<td class=text>{html.escape('; '.join(layer.reasons))}</td></tr>"
        )
    overall = "".join(
        f"<tr><td>{html.escape(name)}{' *' if needs_labels(name) else ''}</td><td>{value_text(value)}</td>"
        f"<td>{value_text(found.fresh[name]) if name in found.fresh else ''}</td>"
        f"<td class=text>{html.escape(definition(name))}</td></tr>"
        for name, value in found.overall.items()
    )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in found.notes)
    reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in found.reasons)
    return f"""<h1>{html.escape(found.title)}</h1>
<p><strong>{_sign(found.verdict)}</strong>; {found.samples} samples: {html.escape(found.data)};
{found.parameters:,} parameters</p>
<ul>{reasons}</ul>
<div class=scroll><table><tr><th>layer</th><th class=text>kind</th><th>units</th>{header}<th class=text>verdict</th>
<th class=text>why</th></tr>
{"".join(rows)}
</table></div>
<div class=scroll><table><tr><th>whole network</th><th>value</th><th>fresh</th><th class=text>what it is</th></tr>
{overall}
</table></div>
<p>* computed from the loss, and so from labels or targets</p>
<ul>{notes}</ul>"""


def _sign(verdict: str) -> str:
    colour, shape = _SIGNS[verdict]
    return f'<span style="color:{colour}">{shape}</span> {verdict}'


def _rules(found: Sequence[Diagnosis]) -> list[Any]:
    layers = [layer for each in found for layer in each.layers]
    return [rule for rule in RULES if any(rule.metric in layer.figures for layer in layers)]


def _save(found: Sequence[Diagnosis], file: IO[bytes], format: str) -> None:
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("pictures need matplotlib: pip install 'plastibench[figures]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = _heat_maps(found)
    figure.savefig(file, format=format, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def _heat_maps(found: Sequence[Diagnosis]) -> Figure:
    from matplotlib import pyplot

    rules = _rules(found)
    heights = [max(1, len(each.layers)) for each in found]
    size = (3.5 + 1.05 * max(1, len(rules)), 0.27 * sum(heights) + 1.7 * len(found) + 0.9)
    figure, axes = pyplot.subplots(
        len(found), 1, figsize=size, squeeze=False, gridspec_kw={"height_ratios": heights}, layout="constrained"
    )
    colours = pyplot.get_cmap("Blues").with_extremes(bad="#ffffff")
    image = None
    for each, axis in zip(found, axes[:, 0], strict=True):
        severity = np.full((max(1, len(each.layers)), max(1, len(rules))), np.nan)
        for row, layer in enumerate(each.layers):
            for column, rule in enumerate(rules):
                if rule.metric in layer.figures and rule.metric in layer.fresh:
                    severity[row, column] = rule.severity(layer.figures[rule.metric], layer.fresh[rule.metric])
        image = axis.imshow(severity, cmap=colours, vmin=0, vmax=1, aspect="auto")
        for row, layer in enumerate(each.layers):
            for column, rule in enumerate(rules):
                dark = severity[row, column] > 0.55
                text = cell(rule, layer)
                axis.text(column, row, text, ha="center", va="center", fontsize=8, color="w" if dark else "k")
            colour, shape = _SIGNS[layer.verdict]
            place = (len(rules) - 0.4, row)
            axis.annotate(
                f"{shape} {layer.verdict}", place, va="center", fontsize=8, color=colour, annotation_clip=False
            )
        axis.set_xticks(range(len(rules)), [rule.column for rule in rules], rotation=30, ha="left", fontsize=9)
        axis.xaxis.tick_top()
        axis.set_yticks(range(len(each.layers)), [_short(layer.name) for layer in each.layers], fontsize=8)
        axis.set_xticks(np.arange(len(rules) + 1) - 0.5, minor=True)
        axis.set_yticks(np.arange(len(each.layers) + 1) - 0.5, minor=True)
        axis.grid(which="minor", color="w", linewidth=0.8)
        axis.tick_params(which="both", length=0)
        axis.spines[:].set_visible(False)
        axis.set_title(f"{_short(each.title, 80)}\nverdict: {each.verdict}", fontsize=10, loc="left")
    if image is not None:
        bar = figure.colorbar(image, ax=axes[:, 0].tolist(), location="bottom", shrink=0.5, aspect=30, pad=0.02)
        bar.set_ticks([0, 1], labels=["as in a fresh network", "sick"])
        bar.ax.tick_params(labelsize=8, length=0)
    return figure


def _short(name: str, length: int = 34) -> str:
    name = name.replace("$", r"\$")
    return name if len(name) <= length else f"{name[: length // 2 - 1]}…{name[-length // 2 :]}"
