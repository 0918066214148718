"""The leaderboard in TensorBoard: tables, charts that compare interventions over seeds, and pictures.

TensorBoard gives each *run* a colour, so that each intervention in a chart is a small run of its own, below the one
that holds tables and pictures. None of them is a row of the HParams tab.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from plastibench.leaderboard import text as text_format
from plastibench.leaderboard.rows import Row
from plastibench.leaderboard.settings import Entry, Setting, label
from plastibench.leaderboard.standings import Standings
from plastibench.results.confidence import mean_interval
from plastibench.results.result import Result
from plastibench.utils import tensorboard_events, tensorboard_summaries

FOLDER = "leaderboard"
BEST = 4  # interventions in a chart, beside those that every reader looks for
_ALWAYS = ("none", "reset", "rnr")
_PICTURES = "~pictures"  # no intervention's folder is called so
_COLOURS = 7  # TensorBoard's palette, which is dealt out in the order of its list of runs
_TRIES = 500  # exchanges in the search for an order in which colours do not clash
_LONGEST = 60  # characters of a folder's name
_Curve = dict[int, float]  # step on the axis of a chart → value


def write(runs_dir: Path, shown: Standings, pictures: Mapping[str, bytes] | None = None) -> Path:
    """Write the leaderboard for TensorBoard, in the place of what was there.

    Text: all tables, and each by itself. Custom Scalars: a category for each contest, with a chart of accuracy after
    each task (return over steps), and one of what was lost at interventions: mean over seeds and its interval of 95 %
    confidence, of the best four interventions, ``none``, ``reset`` and ``rnr``. Images: the pictures.

    Args:
        runs_dir: The folder that TensorBoard is started on.
        shown: What is compared, at least one contest; made of whole results, not of lean ones.
        pictures: Title to the content of a PNG file; None leaves those that are there.

    Returns:
        The folder that was written.

    Raises:
        RunError: It cannot be written.
    """
    folder = runs_dir / FOLDER
    images = [(0, tensorboard_summaries.image(f"figures/{title}", png)) for title, png in (pictures or {}).items()]
    tables = [(0, tensorboard_summaries.text("all results", text_format.markdown(shown)))]
    categories: dict[str, dict[str, tensorboard_summaries.Band]] = {}
    lines: dict[str, list[tensorboard_events.Entry]] = defaultdict(list)
    together: list[list[str]] = []
    names = _short_names([contest for contest, _ in shown.tables])
    for (contest, rows), short in zip(shown.tables, names, strict=True):
        tables.append(
            (0, tensorboard_summaries.text(short, text_format.markdown(Standings([(contest, rows)], [], []))))
        )
        entries = _charted(contest, rows)
        together.append([entry.name for entry in entries])
        bands = {}
        for tag, title, curve in _charts(contest):
            bands[title] = band = tensorboard_summaries.Band(
                f"{short}/{tag}", f"{short}/{tag}-lower", f"{short}/{tag}-upper"
            )
            for entry in entries:
                lines[entry.name] += _points(band, [curve(run) for run in entry.runs.values()])
        categories[contest.title] = dict(reversed(bands.items()))  # as TensorBoard shows the last one first
    tensorboard_events.replace(folder, [(0, tensorboard_summaries.layout(categories)), *tables])
    if pictures is not None:
        tensorboard_events.replace(folder / _PICTURES, images)
    kept = {_safe(name): lines[name] for name in _by_colour(together)}
    for turn, (name, points) in enumerate(kept.items(), start=1):
        tensorboard_events.replace(folder / name, points, turn)
    for path in folder.iterdir():
        if path.is_dir() and path.name not in (*kept, _PICTURES):
            tensorboard_events.remove(path)
    return folder


def _by_colour(together: Sequence[Sequence[str]]) -> list[str]:
    """The lines of all charts in an order that gives those of one chart different colours, as far as can be found."""
    order = list(dict.fromkeys(name for names in together for name in names))
    dice = random.Random(0)
    for _ in range(_TRIES if len(order) > _COLOURS else 0):
        one, other = dice.sample(range(len(order)), 2)
        trial = list(order)
        trial[one], trial[other] = order[other], order[one]
        if _clashes(trial, together) <= _clashes(order, together):
            order = trial
    return order


def _clashes(order: Sequence[str], together: Sequence[Sequence[str]]) -> int:
    colours = {name: place % _COLOURS for place, name in enumerate(order)}
    return sum(len(names) - len({colours[name] for name in names}) for names in together)


def _charts(contest: Setting) -> list[tuple[str, str, Callable[[Result], _Curve]]]:
    """Tag, title and curve of each chart of a contest; none of drops where nothing was ever lost."""
    runs = [run for entry in contest.entries for run in entry.runs.values()]
    if contest.is_rl:
        several = len({point.task for point in runs[0].returns}) > 1
        title = "return at the end of each task, over steps" if several else "return over steps"
        charts = [("return", title, _return), ("drop", "return lost at interventions, over steps", _return_drop)]
    else:
        charts = [
            ("accuracy", "accuracy at the end of each task, %", _accuracy),
            ("drop", "accuracy lost at the switch to each task, points", _accuracy_drop),
        ]
    return [chart for chart in charts if chart[0] != "drop" or any(any(chart[2](run).values()) for run in runs)]


def _accuracy(result: Result) -> _Curve:
    return {task.task + 1: 100 * task.end for task in result.tasks}


def _accuracy_drop(result: Result) -> _Curve:
    return {task.task + 1: 100 * task.drop for task in result.tasks if task.drop is not None}


def _return(result: Result) -> _Curve:
    points = result.returns
    last = {point.task: point for point in points}  # each begins where nothing is known: a line through all is a saw
    return {point.steps: point.value for point in (last.values() if len(last) > 1 else points)}


def _return_drop(result: Result) -> _Curve:
    return {event.steps: event.drop for event in result.events if event.drop is not None}


def _charted(contest: Setting, rows: Sequence[Row]) -> list[Entry]:
    """The best of a contest, and those that others are measured by."""
    entries = {entry.name: entry for entry in contest.entries}
    best = [row["intervention"] for row in rows[:BEST]]
    rest = [row["intervention"] for row in rows[BEST:] if _first(entries[row["intervention"]]) in _ALWAYS]
    return [entries[name] for name in (*best, *rest)]


def _first(entry: Entry) -> str:
    return label(next(iter(entry.runs.values())))


def _points(band: tensorboard_summaries.Band, curves: Sequence[_Curve]) -> list[tensorboard_events.Entry]:
    """Mean over seeds, and the ends of its interval, at every step that all seeds have."""
    points = []
    for step in sorted(set.intersection(*(set(curve) for curve in curves))):
        mean, low, high = mean_interval([curve[step] for curve in curves])
        lower, upper = (mean, mean) if low is None or high is None else (low, high)
        for tag, value in ((band.value, mean), (band.lower, lower), (band.upper, upper)):
            points.append((step, tensorboard_summaries.scalar(tag, value)))
    return points


def _short_names(contests: Sequence[Setting]) -> list[str]:
    """``env agent`` without options, and a number where several differ in options alone: tags are read in a legend."""
    seen: Counter[str] = Counter()
    names = []
    for contest in contests:
        name = " ".join(part.split(" ")[0] for part in (contest.env, contest.agent))
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return names


def _safe(name: str) -> str:
    """A folder for the line of an intervention: no separators, and not longer than file systems and legends bear."""
    safe = re.sub(r"[^\w.=,+ -]", "_", name).strip(". ")
    if safe == name and len(name) <= _LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{safe[: _LONGEST - 7]}~{digest}"
