"""The interface of an experiment tracker, and the names that ``--log`` accepts."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from plastibench.config.errors import UserError, did_you_mean
from plastibench.results.metrics_csv import Row, chart_name

TENSORBOARD = "tensorboard"  # part of every run, so naming it changes nothing
TRACKERS = ("wandb", "mlflow", "trackio")  # each is the name of its module and of its extra, too
PROJECT = "plastibench"  # unless the tracker's own environment variable names another project
Status = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class RunInfo:
    """What a tracker shows about a run besides its metrics.

    Attributes:
        name: Short name of the run, such as ``rnr·q=0.2·s0``.
        group: The same for all seeds: env, agent, and the name without the seed.
        digest: Digest of everything that defines the run.
        tags: Tags by kind: ``{"env": "cl-digits", …, "seed": "0"}``.
        runs_dir: Folder of all runs, which other processes share.
    """

    name: str
    group: str
    digest: str
    tags: Mapping[str, str]
    runs_dir: Path


class LoggedStep(NamedTuple):
    """The scalars of one step of a run.

    Attributes:
        number: Increases from step to step, also across restarts.
        update: Updates of the agent since the start of the run.
        values: Name of each chart to its value; ``task`` and ``epoch`` or ``steps`` are among them.
    """

    number: int
    update: int
    values: dict[str, float]


class Tracker(Protocol):
    """A run in a tracker.

    Each module ``NAME_tracker`` has a function ``start(info, known_id)`` that returns one. With the id of an earlier
    process, it continues the same run there. All methods may raise any exception: the caller then stops tracking.

    Attributes:
        id: What identifies the run in the tracker.
        location: Where the user finds it: a URL, a folder or a command.
    """

    id: str
    location: str

    def log_config(self, config: Mapping[str, Mapping[str, Any]]) -> None:
        """Record the options of env, agent, intervention and run as the tracker's configuration."""

    def log_scalars(self, steps: Sequence[LoggedStep]) -> None:
        """Record the scalars of some steps, in order."""

    def log_table(self, name: str, update: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Record a table."""

    def close(self, status: Status) -> None:
        """Send what is left; a run that was stopped may be continued later."""


def parse_names(text: str | Iterable[str]) -> tuple[str, ...]:
    """The trackers in ``wandb,mlflow``, each once, without TensorBoard.

    Raises:
        UserError: The tracker is unknown, or its library is not installed.
    """
    words = text.split(",") if isinstance(text, str) else list(text)
    known = (TENSORBOARD, *TRACKERS)
    for name in words:
        if name not in known:
            raise UserError(f"unknown tracker '{name}'{did_you_mean(name, known)} ({', '.join(known)})")
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # a folder ./wandb is found, too, but has no origin
            raise UserError(f"the tracker {name} is not installed; pip install 'plastibench[{name}]'")
    return tuple(dict.fromkeys(name for name in words if name != TENSORBOARD))


def start(name: str, info: RunInfo, known_id: str | None) -> Tracker:
    """Start or continue a run in a tracker; this imports its library."""
    module = importlib.import_module(f"plastibench.training.trackers.{name}_tracker")
    tracker: Tracker = module.start(info, known_id)
    return tracker


def project_name(variable: str) -> str:
    """The project that a tracker's own environment variable names, or the default."""
    return os.environ.get(variable) or PROJECT


def steps_of(rows: Sequence[Row], first: int, axis: str) -> list[LoggedStep]:
    """Combine consecutive rows of the same step.

    At a task boundary, an update is evaluated twice, on the old and on the new task; these are two steps.

    Args:
        rows: Rows of ``metrics.csv``.
        first: Number of the first row in the file.
        axis: What their positions count: ``epoch`` or ``steps``.
    """
    found: list[LoggedStep] = []
    for number, row in enumerate(rows, start=first):
        at = {"task": float(row.task), axis: row.position}
        name = chart_name(row.metric, row.phase)
        latest = found[-1] if found else None
        if (
            latest is None
            or name in latest.values
            or (latest.update, {**latest.values, **at}) != (row.update, latest.values)
        ):
            latest = LoggedStep(number, row.update, at)
            found.append(latest)
        latest.values[name] = row.value
    return found
