"""Jobs: runs, the states that an engine gives them, and what their folders say about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.results.files import read_result_if_complete
from plastibench.results.run_folder import clear, find_result, run_folder
from plastibench.utils import atomic_io
from plastibench.utils.folder_lock import lock_folder

State = Literal["waiting", "running", "complete", "failed", "stopped"]
FAILURE_FILE = "failure.txt"  # in the folder of a run that failed: the last lines that it wrote to stderr


@dataclass
class Job:
    """A run and its state.

    Attributes:
        spec: What to run.
        state: What the engine knows about it.
        message: The latest line of its output, or why it failed.
        started: Start time by the monotonic clock, if this engine has started it.
        seconds: Duration, if this engine has completed it.
    """

    spec: RunSpec
    state: State = "waiting"
    message: str = ""
    started: float = 0.0
    seconds: float | None = None


def prepare(specs: Sequence[RunSpec], runs_dir: Path, force: bool = False) -> list[Job]:
    """Write the spec of every run that has no folder yet, so that ``plastibench resume ID`` can run it.

    Args:
        specs: The runs.
        runs_dir: Folder of all runs.
        force: Delete what the runs have written, so that they start from the beginning.

    Raises:
        UserError: A folder cannot be created, contains another run, or is in use by another process.
    """
    jobs = [Job(spec) for spec in specs]
    for job in jobs:
        folder = run_folder(job.spec, runs_dir)
        if force and folder.is_dir():
            with lock_folder(folder):
                clear(folder)
        if find_result(job.spec, runs_dir) is not None:
            job.state = "complete"
        elif not (folder / "spec.toml").exists():
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                reason = error.strerror or error
                raise UserError(f"cannot use {folder}: {reason}; choose another folder with --runs-dir") from error
            atomic_io.write_text(folder / "spec.toml", job.spec.to_toml())
    return jobs


def stored_state(folder: Path) -> str:
    """The state of a run by the files in its folder: complete, damaged, failed, started or missing."""
    if read_result_if_complete(folder) is not None:
        return "complete"
    files = {"result.json": "damaged", FAILURE_FILE: "failed", "checkpoint.pt": "started"}
    return next((state for file, state in files.items() if (folder / file).exists()), "missing")
