"""Write a run's metrics to TensorBoard and ``metrics.csv``."""

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
from plastibench.config.spec import RunSpec
from plastibench.results import hparams
from plastibench.results.result import Result
from plastibench.utils import tensorboard_summaries

COLUMNS = ("update", "task", "epoch", "phase", "metric", "value")


class Recorder:
    """Writes the metrics of one run; a resumed run continues where its checkpoint was saved."""

    def __init__(
        self,
        folder: Path,
        spec: RunSpec,
        lengths: Mapping[str, int] | None = None,
        axis: str = "epoch",
        env_version: int = 1,
        data: str | None = None,
    ) -> None:
        """Open the files.

        Args:
            folder: The run's folder.
            spec: The spec of the run.
            lengths: Lengths of the files at the checkpoint from which the run resumes, as returned by :meth:`flush`.
                What was written after the checkpoint is truncated.
            axis: Name of the third column, the unit of ``position``.
            env_version: Version of the env.
            data: Digest of the dataset.

        Raises:
            RunError: The folder cannot be written, or ``metrics.csv`` of the checkpoint is missing.
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
            _wait_for_next_second(folder)
            self._writer = SummaryWriter(str(folder))
        except OSError as error:
            if length and not path.exists():
                raise RunError(f"{path} is missing; delete {folder} to restart the run") from error
            raise RunError(f"cannot write to {folder}: {error.strerror or error}") from error
        if not lengths:
            values = {**hparams.hyperparameters(spec), "version": str(env_version), "data": data or ""}
            self._summary(tensorboard_summaries.session(values, hparams.trial_name(spec)))
            self._writer.add_text("spec", f"```toml\n{spec.to_toml()}\n```")

    def scalars(
        self, update: int, task: int, position: float, phase: str, values: Mapping[str, float | None], prefix: str = ""
    ) -> None:
        """Record values under ``prefix/name``; None values are skipped.

        Args:
            update: Updates since the start of the run.
            task: Number of the task, from 0.
            position: Epochs since the start of the task, or environment steps.
            phase: ``training``, ``end`` (of a task) or ``after`` (an intervention).
            values: Metric name to value.
            prefix: Group of the metrics in TensorBoard.

        Raises:
            RunError: The disk is full.
        """
        for name, value in values.items():
            if value is None:
                continue
            tag = f"{prefix}/{name}" if prefix else name
            try:
                self._csv.writerow((update, task, f"{position:.12g}", phase, tag, repr(float(value))))
            except OSError as error:
                raise RunError(f"cannot write {self._file.name}: {error.strerror or error}") from error
            self._writer.add_scalar(f"{tag}/{phase}" if phase != "training" else tag, value, update)

    def histogram(self, update: int, name: str, values: Tensor) -> None:
        """Record a distribution; skipped if a value is not finite."""
        if bool(torch.isfinite(values).all()):
            self._writer.add_histogram(name, values, update)

    def finish(self, update: int, result: Result) -> None:
        """Write the leaderboard values, mark the run as finished and close the files.

        The HParams tab shows the last point of each chart. The chart of the final value also shows earlier tasks or
        evaluations.

        Args:
            update: Updates since the start of the run.
            result: The result of the run.
        """
        scale, final = (1.0, "final return") if result.is_rl else (100.0, "final %")
        values = [scale * task.end for task in result.tasks] or [point.value for point in result.returns]
        for number, value in enumerate(values[:-1], start=1):
            self._writer.add_scalar(f"{hparams.GROUP}/{final}", value, update * number // len(values))
        for name, found in hparams.metric_values(result.summary, result.cost).items():
            self._writer.add_scalar(f"{hparams.GROUP}/{name}", found, update)
        self._summary(tensorboard_summaries.session_end())
        self.close()

    def flush(self) -> dict[str, int]:
        """Flush all files to disk; return the length of each in bytes.

        Raises:
            RunError: The disk is full, or the folder is missing.
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
        # add_hparams() would create a second, time-stamped run and duplicate every chart.
        assert self._writer.file_writer is not None
        self._writer.file_writer.add_summary(summary)


def _wait_for_next_second(folder: Path) -> None:
    """TensorBoard reads the event files of a run in the order of their names, which contain the time in seconds."""
    started = [int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.*")]
    while started and int(time.time()) <= max(started) <= time.time() + 2:
        time.sleep(0.01)
