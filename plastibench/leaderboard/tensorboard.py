"""The leaderboard in TensorBoard: tables, charts that compare methods over seeds, and plots.

TensorBoard gives each run a colour, so each method in the charts is a small run below the one with tables and plots.
The HParams tab does not list these small runs; its columns are stored with the tables.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from plastibench.leaderboard import text as text_format
from plastibench.leaderboard.rows import Row
from plastibench.leaderboard.settings import Method, Setting, label
from plastibench.leaderboard.standings import Standings
from plastibench.results.confidence import mean_interval
from plastibench.results.hparams import GROUP, METRICS, differing_columns
from plastibench.results.result import Result
from plastibench.utils import tensorboard_events, tensorboard_summaries
from plastibench.utils.folder_lock import LOCK, wait_for_lock

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

FOLDER = "leaderboard"
COLORS = 7  # number of TensorBoard's colours; the next run has the first colour again
TEXT_COLUMNS = 6
BEST = 4  # number of best methods in a chart, besides those that are always shown
_ALWAYS = ("none", "reset", "rnr")
_PLOTS = "~plots"  # folder; no method has this name
_LONGEST = 60  # characters of a folder name
_Curve = dict[int, float]  # step on the axis of a chart to value


def write(runs_dir: Path, shown: Standings, plots: Mapping[str, bytes] | None = None) -> Path:
    """Write the leaderboard for TensorBoard and replace the previous one.

    - HParams: the columns in which runs differ. The rows are the runs themselves.
    - Text: all tables together, and each table, with six columns.
    - Custom Scalars: a category for each setting, with a chart of the accuracy after each task (RL: return over steps)
      and a chart of the drop at interventions. They show the mean and the 95 % confidence interval over seeds of the
      four best methods, ``none``, ``reset`` and ``rnr``.
    - Images: the plots.

    Args:
        runs_dir: Log directory of TensorBoard.
        shown: A leaderboard of at least one setting, built from results that were loaded with ``lean=False``.
        plots: Title to content of a PNG file; None keeps the existing plots.

    Returns:
        The folder that was written.

    Raises:
        RunError: The folder cannot be written, or another process takes very long to write it.
    """
    folder = runs_dir / FOLDER
    with wait_for_lock(folder):
        return _write(folder, shown, plots)


def _write(folder: Path, shown: Standings, plots: Mapping[str, bytes] | None) -> Path:
    images = [(0, tensorboard_summaries.image(f"figures/{title}", png)) for title, png in (plots or {}).items()]
    tables = [(0, tensorboard_summaries.text("all results", _table(shown)))]
    categories: dict[str, dict[str, tensorboard_summaries.Band]] = {}
    lines: dict[str, list[tensorboard_events.Entry]] = defaultdict(list)  # by folder
    charted: list[list[str]] = []  # folders of the lines of each setting
    names = _short_names([setting for setting, _ in shown.tables])
    for (setting, rows), name in zip(shown.tables, names, strict=True):
        tables.append((0, tensorboard_summaries.text(name, _table(Standings([(setting, rows)], [], [])))))
        methods = _charted(setting, rows)
        charted.append([_folder_name(method.name) for method in methods])
        bands = {}
        for tag, title, curve in _charts(setting):
            tags = (f"{name}/{tag}{suffix}" for suffix in ("", "-lower", "-upper"))
            bands[title] = band = tensorboard_summaries.Band(*tags)
            for method in methods:
                lines[_folder_name(method.name)] += _points(band, [curve(run) for run in method.runs.values()])
        categories[setting.title] = dict(reversed(bands.items()))  # TensorBoard shows the last one first
    runs = [run for setting, _ in shown.tables for run in setting.runs]
    columns = (0, _columns(differing_columns(runs), runs))
    layout = (0, tensorboard_summaries.layout(categories))
    # Early start times, so that TensorBoard lists the leaderboard's runs first, in this order.
    tensorboard_events.replace(folder, [columns, layout, *tables], start=1.0)
    for number, name in enumerate(_order(charted), start=2):
        tensorboard_events.replace(folder / name, lines[name], start=float(number))
    if plots is not None:
        tensorboard_events.replace(folder / _PLOTS, images, start=len(lines) + 2.0)
    for path in folder.iterdir():
        if path.is_dir() and path.name not in (*lines, _PLOTS):
            tensorboard_events.remove(path)
    return folder


def _columns(hyperparameters: Sequence[str], runs: Sequence[Result]) -> Summary:
    """The columns of the HParams tab: these hyperparameters, and the metrics that runs of these kinds have."""
    kinds = {run.is_rl for run in runs}
    return tensorboard_summaries.experiment(
        hyperparameters,
        [
            tensorboard_summaries.Column(f"{GROUP}/{metric.name}", metric.name, metric.meaning)
            for metric in METRICS
            if (metric.supervised and False in kinds) or (metric.rl and True in kinds)
        ],
    )


def _table(shown: Standings) -> str:
    """Format Markdown with few columns, whose values and headings do not wrap."""
    return text_format.markdown(shown, most=TEXT_COLUMNS, unbreakable=True)


def _order(charts: Sequence[Sequence[str]]) -> list[str]:
    """Order the lines so that as few as possible in one chart share a colour.

    TensorBoard gives the run at position ``i`` the colour ``i`` modulo 7. With seven lines or fewer, all differ.
    """
    partners: dict[str, set[str]] = defaultdict(set)
    for chart in charts:
        for name in chart:
            partners[name].update(chart)
    left = sorted(partners, key=lambda name: -len(partners[name]))
    order: list[str] = []
    while left:
        same_color = order[len(order) % COLORS :: COLORS]
        best = min(left, key=lambda name: len(partners[name].intersection(same_color)))  # the first of several
        left.remove(best)
        order.append(best)
    return order


def remove(runs_dir: Path) -> None:
    """Delete the leaderboard; other files in its folder are kept."""
    folder = runs_dir / FOLDER
    if folder.is_dir():
        (folder / LOCK).unlink(missing_ok=True)
        for path in [*(path for path in folder.iterdir() if path.is_dir()), folder]:
            tensorboard_events.remove(path)


def _charts(setting: Setting) -> list[tuple[str, str, Callable[[Result], _Curve]]]:
    """Tag, title and curve of each chart of a setting; the chart of drops only if there is a drop other than 0."""
    runs = setting.runs
    if setting.is_rl:
        several = len({point.task for point in runs[0].returns}) > 1
        title = "return at the end of each task, over steps" if several else "return over steps"
        charts = [("return", title, _return), ("drop", "return drop at interventions, over steps", _return_drop)]
    else:
        charts = [
            ("accuracy", "accuracy at the end of each task, %", _accuracy),
            ("drop", "accuracy drop at the boundary to each task, percentage points", _accuracy_drop),
        ]
    return [chart for chart in charts if chart[0] != "drop" or any(any(chart[2](run).values()) for run in runs)]


def _accuracy(result: Result) -> _Curve:
    return {task.task + 1: 100 * task.end for task in result.tasks}


def _accuracy_drop(result: Result) -> _Curve:
    return {task.task + 1: 100 * task.drop for task in result.tasks if task.drop is not None}


def _return(result: Result) -> _Curve:
    points = result.returns
    last = {point.task: point for point in points}  # with several tasks, the curve would be a sawtooth
    return {point.steps: point.value for point in (last.values() if len(last) > 1 else points)}


def _return_drop(result: Result) -> _Curve:
    return {event.steps: event.drop for event in result.events if event.drop is not None}


def _charted(setting: Setting, rows: Sequence[Row]) -> list[Method]:
    """The best methods of a setting, and those that are always shown."""
    by_name = {method.name: method for method in setting.methods}
    methods = [by_name[row["intervention"]] for row in rows]
    return [*methods[:BEST], *(method for method in methods[BEST:] if _label(method) in _ALWAYS)]


def _label(method: Method) -> str:
    return label(next(iter(method.runs.values())))


def _points(band: tensorboard_summaries.Band, curves: Sequence[_Curve]) -> list[tensorboard_events.Entry]:
    """Mean over seeds and the bounds of its interval, at every step that all seeds have."""
    points = []
    for step in sorted(set.intersection(*(set(curve) for curve in curves))):
        mean, low, high = mean_interval([curve[step] for curve in curves])
        lower, upper = (mean, mean) if low is None or high is None else (low, high)
        for tag, value in ((band.value, mean), (band.lower, lower), (band.upper, upper)):
            points.append((step, tensorboard_summaries.scalar(tag, value)))
    return points


def _short_names(settings: Sequence[Setting]) -> list[str]:
    """``env agent`` without options, short enough for a legend; numbered if several differ in options only."""
    seen: Counter[str] = Counter()
    names = []
    for setting in settings:
        name = " ".join(part.split(" ")[0] for part in (setting.env, setting.agent))
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return names


def _folder_name(name: str) -> str:
    """A short folder name without separators for a method; a digest keeps changed names unique."""
    safe = re.sub(r"[^\w.=,+ -]", "_", name).strip(". ")
    if safe == name and len(name) <= _LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{safe[: _LONGEST - 7]}~{digest}"
