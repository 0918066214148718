"""Compare the data that a complete run used with the current data."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.envs.datasets import load_dataset
from plastibench.envs.task_stream_config import TaskStreamConfig
from plastibench.results.result import Result


def warn_if_data_changed(spec: RunSpec, result: Result, data_dir: Path) -> None:
    """Print a line to stderr if the data of a complete run has changed or is missing. Does not download anything."""
    env = spec.create("env")
    if result.data_digest is None or not isinstance(env, TaskStreamConfig):
        return
    try:
        found = _digest(env.dataset, data_dir, env.path, env.image_size, env.train_size)
    except UserError as error:
        print(f"plastibench: {spec.id} is complete; its data was not compared: {error}", file=sys.stderr)
        return
    if found != result.data_digest:
        print(
            f"plastibench: {spec.id} used different data from what {env.path or env.dataset} contains now (digest "
            f"{result.data_digest}, now {found}); --force reruns",
            file=sys.stderr,
        )


@functools.lru_cache(32)
def _digest(name: str, data_dir: Path, path: str | None, image_size: int | None, train_size: int | None) -> str:
    found = load_dataset(name, data_dir, path=path, image_size=image_size, train_size=train_size, download=False)
    return found.digest
