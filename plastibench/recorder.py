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
from torch.utils.tensorboard.summary import hparams

from plastibench.errors import RunError
from plastibench.spec import PARTS, RunSpec

COLUMNS = ("update", "task", "epoch", "phase", "metric", "value")
LEADERBOARD = (
    *("final-accuracy", "average-accuracy", "auc", "mean-drop", "mean-recovery-epochs"),
    *("final-return", "average-return", "seconds"),
)


class Recorder:
    """Writes the figures of one run; a resumed run continues where its checkpoint was made."""

    def __init__(
        self, folder: Path, spec: RunSpec, lengths: Mapping[str, int] | None = None, axis: str = "epoch"
    ) -> None:
        """Open the files.

        Args:
            folder: The run's folder.
            spec: What is run.
            lengths: What :meth:`flush` returned when the state was saved from which the run goes on. What earlier
                tries wrote beyond that is cut off.
            axis: What the third column counts.
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
            for events in folder.glob("events.out.tfevents.*"):
                if events.name in lengths:
                    os.truncate(events, lengths[events.name])
                else:
                    events.unlink()
            _wait_for_the_next_second(folder)
            self._writer = SummaryWriter(str(folder))
        except OSError as error:
            raise RunError(f"cannot write into {folder}: {error.strerror or error}") from error
        if not lengths:
            experiment, session, _ = hparams(
                _hyperparameters(spec), {f"leaderboard/{name}": 0.0 for name in LEADERBOARD}
            )
            self._summary(experiment)
            self._summary(session)
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

    def finish(self, update: int, figures: Mapping[str, float | None]) -> None:
        """Write the leaderboard's figures and mark the run as done."""
        for name in (name for name in LEADERBOARD if name in figures):
            value = figures[name]
            self._writer.add_scalar(f"leaderboard/{name}", float("nan") if value is None else value, update)
        _, _, end = hparams({"env": ""}, {"leaderboard/final-accuracy": 0.0})
        self._summary(end)
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
            events = self._folder.glob("events.out.tfevents.*")
            return {"metrics.csv": self._file.tell(), **{path.name: path.stat().st_size for path in events}}
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


def _wait_for_the_next_second(folder: Path) -> None:
    """TensorBoard reads the files of a run in the order of their names, which know whole seconds."""
    begun = [int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.*")]
    while begun and int(time.time()) <= max(begun) <= time.time() + 2:
        time.sleep(0.01)


def _hyperparameters(spec: RunSpec) -> dict[str, str | float]:
    """The same keys with the same types in every run: TensorBoard hides columns that the first run lacks."""
    names: dict[str, str | float] = {part: getattr(spec, part)[0] for part in PARTS}
    changed = ", ".join(f"{key.replace('__', '.')}={value}" for key, value in spec.changed("intervention").items())
    return {**names, "options": changed, "seed": float(spec.run.seed), "every": float(spec.run.every)}
