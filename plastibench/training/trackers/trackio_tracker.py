"""trackio. ``TRACKIO_DIR``, ``TRACKIO_SPACE_ID`` and the like work as usual; by default it writes a local database."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import trackio

from plastibench.training.trackers.tracker import LoggedStep, RunInfo, Status, project_name


def start(info: RunInfo, known_id: str | None) -> TrackioTracker:
    """Start a run, or continue the one with this id."""
    return TrackioTracker(info, known_id)


class TrackioTracker:
    """A run of trackio, whose steps are updates.

    trackio sends in the background and reports its own failures as warnings.
    """

    def __init__(self, info: RunInfo, known_id: str | None) -> None:
        self._project = project_name("TRACKIO_PROJECT")
        with contextlib.redirect_stdout(io.StringIO()):  # stdout is for results
            self._run = trackio.init(
                self._project,
                name=f"{info.name}·{info.digest[:8]}",  # trackio finds runs by name, so the name must be unique
                group=info.group,
                resume="never" if known_id is None else "must",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
        self.id = str(self._run.id)
        if known_id not in (None, self.id):
            raise RuntimeError(
                f"trackio has a newer run named {self._run.name}; delete trackers.toml to start a new one"
            )
        self.location = f"trackio show --project {self._project}"

    def log_config(self, config: Mapping[str, Mapping[str, Any]]) -> None:
        """Record the tables of the spec; trackio sends them with the first scalars."""
        self._run.config.update({name: dict(table) for name, table in config.items()})

    def log_scalars(self, steps: Sequence[LoggedStep]) -> None:
        """Record scalars."""
        for step in steps:
            self._run.log(step.values, step=step.update)

    def log_table(self, name: str, update: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Record a table."""
        table = trackio.Table(columns=list(columns), data=[list(row) for row in rows])
        self._run.log({name: table}, step=update)

    def close(self, status: Status) -> None:
        """Wait until everything is sent."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()
