"""MLflow. ``MLFLOW_TRACKING_URI`` and ``MLFLOW_EXPERIMENT_NAME`` work as usual; by default it writes ``mlflow.db``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import mlflow
from mlflow.entities import Metric, Param

from plastibench.training.trackers.tracker import LoggedStep, RunInfo, Status, project_name
from plastibench.utils.folder_lock import wait_for_lock

_BATCH = 1000  # metrics that MLflow accepts in one request
_BATCH_PARAMS = 100  # likewise
_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_LOCK_SECONDS = 300.0  # processes that start at the same time create the database one after the other


def start(info: RunInfo, known_id: str | None) -> MlflowTracker:
    """Start a run, or continue the one with this id."""
    with wait_for_lock(info.runs_dir, _LOCK_SECONDS):
        return MlflowTracker(mlflow.MlflowClient(), info, known_id)


class MlflowTracker:
    """An MLflow run, whose steps are updates. The user's active MLflow run is not affected."""

    def __init__(self, client: Any, info: RunInfo, known_id: str | None) -> None:
        self._client = client
        name = project_name("MLFLOW_EXPERIMENT_NAME")
        if known_id is None:
            experiment = client.get_experiment_by_name(name)
            key = experiment.experiment_id if experiment else client.create_experiment(name)
            tags = {**info.tags, "group": info.group, "digest": info.digest}
            self.id = str(client.create_run(key, run_name=info.name, tags=tags).info.run_id)
        else:
            self.id = known_id
            client.update_run(known_id, status="RUNNING")
        self.location = f"experiment {name} in {mlflow.get_tracking_uri()}"

    def log_config(self, config: Mapping[str, Mapping[str, Any]]) -> None:
        """Record the tables of the spec as parameters such as ``agent.lr``."""
        found = [Param(f"{table}.{name}", str(value)) for table, each in config.items() for name, value in each.items()]
        for first in range(0, len(found), _BATCH_PARAMS):
            self._client.log_batch(self.id, params=found[first : first + _BATCH_PARAMS])

    def log_scalars(self, steps: Sequence[LoggedStep]) -> None:
        """Record scalars. Each gets its own timestamp, so that MLflow keeps equal values of one update."""
        now = time.time_ns() // 1_000_000
        found = [
            Metric(name, value, now + index, step.update)
            for index, step in enumerate(steps)
            for name, value in step.values.items()
        ]
        for first in range(0, len(found), _BATCH):
            self._client.log_batch(self.id, metrics=found[first : first + _BATCH])

    def log_table(self, name: str, update: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Record a table as an artifact, in the format of MLflow's own ``log_table``, which rounds to ten digits."""
        content = {"columns": list(columns), "data": [list(row) for row in rows]}
        self._client.log_dict(self.id, content, f"{name}.json")

    def close(self, status: Status) -> None:
        """Mark the run as ended."""
        self._client.set_terminated(self.id, _STATUS[status])
