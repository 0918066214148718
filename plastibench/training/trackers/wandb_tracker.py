"""Weights & Biases. ``WANDB_MODE=offline``, ``WANDB_PROJECT`` and the like work as usual."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import wandb

from plastibench.training.trackers.tracker import LoggedStep, RunInfo, Status, project_name

_LONGEST_TAG = 64  # characters that wandb accepts


def start(info: RunInfo, known_id: str | None) -> WandbTracker:
    """Start a run, or continue the one with this id."""
    return WandbTracker(info, known_id or secrets.token_hex(4))


class WandbTracker:
    """A run of wandb; its charts have the number of updates as x-axis."""

    def __init__(self, info: RunInfo, run_id: str) -> None:
        self.id = run_id
        tags = [f"seed {value}" if kind == "seed" else value[:_LONGEST_TAG] for kind, value in info.tags.items()]
        self._run = wandb.init(
            project=project_name("WANDB_PROJECT"),
            id=run_id,
            name=info.name,
            group=info.group,
            tags=tags,
            resume="allow",
            reinit="create_new",  # a run of the user's own notebook stays active
            settings=wandb.Settings(console="off", silent=True),  # stderr shows the progress
        )
        self._run.define_metric("*", step_metric="update")
        offline = self._run.offline
        self.location = (
            f"offline; send it with wandb sync {self._run.settings.sync_dir}" if offline else str(self._run.url)
        )

    def log_config(self, config: Mapping[str, Mapping[str, Any]]) -> None:
        """Record the options of env, agent, intervention and run as the tracker's configuration."""
        self._run.config.update({name: dict(table) for name, table in config.items()}, allow_val_change=True)

    def log_scalars(self, steps: Sequence[LoggedStep]) -> None:
        """Record scalars. wandb's own step is the number of the step, since it keeps one value per step."""
        for step in steps:
            self._run.log({"update": step.update, **step.values}, step=step.number)

    def log_table(self, name: str, update: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Record a table."""
        self._run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def close(self, status: Status) -> None:
        """Send what is left. wandb shows a run with an exit code other than 0 as failed."""
        self._run.finish(exit_code=0 if status == "finished" else 1)
