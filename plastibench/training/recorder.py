"""Write a run's metrics to TensorBoard and ``metrics.csv``."""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import summary as torch_summaries

from plastibench.config.errors import RunError
from plastibench.config.spec import RunSpec
from plastibench.results import hparams, metrics_csv
from plastibench.results.result import Result
from plastibench.training.log_files import Covered, GrowingFile
from plastibench.utils import tensorboard_summaries
from plastibench.utils.tensorboard_events import EventFile, event_files

_POSITIVE = 1e-12 * 1.1 ** np.arange(774)  # up to 1e20
_BINS = np.concatenate([-_POSITIVE[::-1], [0.0], _POSITIVE])  # the default of SummaryWriter.add_histogram()


class Recorder:
    """Writes the metrics of one run; a resumed run continues where its checkpoint was saved."""

    def __init__(
        self,
        folder: Path,
        spec: RunSpec,
        covered: Mapping[str, Covered] | None = None,
        axis: str = "epoch",
        env_version: int = 1,
        data: str | None = None,
    ) -> None:
        """Open the files.

        Args:
            folder: The run's folder.
            spec: The spec of the run.
            covered: The files at the checkpoint from which the run resumes, as returned by :meth:`flush` and checked by
                :func:`~plastibench.training.log_files.check`. Anything written after the checkpoint is truncated.
            axis: Name of the third column, the unit of ``position``.
            env_version: Version of the env.
            data: Digest of the dataset.

        Raises:
            RunError: The folder cannot be written.
        """
        self._earlier = {name: value for name, value in (covered or {}).items() if name != "metrics.csv"}
        path = folder / "metrics.csv"
        length = covered["metrics.csv"][0] if covered else 0
        try:
            self._file = open(path, "r+" if covered else "w", newline="", encoding="utf-8")  # noqa: SIM115
            self._file.truncate(length)
            self._file.seek(length)
            self._csv = csv.writer(self._file)
            if not covered:
                self._csv.writerow(metrics_csv.columns(axis))
            for file in event_files(folder):
                if file.name in self._earlier:
                    os.truncate(file, self._earlier[file.name][0])
                else:
                    file.unlink()
            self._events = EventFile(folder)
            self._growing = [GrowingFile(path), GrowingFile(self._events.path)]
            if not covered:
                given = {**hparams.hyperparameters(spec), "version": str(env_version), "data": data or ""}
                self._events.add(0, tensorboard_summaries.session(given, hparams.trial_name(spec)))
                self._events.add(0, torch_summaries.text("spec", f"```toml\n{spec.to_toml()}\n```"))
        except OSError as error:
            raise RunError(f"cannot write to {folder}: {error.strerror or error}") from error

    def scalars(
        self, update: int, task: int, position: float, phase: str, values: Mapping[str, float | None], prefix: str = ""
    ) -> None:
        """Record values under ``prefix/name``; None values are skipped.

        Args:
            update: Updates since the start of the run.
            task: Number of the task, from 0.
            position: Epochs since the start of the task, or environment steps.
            phase: A key of :data:`plastibench.results.metrics_csv.PHASES`.
            values: Metric name to value.
            prefix: Group of the metrics in TensorBoard.

        Raises:
            RunError: The disk is full.
        """
        for row in metrics_csv.rows_of(update, task, position, phase, values, prefix):
            try:
                self._csv.writerow((update, task, f"{position:.12g}", phase, row.metric, repr(row.value)))
            except OSError as error:
                raise self._cannot_write(error) from error
            self._add(update, tensorboard_summaries.scalar(metrics_csv.chart_name(row.metric, phase), row.value))

    def histogram(self, update: int, name: str, values: Tensor) -> None:
        """Record a distribution; skipped if a value is not finite.

        Raises:
            RunError: A value is beyond TensorBoard's bins, which end at 1e20.
        """
        if bool(torch.isfinite(values).all()):
            largest = float(values.abs().max())
            if largest >= _BINS[-1]:
                raise RunError(
                    f"{name} reached {largest:.0e} after update {update}: the run diverged; try a smaller --agent.lr"
                )
            self._add(update, torch_summaries.histogram(name, values, _BINS))

    def finish(self, update: int, result: Result) -> None:
        """Write the leaderboard values, mark the run as finished and close the files.

        The HParams tab shows the last point of each chart. The chart of the final value also shows earlier tasks or
        evaluations.

        Args:
            update: Updates since the start of the run.
            result: The result of the run.

        Raises:
            RunError: The disk is full, or the folder is missing.
        """
        scale, final = (1.0, "final return") if result.is_rl else (100.0, "final %")
        values = [scale * task.end for task in result.tasks] or [point.value for point in result.returns]
        for number, value in enumerate(values[:-1], start=1):
            self._add(update * number // len(values), tensorboard_summaries.scalar(f"{hparams.GROUP}/{final}", value))
        for name, found in hparams.metric_values(result.summary, result.cost).items():
            self._add(update, tensorboard_summaries.scalar(f"{hparams.GROUP}/{name}", found))
        # add_hparams() would create a second, time-stamped run and duplicate every chart.
        self._add(0, tensorboard_summaries.session_end())
        self.flush()
        self.close()

    def flush(self) -> dict[str, Covered]:
        """Flush all files to disk; return length and digest of each.

        Raises:
            RunError: The disk is full, or the folder is missing.
        """
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._events.flush()
            return {**self._earlier, **{file.path.name: file.covered() for file in self._growing}}
        except OSError as error:
            raise self._cannot_write(error) from error

    def close(self) -> None:
        """Close the files; ignore errors, which have been reported before or belong to a failed run."""
        for file in (self._file, self._events):
            with contextlib.suppress(OSError):
                file.close()

    def _add(self, update: int, summary: Any) -> None:
        try:
            self._events.add(update, summary)
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> RunError:
        return RunError(f"cannot write to {self._events.path.parent}: {error.strerror or error}")
