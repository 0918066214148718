"""``plastibench.train``: one run from Python, in a script, a notebook or a thread."""

from __future__ import annotations

import reprlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plastibench.config import registry
from plastibench.config.errors import UserError
from plastibench.config.options import has_option
from plastibench.config.spec import RunOptions, RunSpec
from plastibench.results.result import Result
from plastibench.training.assembly import check_roles
from plastibench.training.runner import run


def train(
    env: str,
    agent: str,
    intervention: str = "none",
    *,
    env_options: Mapping[str, Any] | None = None,
    agent_options: Mapping[str, Any] | None = None,
    intervention_options: Mapping[str, Any] | None = None,
    runs_dir: str | Path | None = "runs",
    data_dir: str | Path = "data",
    progress: bool = True,
    threads: int = 0,
    force: bool = False,
    log: str | Sequence[str] = (),
    videos: int = 0,
    **options: Any,
) -> Result:
    """Train an agent with an intervention, and return the result.

    A run that is already complete in ``runs_dir`` is not repeated, and an interrupted one continues.

    Args:
        env: Name of a task stream or an RL environment; see :func:`plastibench.list_envs`.
        agent: Name of an agent; see :func:`plastibench.list_agents`.
        intervention: Name of an intervention, or a combination such as ``l2-init+rnr``.
        env_options: Options of the environment, such as ``{"epochs": 20}``.
        agent_options: Options of the agent, such as ``{"lr": 1e-3}``.
        intervention_options: Options of the intervention. Options whose name is not also an option of the run can be
            passed as keywords instead.
        runs_dir: Parent of the run's folder; None: do not keep a folder.
        data_dir: Folder of datasets.
        progress: Show the progress.
        threads: CPU threads; 0: one for a small network, PyTorch's default for a large one.
        force: Start from the beginning, even if the run is complete or was interrupted.
        log: Trackers that also receive the metrics, such as ``"wandb"`` or ``["wandb", "mlflow"]``; TensorBoard's files
            and ``metrics.csv`` are always written.
        videos: RL: record an episode of every Nth evaluation and of the last one in the run's folder; 0: none.
        options: Options of the run (``seed``, ``every``, ``roles``, ``device``, …) and of the intervention
            (``quantile=0.3``).

    Raises:
        UserError: An unknown name, an invalid option, or missing data.
        RunError: The run failed, for example with NaN.
    """
    for what, name in {"env": env, "agent": agent, "intervention": intervention}.items():
        if not isinstance(name, str):
            raise UserError(f"train: {what} is {reprlib.repr(name)}; pass a registered name")
    _check_options(options, intervention, {"env": env, "agent": agent})
    run_options = {name: value for name, value in options.items() if has_option(RunOptions, name)}
    method_options = {name: value for name, value in options.items() if name not in run_options}
    spec = RunSpec.make(
        env,
        agent,
        intervention,
        env_options=env_options,
        agent_options=agent_options,
        intervention_options={**(intervention_options or {}), **method_options},
        **run_options,
    )
    if run_options.get("roles") and not spec.run.roles:
        check_roles(spec, run_options["roles"], data_dir)
    command = f"plastibench.train({env!r}, {agent!r}, {intervention!r}, …)"
    with tempfile.TemporaryDirectory() as temporary:
        # With a list of its own, the run leaves the signal handlers of the notebook or main thread alone.
        result = run(
            spec,
            runs_dir=temporary if runs_dir is None else runs_dir,
            data_dir=data_dir,
            quiet=not progress,
            threads=threads,
            stop=[],
            command=command,
            force=force,
            log=log,
            videos=videos,
        )
    if progress:
        for warning in result.warnings:
            print(f"plastibench: {result.id}: {warning}", file=sys.stderr)
    return result


def _check_options(options: Mapping[str, Any], intervention: str, others: Mapping[str, str]) -> None:
    """Refuse an option that belongs to the env or the agent, and say where it goes.

    Raises:
        UserError: Neither the run nor the intervention has the option, but the env or the agent has.
    """
    own = (RunOptions, registry.interventions.declaration(intervention))
    for name in options:
        for part, component in others.items():
            declared = getattr(registry, f"{part}s").declaration(component)
            if has_option(declared, name) and not any(has_option(cls, name) for cls in own):
                raise UserError(f"'{name}' is an option of the {part}; pass {part}_options={{{name!r}: …}}")
