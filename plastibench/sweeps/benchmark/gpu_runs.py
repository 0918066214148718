"""Training runs within ``bench gpu``: a command of its own, which is asked to checkpoint when the time is over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from plastibench.config.errors import RunError
from plastibench.config.options import flag_name
from plastibench.results.files import load_results
from plastibench.sweeps.benchmark.gpu_rows import Row, Sizes
from plastibench.sweeps.run_folders import find_runs

METHODS = ("none", "reset", "rnr")
_EPOCHS = 15  # per task
_SECONDS_TO_SAVE = 30.0
_REHEARSAL = ("--env.dataset", "own", "--env.path", "plastibench.sweeps.benchmark.random_images:few")


def train(row: Row, sizes: Sizes, folder: Path, data_dir: Path, deadline: float) -> dict[str, Any]:
    """Run all methods side by side until they are complete or the time is over; a later call continues them.

    Args:
        row: The agent with its precision and its mode.
        sizes: Device and sizes.
        folder: Folder of the runs.
        data_dir: Folder of datasets.
        deadline: When to stop, on the clock of ``time.monotonic``.

    Returns:
        ``complete``, ``seconds``, and the state and values of each method.

    Raises:
        RunError: The command failed.
    """
    words = command(row, sizes, folder, data_dir)
    root = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "plastibench", *words],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, said = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        said = _stop(process)
    except BaseException:
        _stop(process)
        raise
    if process.returncode not in (0, 130):
        raise RunError(" ".join(said.split())[-300:] or f"exit status {process.returncode}")
    return {**outcome(folder), "seconds": time.monotonic() - start, "command": " ".join(["plastibench", *words])}


def command(row: Row, sizes: Sizes, folder: Path, data_dir: Path) -> list[str]:
    """The words after ``plastibench``."""
    options = {**sizes.agent_options(row)}
    agent = [word for key, value in options.items() for word in (f"--agent.{flag_name(key)}", str(value))]
    small = ["--env.epochs", "1", "--env.stop-after", "2", *_REHEARSAL]
    env = small if sizes.rehearsal else ["--env.epochs", str(_EPOCHS)]
    jobs = 1 if sizes.rehearsal else len(METHODS)
    return [
        *("run", "cl-cifar100", "--agent", row.agent, "--intervention", ",".join(METHODS)),
        *("--device", sizes.device, "--jobs", str(jobs), "--runs-dir", str(folder), "--data-dir", str(data_dir)),
        *("--quiet", "--no-plot", *env, *agent),
    ]


def outcome(folder: Path) -> dict[str, Any]:
    """State and values of each method, from the folders of the runs."""
    found: dict[str, Any] = {}
    for run in find_runs(folder) if folder.is_dir() else ():
        found[run.names["intervention"]] = {"state": run.state, "progress": run.progress}
    complete = {method for method, values in found.items() if values["state"] == "complete"}
    for result in load_results(folder) if complete else ():
        found[result.intervention].update(accuracy=result.final, average_accuracy=result.summary.average_accuracy)
    return {"complete": complete == set(METHODS), "methods": found}


def _stop(process: subprocess.Popen[str]) -> str:
    """Ask the command to checkpoint; return what it said."""
    process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=_SECONDS_TO_SAVE)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[1]
