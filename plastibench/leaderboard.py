"""Tables over finished runs: runs that differ in their seed alone stand in one row."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from plastibench import results
from plastibench.errors import UserError
from plastibench.tables import markdown_table, mean_std, percent, text_table

Result = dict[str, Any]
_SHOWN_TASKS = 10
_ACCURACIES = ("final %", "average %", "auc %", "drop", "recovery")
_RETURNS = ("final", "average", "drop", "lowest", "Q bias", "recovery")


def load(runs_dir: Path) -> list[Result]:
    """All results below a folder; one that cannot be read is named on stderr and left out.

    Each has its folder under the key ``folder``, which is no part of the schema: figures read what else lies there.

    Raises:
        UserError: There is no such folder, or no result in it.
    """
    if not runs_dir.is_dir():
        raise UserError(f"no folder {runs_dir}; run something first, or name another with --runs-dir")
    found = []
    for path in results.find(runs_dir):
        try:
            found.append({**results.read(path), "folder": path.parent})
        except UserError as error:
            print(f"plastibench: left out: {error}", file=sys.stderr)
    if not found:
        raise UserError(f"no finished run in {runs_dir}; run something first, or name another with --runs-dir")
    return found


def leaderboard(found: Iterable[Result], markdown: bool = False) -> str:
    """One table per env and agent, options included, best final accuracy or return first; mean ± std over seeds."""
    contests: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in found:
        contests[label(result, "env"), label(result, "agent")].append(result)
    parts = []
    for (env, agent), entries in sorted(contests.items()):
        acting = acts(entries[0])
        best = "final-return" if acting else "final-accuracy"
        groups = sorted(by_group(entries), key=lambda runs: -_mean(runs, best))
        header = [*("intervention", "seeds"), *(_RETURNS if acting else _ACCURACIES), *("seconds", "cost %")]
        rows = [_row(runs) for runs in groups]
        title = f"### {env}, {agent}" if markdown else f"{env}, {agent}"
        parts.append(f"{title}\n\n{(markdown_table if markdown else text_table)(header, rows)}")
    return "\n\n".join(parts)


def acts(result: Result) -> bool:
    """Whether the agent of a run acted in an environment, so that returns count and not accuracies."""
    return "returns" in result


def comparison(found: Sequence[Result]) -> str:
    """The tables at the end of ``run``, with what they mean."""
    if acts(found[0]):
        return f"{_return_comparison(found)}\n\n{_EXPLANATION_OF_RETURNS}"
    return f"{_accuracy_comparison(found)}\n\n{EXPLANATION}"


def _return_comparison(found: Sequence[Result]) -> str:
    """Return along the way, what followed each intervention, what it did and cost."""
    points = found[0]["returns"]
    shown = sorted({round(i * (len(points) - 1) / (_SHOWN_TASKS - 1)) for i in range(_SHOWN_TASKS)})
    header = ["return after steps", *(f"{points[place]['steps'] / 1000:g}k" for place in shown)]
    header += ["final", "drop", "lowest", "recovery", "revived %", "cost %"]
    rows = []
    for runs in by_group(found):
        curve = [f"{_average(run['returns'][place]['value'] for run in runs):.4g}" for place in shown]
        rows.append([label(runs[0]), *curve, *_returns(runs, "final-return", "mean-drop", "mean-lowest")])
        rows[-1] += [_steps(runs), _revived(runs), _cost(runs)]
    return text_table(header, rows)


def _accuracy_comparison(found: Sequence[Result]) -> str:
    """Accuracy task by task, drop by switch, what each intervention did and cost."""
    tasks = len(found[0]["tasks"])
    shown = sorted(
        {round(i * (tasks - 1) / (min(tasks, _SHOWN_TASKS) - 1 or 1)) for i in range(min(tasks, _SHOWN_TASKS))}
    )
    header = ["accuracy % after task", *(str(task + 1) for task in shown)]
    header += ["final", "drop", "recovery", "revived %", "cost %"]
    rows = []
    for runs in by_group(found):
        ends = [percent(_average(run["tasks"][task]["end"] for run in runs), 0) for task in shown]
        summaries = [run["summary"] for run in runs]
        final = mean_std([s["final-accuracy"] for s in summaries])
        drop = mean_std([s["mean-drop"] for s in summaries])
        rows.append([label(runs[0]), *ends, final, drop, recovery(runs), _revived(runs), _cost(runs)])
    tables = [text_table(header, rows)]
    switches = [task for task in shown if task]
    acted = [runs for runs in by_group(found) if any(run["interventions"] for run in runs)]
    if switches and acted:
        drops = [
            [label(runs[0]), *(percent(_average(run["tasks"][task]["drop"] for run in runs)) for task in switches)]
            for runs in acted
        ]
        tables.append(text_table(["drop before task", *(str(task + 1) for task in switches)], drops))
    return "\n\n".join(tables)


EXPLANATION = (
    "drop: points of accuracy lost right at the intervention, mean over switches; recovery: epochs until the accuracy\n"
    "before the switch is back (in brackets: share of switches where it is not); revived: share of units re-drawn;\n"
    "cost: share of the run's time that the intervention took."
)


_EXPLANATION_OF_RETURNS = (
    "return: mean of full greedy episodes; final: mean of the last three evaluations; drop: return lost right at the\n"
    "intervention, mean over them; lowest: smallest return between it and the next; recovery: steps until the return\n"
    "before it is back (in brackets: share of interventions after which it is not); revived: share of units re-drawn;\n"
    "cost: share of the run's time that the intervention took."
)


def by_group(found: Iterable[Result]) -> list[list[Result]]:
    """Results of the same spec together, in order of first appearance; seeds in order."""
    groups: dict[str, list[Result]] = {}
    for result in found:
        groups.setdefault(result["group"], []).append(result)
    return [sorted(runs, key=lambda run: run["seed"]) for runs in groups.values()]


def label(result: Result, part: str = "intervention") -> str:
    """The name of an env, agent or intervention, with the options that differ from what it stands for."""
    changed = {**result["changed"][part]}
    if part == "intervention":
        if result["every"]:
            changed["every"] = result["every"]
        changed.update(result.get("schedule", {}))
    shown = {key.replace("__", "."): ",".join(map(str, v)) if isinstance(v, list) else v for key, v in changed.items()}
    return " ".join([result[part], *(f"{key}={value}" for key, value in shown.items())])


def _row(runs: list[Result]) -> list[str]:
    summaries = [run["summary"] for run in runs]

    def column(name: str) -> str:
        return mean_std([summary[name] for summary in summaries])

    seconds = mean_std([run["cost"]["seconds"] for run in runs], scale=1, digits=0)
    if acts(runs[0]):
        shown = _returns(runs, "final-return", "average-return", "mean-drop", "mean-lowest", "final-q-bias")
        return [label(runs[0]), str(len(runs)), *shown, _steps(runs), seconds, _cost(runs)]
    shown = [column(name) for name in ("final-accuracy", "average-accuracy", "auc", "mean-drop")]
    return [label(runs[0]), str(len(runs)), *shown, recovery(runs), seconds, _cost(runs)]


def _returns(runs: list[Result], *names: str) -> list[str]:
    return [mean_std([run["summary"][name] for run in runs], scale=1, digits=2) for name in names]


def _steps(runs: list[Result]) -> str:
    steps = _average(run["summary"]["mean-recovery-steps"] for run in runs)
    never = _average(run["summary"]["unrecovered-share"] for run in runs)
    if steps is None:
        return "never" if never else "–"
    return f"{steps:,.0f}" + (f" ({percent(never, 0)} %)" if never else "")


def final_accuracy(runs: list[Result]) -> float:
    """Mean over runs of the accuracy after the last task."""
    return _mean(runs, "final-accuracy")


def recovery(runs: list[Result]) -> str:
    """Epochs until the accuracy before a switch is back, and the share of switches after which it never is."""
    epochs = _average(run["summary"]["mean-recovery-epochs"] for run in runs)
    never = _average(run["summary"]["unrecovered-share"] for run in runs)
    if epochs is None:
        return "never" if never else "–"
    return f"{epochs:.1f}" + (f" ({percent(never, 0)} %)" if never else "")


def _revived(runs: list[Result]) -> str:
    shares = [report["revived-share"] for run in runs for report in run["interventions"]]
    return percent(_average(shares), 0)


def _cost(runs: list[Result]) -> str:
    return percent(_average(run["cost"]["intervention-seconds"] / max(run["cost"]["seconds"], 1e-9) for run in runs))


def _mean(runs: list[Result], name: str) -> float:
    return _average(run["summary"][name] for run in runs) or 0.0


def _average(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
