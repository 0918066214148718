"""The file ``metrics.csv`` of a run: the meaning of its columns, phases and names, and a reader."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from plastibench.config.errors import UserError

NAME = "metrics.csv"
#: Column to its meaning. A file has either ``epoch`` or ``steps``.
COLUMNS = {
    "update": "updates of the agent since the start of the run",
    "task": "number of the task, from 0",
    "epoch": "task streams: epochs since the start of the task",
    "steps": "RL environments: agent steps since the start of the run, summed over parallel environments",
    "phase": "when the value was measured",
    "metric": "name of the value, after the prefix of its group",
    "value": "the value; fractions and accuracies are between 0 and 1",
}
#: Value of the column ``phase`` to its meaning.
PHASES = {
    "evaluation": "measured at this moment: accuracy on evaluation images, return of evaluation episodes, and in RL "
    "runs the plasticity metrics",
    "training": "mean over the updates or training episodes since the last evaluation, or a count",
    "end": "measured at the end of a task",
    "after": "measured right after an intervention, or at the start of a task",
}
#: Beginning of a name to its meaning; other names have no prefix.
PREFIXES = {
    "plasticity-ROLE/": "a plasticity metric of the network with this role, such as plasticity-critic/srank",
    "layers-ROLE/LAYER/": "a plasticity metric of one layer",
    "intervention-ROLE/": "what an intervention did to the network",
    "intervention-ROLE/MODULE/": "what an intervention did to one module",
}
_EVALUATED = {"accuracy", "return", "q-bias"}  # older files say `training` here


class Row(NamedTuple):
    """A line of the file; ``position`` counts epochs since the start of the task, or agent steps."""

    update: int
    task: int
    position: float
    phase: str
    metric: str
    value: float


def rows_of(
    update: int, task: int, position: float, phase: str, values: Mapping[str, float | None], prefix: str = ""
) -> list[Row]:
    """The rows of values under ``prefix/name``; None values are skipped."""
    return [
        Row(update, task, position, phase, f"{prefix}/{name}" if prefix else name, float(value))
        for name, value in values.items()
        if value is not None
    ]


def chart_name(metric: str, phase: str) -> str:
    """Name of the chart of a metric in TensorBoard and other trackers, such as ``accuracy`` and ``accuracy/end``."""
    return f"{metric}/{phase}" if phase in ("end", "after") else metric


def columns(axis: str) -> list[str]:
    """The columns of a file, whose position column is ``epoch`` or ``steps``."""
    return [name for name in COLUMNS if name == axis or name not in ("epoch", "steps")]


def read(path: Path) -> Iterator[Row]:
    """Read a file row by row; phases of older files get their current names.

    Raises:
        UserError: The file is corrupt.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                position = row["epoch"] if "epoch" in row else row["steps"]
                phase, metric, task = row["phase"], row["metric"], int(row["task"])
                if task < 0:
                    raise ValueError(f"task {task}")
                if phase == "training" and (metric in _EVALUATED or metric.startswith(("plasticity-", "layers-"))):
                    phase = "evaluation"
                yield Row(int(row["update"]), task, float(position), phase, metric, float(row["value"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {error})") from error
