"""Where figures go while a run is under way: TensorBoard and ``metrics.csv``."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from plastibench.config.errors import RunError
from plastibench.config.spec import PARTS, RunSpec
from plastibench.results.result import Cost, Result, Summary
from plastibench.utils import tensorboard_summaries

COLUMNS = ("update", "task", "epoch", "phase", "metric", "value")
# Columns of the HParams tab, which shows the first five; a run has either the accuracies or the returns.
LEADERBOARD = {
    "final": ("final accuracy or return", "after the last task; or mean of the last three evaluations"),
    "drop": ("drop", "accuracy or return lost right at the intervention, mean over them"),
    "auc": ("auc", "area under the curve of accuracy, mean over tasks; or mean return over evaluations"),
    "recovery": ("recovery", "epochs (or steps) until what it was before the intervention is back, mean over them"),
    "cost": ("cost", "share of the run's time that interventions took"),
    "unrecovered": ("unrecovered", "share of interventions after which it is never back"),
    "seconds": ("seconds", "of the whole run"),
    "updates": ("updates", "of the whole run"),
}
_SHOWN = (*PARTS, "options", "seed")
_SOURCES = {
    "final": ("final_accuracy", "final_return"),
    "drop": ("mean_drop",),
    "auc": ("auc", "average_return"),
    "recovery": ("mean_recovery_epochs", "mean_recovery_steps"),
    "unrecovered": ("unrecovered_fraction",),
}


class Recorder:
    """Writes the figures of one run; a resumed run continues where its checkpoint was made."""

    def __init__(
        self,
        folder: Path,
        spec: RunSpec,
        lengths: Mapping[str, int] | None = None,
        axis: str = "epoch",
        scenario: Mapping[str, Any] | None = None,
    ) -> None:
        """Open the files.

        Args:
            folder: The run's folder.
            spec: What is run.
            lengths: What :meth:`flush` returned when the state was saved from which the run goes on. What earlier
                tries wrote beyond that is cut off.
            axis: What the third column counts.
            scenario: Its ``version``, and the digest of its ``data``.
        """
        self._folder = folder
        lengths = lengths or {}
        path, length = folder / "metrics.csv", lengths.get("metrics.csv", 0)
        try:
            self._file = open(path, "r+" if length else "w", newline="", encoding="utf-8")  # noqa: SIM115
            if length:
                self._file.truncate(length)
                self._file.seek(length)
            self._csv = csv.writer(self._file)
            if not length:
                self._csv.writerow([axis if column == "epoch" else column for column in COLUMNS])
            for file in folder.glob("events.out.tfevents.*"):
                if file.name in lengths:
                    os.truncate(file, lengths[file.name])
                else:
                    file.unlink()
            _wait_for_the_next_second(folder)
            self._writer = SummaryWriter(str(folder))
        except OSError as error:
            if length and not path.exists():
                raise RunError(f"{path} is gone; delete {folder} to start the run anew") from error
            raise RunError(f"cannot write into {folder}: {error.strerror or error}") from error
        if not lengths:
            columns = [tensorboard_summaries.Column(f"leaderboard/{name}", *said) for name, said in LEADERBOARD.items()]
            for summary in tensorboard_summaries.session(_hyperparameters(spec, scenario or {}), columns, _SHOWN):
                self._summary(summary)
            self._writer.add_text("spec", f"```toml\n{spec.to_toml()}\n```")

    def scalars(
        self, update: int, task: int, place: float, phase: str, values: Mapping[str, float | None], prefix: str = ""
    ) -> None:
        """Record figures under ``prefix/name``; None is left out.

        Args:
            update: Updates since the start of the run.
            task: Number of the task, from 0.
            place: How far the run is, on its own axis.
            phase: ``training``, ``end`` (of a task) or ``after`` (an intervention).
            values: Metric name to value.
            prefix: Group of the metrics in TensorBoard.
        """
        for name, value in values.items():
            if value is None:
                continue
            tag = f"{prefix}/{name}" if prefix else name
            try:
                self._csv.writerow((update, task, f"{place:.12g}", phase, tag, repr(float(value))))
            except OSError as error:
                raise RunError(f"cannot write {self._file.name}: {error.strerror or error}") from error
            self._writer.add_scalar(f"{tag}/{phase}" if phase != "training" else tag, value, update)

    def histogram(self, update: int, name: str, values: Tensor) -> None:
        """Record a distribution."""
        if bool(torch.isfinite(values).all()):
            self._writer.add_histogram(name, values, update)

    def finish(self, update: int, result: Result) -> None:
        """Write the leaderboard's figures and mark the run as done.

        The HParams tab shows the last value of each, and opens its chart: that of the first leads to the final figure.

        Args:
            update: Updates since the start of the run.
            result: The result of the run.
        """
        way = [task.end for task in result.tasks] or [point.value for point in result.returns]
        for place, value in enumerate(way[:-1], start=1):
            self._writer.add_scalar("leaderboard/final", value, update * place // len(way))
        for name, found in leaderboard_values(result.summary, result.cost).items():
            if found is not None:  # an empty cell is sorted last, while TensorBoard cannot sort a column with NaN
                self._writer.add_scalar(f"leaderboard/{name}", found, update)
        self._summary(tensorboard_summaries.session_end())
        self.close()

    def flush(self) -> dict[str, int]:
        """Push everything to disk; return the length of each file in bytes.

        Raises:
            RunError: The disk is full, or the folder is gone.
        """
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._writer.flush()
            files = self._folder.glob("events.out.tfevents.*")
            return {"metrics.csv": self._file.tell(), **{path.name: path.stat().st_size for path in files}}
        except OSError as error:
            raise RunError(f"cannot write {self._file.name}: {error.strerror or error}") from error

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        self._writer.close()

    def _summary(self, summary: Any) -> None:
        # add_hparams() would open a second, time-stamped run and double every chart.
        assert self._writer.file_writer is not None
        self._writer.file_writer.add_summary(summary)


def leaderboard_values(summary: Summary, cost: Cost) -> dict[str, float | None]:
    """The row of a run in TensorBoard's HParams tab."""
    values = {name: [getattr(summary, source) for source in sources] for name, sources in _SOURCES.items()}
    row = {name: next((value for value in found if value is not None), None) for name, found in values.items()}
    row.update({"cost": cost.intervention_fraction, "seconds": cost.seconds, "updates": cost.updates})
    return {name: row[name] for name in LEADERBOARD}


def _wait_for_the_next_second(folder: Path) -> None:
    """TensorBoard reads the files of a run in the order of their names, which know whole seconds."""
    begun = [int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.*")]
    while begun and int(time.time()) <= max(begun) <= time.time() + 2:
        time.sleep(0.01)


def _hyperparameters(spec: RunSpec, scenario: Mapping[str, Any]) -> dict[str, str | float]:
    """The same keys with the same types in every run: TensorBoard hides columns that the first run lacks."""
    names: dict[str, str | float] = {part: getattr(spec, part)[0] for part in PARTS}
    changed = {
        part: ", ".join(f"{key.replace('__', '.')}={value}" for key, value in spec.changed(part).items())
        for part in PARTS
    }
    return {
        **names,
        "options": changed["intervention"],
        "seed": float(spec.run.seed),
        "env options": changed["env"],
        "agent options": changed["agent"],
        "every": float(spec.run.every),
        "version": float(scenario.get("version") or 1),
        "data": str(scenario.get("data") or ""),
    }
