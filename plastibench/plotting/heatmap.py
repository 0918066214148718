"""A metric by layer and task, from the ``metrics.csv`` in the folder of each run."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from plastibench.config import renamed
from plastibench.config.errors import UserError
from plastibench.leaderboard import label
from plastibench.metrics import METRICS
from plastibench.plotting.caption import caption
from plastibench.plotting.metric_names import axis_label, find_metric, scale
from plastibench.plotting.series import Array, methods_by_setting
from plastibench.plotting.style import escape, finish, subplots, task_axis
from plastibench.results import metrics_csv
from plastibench.results.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Values = dict[tuple[str, int], float]  # (layer, task) to value, for one run
Panel = tuple[str, list[str], Array]  # label of the intervention, layers, values [layers, tasks]
_COLUMNS = 3
_DEFAULT = "dormant-ratio"
_MAX_LENGTH = 26  # characters of a layer's name
_TITLE_LENGTH = 90  # characters of titles side by side
_LINE = 0.15  # inches of a line of text, and of a row of cells
_LEAST = 0.45  # inches of a panel without title and axis
_BAR = 1.3  # inches of the colour bar


def heatmap(results: Sequence[Result], *, metric: str | None = None) -> Figure:
    """One panel per intervention: a metric by layer (in execution order) and task, mean over seeds, one colour scale.

    Args:
        results: Results with their folders.
        metric: A metric of layers; by default dormant-ratio, or the first metric if it was not recorded.

    Raises:
        UserError: No run has a ``metrics.csv``, or no layer has the metric.
    """
    paths = {run.id: run.folder / "metrics.csv" for run in results if run.folder is not None}
    tables = {name: read_layers(path) for name, path in paths.items() if path.is_file()}
    if not tables:
        raise UserError("no result has a metrics.csv next to it; heatmap needs the complete folders of runs")
    recorded = list(dict.fromkeys(name for table in tables.values() for name in table))
    if metric is None:
        metric = _DEFAULT if _DEFAULT in recorded else next(iter(recorded), _DEFAULT)
    metric = find_metric(metric, recorded, "layer")
    results = [run for run in results if metric in tables.get(run.id, ())]
    panels = {
        title: [(name, *mean_map([tables[run.id][metric] for run in runs])) for name, runs in groups.items()]
        for title, groups in methods_by_setting(sorted(results, key=lambda run: label(run) != "none")).items()
    }
    return _draw(results, panels, metric)


def read_layers(path: Path) -> dict[str, Values]:
    """Read the metrics of layers from a ``metrics.csv``: the last measurement in each task.

    Layers keep the order of the file, which is the order of execution. If a run has several networks, the names of
    layers begin with the role of the network.

    Returns:
        Metric to its values.

    Raises:
        UserError: The file is corrupt.
    """
    found: dict[str, dict[tuple[str, str, int], float]] = {}
    for row in metrics_csv.read(path):
        group, _, rest = row.metric.partition("/")
        if group.startswith("layers-") and row.phase in ("end", "evaluation"):
            layer, _, metric = rest.rpartition("/")
            key = group.removeprefix("layers-"), layer, row.task
            found.setdefault(renamed.METRICS.get(metric, metric), {})[key] = row.value
    roles = {role for values in found.values() for role, _, _ in values}
    return {
        metric: {
            (f"{role}: {layer}" if len(roles) > 1 else layer, task): value for (role, layer, task), value in v.items()
        }
        for metric, v in found.items()
    }


def mean_map(runs: Sequence[Values]) -> tuple[list[str], Array]:
    """Names of the layers, and mean over runs [layers, tasks]; NaN if no run has a value."""
    layers = list(dict.fromkeys(layer for run in runs for layer, _ in run))
    tasks = range(1 + max(task for run in runs for _, task in run))
    cells = [[[run[layer, task] for run in runs if (layer, task) in run] for task in tasks] for layer in layers]
    return layers, np.array([[np.mean(values) if values else np.nan for values in row] for row in cells])


def _draw(results: Sequence[Result], panels: dict[str, list[Panel]], metric: str) -> Figure:
    factor = scale(metric)
    most = max(map(len, panels.values()))
    columns = -(-most // -(-most // _COLUMNS))  # 4 panels in two rows of 2
    rows = [(title, some[i : i + columns]) for title, some in panels.items() for i in range(0, len(some), columns)]
    titles = [[_title(name, title if len(panels) > 1 else "", columns) for name, _, _ in some] for title, some in rows]
    around = [0.7 + _LINE * max(title.count("\n") + 1 for title in line) for line in titles]
    heights = [max(_LEAST, _LINE * max(len(layers) for _, layers, _ in some)) for _, some in rows]
    between = sum(around[1:])
    bar_label = axis_label(metric)
    bar_length = max(_BAR, 0.08 * len(bar_label))
    enlarged = max(1.0, (bar_length - between) / sum(heights))
    heights = [enlarged * height for height in heights]
    figure, axes = subplots(
        len(rows),
        columns,
        height=(sum(heights) + sum(around)) / len(rows),
        sharey="row",
        gridspec_kw={"height_ratios": heights},
    )
    every = factor * np.concatenate([values.ravel() for _, some in rows for _, _, values in some])
    if not np.isfinite(every).any():
        raise UserError(f"no layer has a finite '{metric}' at the end of a task")
    low, high = 0.0 if factor == 100 else float(np.nanmin(every)), float(np.nanmax(every))
    images = []
    for (_, some), of_row, line in zip(rows, titles, axes, strict=True):
        for axis, title, (_, layers, values) in zip(line, of_row, some, strict=False):
            image = axis.imshow(
                factor * values,
                cmap="Blues",
                vmin=low,
                vmax=high if high > low else low + 1,
                aspect="auto",
                extent=(0.5, values.shape[1] + 0.5, len(layers) - 0.5, -0.5),
                interpolation="nearest",
            )
            images.append(image)
            axis.set_facecolor("#dddddd")  # shows through where nothing was measured
            axis.grid(visible=False)
            axis.set_title(escape(title), fontsize=8.5)
            axis.set_yticks(range(len(layers)), [escape(_shortened(layer)) for layer in layers], fontsize=7)
            axis.tick_params(axis="y", length=0)
            axis.set_xlabel("task")
            task_axis(axis)
        for axis in line[len(some) :]:
            axis.set_visible(False)
    length = min(1.0, max(3.0, bar_length) / (sum(heights) + between))  # three inches at the top
    bar = figure.colorbar(
        images[0], ax=axes.ravel().tolist(), location="right", shrink=length, anchor=(0, 1), aspect=25, pad=0.015
    )
    bar.set_label(bar_label)
    what = f"{next(iter(panels))}: {metric}" if len(panels) == 1 else metric
    sentences = [f"{what} of each layer at the end of each task; layers in order of execution."]
    if metric in METRICS and factor == 100:  # definitions of other metrics are about all layers together
        sentences.append(f"{metric}: {METRICS[metric]}.")
    return finish(figure, [], caption(results, *sentences, intervals=""))


def _title(name: str, setting: str, columns: int) -> str:
    """Title of a panel: method and setting, wrapped to the panel's width."""
    return "\n".join(line for text in (name, setting) for line in textwrap.wrap(text, _TITLE_LENGTH // columns))


def _shortened(name: str) -> str:
    return name if len(name) <= _MAX_LENGTH else f"{name[: _MAX_LENGTH // 2 - 1]}…{name[-_MAX_LENGTH // 2 :]}"
