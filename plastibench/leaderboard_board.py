"""The leaderboard in TensorBoard: tables, charts that compare interventions over seeds, and pictures.

TensorBoard gives each *run* a colour, so that each intervention in a chart is a small run of its own, below the one
that holds tables and pictures. None of them is a row of the HParams tab.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from plastibench import events, leaderboard
from plastibench.leaderboard import Result, acts, by_group, label

FOLDER = "leaderboard"
BEST = 4  # interventions in a chart, beside those that every reader looks for
_ALWAYS = ("none", "reset", "rnr")
_COLOURS = 7  # TensorBoard's palette, which is dealt out in the order of its list of runs
_LONGEST = 60  # characters of a folder's name
_Curve = dict[int, float]  # step on the axis of a chart → value


def write(runs_dir: Path, found: Sequence[Result], pictures: Mapping[str, bytes] | None = None) -> Path:
    """Write the leaderboard of these results for TensorBoard, in the place of what was there.

    Text: a table over all and one for each env and agent. Custom Scalars: a category for each env and agent, with a
    chart of accuracy after each task (return over steps), and one of what was lost at interventions: mean over seeds
    and its interval of 95 % confidence, of the best four interventions, ``none``, ``reset`` and ``rnr``. Images: the
    pictures.

    Args:
        runs_dir: The folder that TensorBoard is started on.
        found: Results, at least one.
        pictures: Title to the content of a PNG file.

    Returns:
        The folder that was written.

    Raises:
        RunError: It cannot be written.
    """
    folder = runs_dir / FOLDER
    contests: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in found:
        contests[label(result, "env"), label(result, "agent")].append(result)
    tables = [(0, events.text("all results", leaderboard.leaderboard(found, markdown=True)))]
    categories: dict[str, dict[str, events.Band]] = {}
    lines: dict[str, list[events.Entry]] = defaultdict(list)
    together: list[list[str]] = []
    names = _short_names(contests)
    for (env, agent), entries in sorted(contests.items()):
        short = names[env, agent]
        tables.append((0, events.text(short, leaderboard.leaderboard(entries, markdown=True))))
        shown = _shown(by_group(entries))
        together.append([label(runs[0]) for runs in shown])
        bands = {}
        for tag, title, curve in _charts(entries):
            bands[title] = band = events.Band(f"{short}/{tag}", f"{short}/{tag}-lower", f"{short}/{tag}-upper")
            for runs in shown:
                lines[label(runs[0])] += _points(band, [curve(run) for run in runs])
        categories[f"{env}, {agent}"] = dict(reversed(bands.items()))  # as TensorBoard shows the last one first
    page = (0, events.layout(categories))
    images = [(0, events.image(f"figures/{title}", png)) for title, png in (pictures or {}).items()]
    events.replace(folder, [page, *tables, *images])
    kept = {_safe(name): lines[name] for name in _by_colour(together)}
    for turn, (name, points) in enumerate(kept.items(), start=1):
        events.replace(folder / name, points, turn)
    for path in folder.iterdir():
        if path.is_dir() and path.name not in kept:
            events.remove(path)
    return folder


def _by_colour(together: Sequence[Sequence[str]]) -> list[str]:
    """The lines of all charts in an order that gives those of one chart different colours, as far as it can."""
    charts = Counter(name for names in together for name in names)
    waiting = sorted(charts, key=lambda name: -charts[name])
    placed: list[str] = []
    while waiting:
        same = set(placed[-_COLOURS::-_COLOURS])
        rivals = {name for names in together if same.intersection(names) for name in names}
        chosen = next((name for name in waiting if name not in rivals), waiting[0])
        waiting.remove(chosen)
        placed.append(chosen)
    return placed


def _charts(entries: Sequence[Result]) -> list[tuple[str, str, Callable[[Result], _Curve]]]:
    """Tag, title and curve of each chart of a contest; none of drops where nothing was ever lost."""
    if acts(entries[0]):
        several = len({point["task"] for point in entries[0]["returns"]}) > 1
        title = "return at the end of each task, over steps" if several else "return over steps"
        charts = [("return", title, _return), ("drop", "return lost at interventions, over steps", _return_drop)]
    else:
        charts = [
            ("accuracy", "accuracy at the end of each task, %", _accuracy),
            ("drop", "accuracy lost at the switch to each task, points", _accuracy_drop),
        ]
    return [chart for chart in charts if chart[0] != "drop" or any(any(chart[2](r).values()) for r in entries)]


def _accuracy(result: Result) -> _Curve:
    return {task["task"] + 1: 100 * task["end"] for task in result["tasks"]}


def _accuracy_drop(result: Result) -> _Curve:
    return {task["task"] + 1: 100 * task["drop"] for task in result["tasks"] if task["drop"] is not None}


def _return(result: Result) -> _Curve:
    points = result["returns"]
    last = {point["task"]: point for point in points}  # each begins where nothing is known: a line through all is a saw
    return {point["steps"]: point["value"] for point in (last.values() if len(last) > 1 else points)}


def _return_drop(result: Result) -> _Curve:
    return {event["steps"]: event["drop"] for event in result["events"] if event["drop"] is not None}


def _shown(groups: Sequence[list[Result]]) -> list[list[Result]]:
    """The best of a contest, and those that others are measured by."""
    final = "final-return" if acts(groups[0][0]) else "final-accuracy"
    ranked = sorted(groups, key=lambda runs: -sum(run["summary"][final] or 0.0 for run in runs) / len(runs))
    rest = [runs for runs in ranked[BEST:] if label(runs[0]) in _ALWAYS]
    return ranked[:BEST] + rest


def _points(band: events.Band, curves: Sequence[_Curve]) -> list[events.Entry]:
    """Mean over seeds, and the ends of its interval, at every step that all seeds have."""
    points = []
    for step in sorted(set.intersection(*(set(curve) for curve in curves))):
        lower, mean, upper = interval([curve[step] for curve in curves])
        for tag, value in ((band.value, mean), (band.lower, lower), (band.upper, upper)):
            points.append((step, events.scalar(tag, value)))
    return points


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean and Student's t interval of it: lower end, mean, upper end; all the same where there is one value."""
    from scipy.special import stdtrit

    count, mean = len(values), sum(values) / len(values)
    if count == 1:
        return mean, mean, mean
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    half = float(stdtrit(count - 1, (1 + confidence) / 2)) * (variance / count) ** 0.5
    return mean - half, mean, mean + half


def _short_names(contests: Mapping[tuple[str, str], Sequence[Result]]) -> dict[tuple[str, str], str]:
    """``env agent`` without options, and a number where several differ in options alone: tags are read in a legend."""
    seen: Counter[str] = Counter()
    names = {}
    for contest in sorted(contests):
        name = " ".join(part.split(" ")[0] for part in contest)
        seen[name] += 1
        names[contest] = name if seen[name] == 1 else f"{name} ({seen[name]})"
    return names


def _safe(name: str) -> str:
    """A folder for the line of an intervention: no separators, and not longer than file systems and legends bear."""
    safe = re.sub(r"[^\w.=,+ -]", "_", name).strip(". ")
    if safe == name and len(name) <= _LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{safe[: _LONGEST - 7]}~{digest}"
