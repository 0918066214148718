"""A metric by layer and task, from the ``metrics.csv`` that each run leaves in its folder."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from plastibench.config import renamed
from plastibench.config.errors import UserError, did_you_mean
from plastibench.leaderboard import by_group, label
from plastibench.metrics import METRICS
from plastibench.plotting.caption import caption
from plastibench.plotting.over_seeds import Array, contests
from plastibench.plotting.style import count_tasks, finish, panels, plain
from plastibench.results.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Values = dict[tuple[str, int], float]  # of one run: (layer, task) to value
_COLUMNS = 3
_USUAL = "dormant-ratio"
_LONGEST = 26  # characters of a layer's name


def heatmap(found: Sequence[Result], *, metric: str | None = None) -> Figure:
    """A panel per intervention, layers in the order in which they run by tasks, mean over seeds, one colour scale.

    Args:
        found: Results with their folders.
        metric: A metric of layers; by default dormant-ratio, or else the first that layers have.

    Raises:
        UserError: No run has a ``metrics.csv``, or none has the metric in it.
    """
    paths = {run.id: run.folder / "metrics.csv" for run in found if run.folder is not None}
    tables = {name: layers_of(path) for name, path in paths.items() if path.is_file()}
    if not tables:
        raise UserError("no metrics.csv beside any result: heatmap needs the runs' own folders, not published results")
    names = list(dict.fromkeys(name for table in tables.values() for name in table))
    metric = renamed.METRICS.get(metric or "", metric) or (_USUAL if _USUAL in names else next(iter(names), _USUAL))
    if metric not in names:
        raise UserError(
            f"no layer has the metric '{metric}'{did_you_mean(metric, names)} (there are {', '.join(names)})"
        )
    found = [run for run in found if metric in tables.get(run.id, ())]
    maps = {
        names: [(label(runs[0]), *mean_map([tables[run.id][metric] for run in runs])) for runs in by_group(results)]
        for names, results in contests(sorted(found, key=lambda run: label(run) != "none")).items()
    }
    return _draw(found, maps, metric)


def layers_of(path: Path) -> dict[str, Values]:
    """Metrics of layers in a ``metrics.csv`` at the end of each task, or where they were last measured in it.

    Layers keep the order in which they stand there, which is that in which they run; where a run has several networks,
    a layer's name begins with the network's role.

    Returns:
        Metric to its values.

    Raises:
        UserError: The file is damaged.
    """
    found: dict[str, dict[tuple[str, str, int], float]] = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                group, _, rest = row["metric"].partition("/")
                if group.startswith("layers-") and row["phase"] in ("end", "training"):
                    layer, _, metric = rest.rpartition("/")
                    if int(row["task"]) < 0:
                        raise ValueError(f"task {row['task']}")
                    key = group.removeprefix("layers-"), layer, int(row["task"])
                    found.setdefault(renamed.METRICS.get(metric, metric), {})[key] = float(row["value"])
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {error})") from error
    roles = {role for values in found.values() for role, _, _ in values}
    return {
        metric: {
            (f"{role}: {layer}" if len(roles) > 1 else layer, task): value for (role, layer, task), value in v.items()
        }
        for metric, v in found.items()
    }


def mean_map(runs: Sequence[Values]) -> tuple[list[str], Array]:
    """Names of the layers, and means over runs [layers, tasks]; NaN where no run has a value."""
    layers = list(dict.fromkeys(layer for run in runs for layer, _ in run))
    tasks = range(1 + max(task for run in runs for _, task in run))
    cells = [[[run[layer, task] for run in runs if (layer, task) in run] for task in tasks] for layer in layers]
    return layers, np.array([[np.mean(values) if values else np.nan for values in row] for row in cells])


def _draw(
    found: Sequence[Result], maps: dict[tuple[str, str], list[tuple[str, list[str], Array]]], metric: str
) -> Figure:
    scale = 100.0 if metric.endswith("-ratio") else 1.0
    most = max(map(len, maps.values()))
    columns = -(-most // -(-most // _COLUMNS))  # 4 panels in two rows of 2
    rows = [(names, some[i : i + columns]) for names, some in maps.items() for i in range(0, len(some), columns)]
    heights = [0.62 + 0.135 * max(len(layers) for _, layers, _ in some) for _, some in rows]
    figure, axes = panels(
        len(rows), columns, height=sum(heights) / len(rows), sharey="row", gridspec_kw={"height_ratios": heights}
    )
    every = scale * np.concatenate([values.ravel() for _, some in rows for _, _, values in some])
    if not np.isfinite(every).any():
        raise UserError(f"no layer has a finite '{metric}' at the end of a task")
    low, high = float(np.nanmin(every)), float(np.nanmax(every))
    if scale == 100.0:
        low = 0.0
    images = []
    for (names, some), line in zip(rows, axes, strict=True):
        for axis, (name, layers, values) in zip(line, some, strict=False):
            extent = (0.5, values.shape[1] + 0.5, len(layers) - 0.5, -0.5)
            image = axis.imshow(
                scale * values,
                cmap="Blues",
                vmin=low,
                vmax=high if high > low else low + 1,
                aspect="auto",
                extent=extent,
                interpolation="nearest",
            )
            images.append(image)
            axis.set_facecolor("#dddddd")  # where nothing was measured
            axis.grid(visible=False)
            axis.set_title(plain(name if len(maps) == 1 else f"{name}\n{', '.join(names)}"), fontsize=8.5)
            axis.set_yticks(range(len(layers)), [plain(_short(layer)) for layer in layers], fontsize=7)
            axis.tick_params(axis="y", length=0)
            axis.set_xlabel("task")
            count_tasks(axis)
        for axis in line[len(some) :]:
            axis.set_visible(False)
    length = min(1.0, 3.0 / sum(heights))  # a bar of three inches at the top
    bar = figure.colorbar(
        images[0], ax=axes.ravel().tolist(), location="right", shrink=length, anchor=(0, 1), aspect=25, pad=0.015
    )
    bar.set_label(f"{metric}, %" if scale == 100.0 else metric)
    where = f"{', '.join(next(iter(maps)))}: {metric}" if len(maps) == 1 else metric
    definition = f" ({METRICS[metric]})" if metric in METRICS and scale == 100.0 else ""  # others say "of all layers"
    words = f"{where} of each layer{definition} at the end of each task; layers in the order in which they run."
    return finish(figure, [], caption(found, words, intervals=""))


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST // 2 - 1]}…{name[-_LONGEST // 2 :]}"
