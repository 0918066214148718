"""Synthetic results for tests."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plastibench.config.spec import RunSpec
from plastibench.results import accuracy, returns
from plastibench.results.files import compose_result, write_result
from plastibench.results.result import Result

ORIGIN = {
    "command": "plastibench run …",
    "commit": "0123456789ab",
    "versions": {"plastibench": "0.1.0", "torch": "2.15.0"},
    "hardware": {"processor": "some CPU", "cores": 2, "device": "cpu"},
    "threads": 1,
    "precision": "float32",
}
DATA = "0f6e50cfa734"


def result(
    intervention: str = "none",
    seed: int = 0,
    final: float = 0.5,
    *,
    drop: float = 0.0,
    data: str | None = DATA,
    version: int = 1,
    cost: dict[str, Any] | None = None,
    **more: Any,
) -> Result:
    """Make the result of a supervised run over three tasks; ``more`` goes into the spec."""
    options = {"env": "cl-digits", "agent": "mlp", "device": "cpu", **more}
    env_options = {"noise": (0.5, 0.1, 0.0), "epochs": 2, **options.pop("env_options", {})}
    spec = RunSpec.make(intervention=intervention, seed=seed, env_options=env_options, **options)
    ends = [final - 0.2, final - 0.1, final]
    records = [accuracy.TaskRecord(0, 10, 0.5, curve=[(0.0, 0.1), (2.0, ends[0])], train_accuracy=1.0)]
    for number, (before, end) in enumerate(itertools.pairwise(ends), 1):
        found = {"before": before, "after": before - drop, "agreement": 1 - drop, "output_kl": drop}
        record = accuracy.TaskRecord.after_boundary(number, 10 * (number + 1), 0.0, found)
        record.curve, record.train_accuracy = [(0.0, before - drop), (2.0, end)], 1.0
        records.append(record)
    trainer = {
        "summary": accuracy.summary(records),
        "tasks": [accuracy.task_values(record) for record in records],
    }
    return _composed(spec, trainer, cost, version, data)


def submitted(intervention: str = "none", seed: int = 0, final: float = 0.5, **more: Any) -> Result:
    """Make a supervised result whose values all agree, as validation requires; arguments as for :func:`result`."""
    content = result(intervention, seed, final, **more).to_dict()
    tasks, summary = content["tasks"], content["summary"]
    for task in tasks:  # every epoch is evaluated
        (_, start), (_, end) = task["curve"]
        task["curve"] = [(0.0, start), (1.0, (start + end) / 2), (2.0, end)]
    records = [accuracy.TaskRecord(**{k: task[k] for k in accuracy.TaskRecord.__dataclass_fields__}) for task in tasks]
    content["tasks"], summary = [accuracy.task_values(record) for record in records], accuracy.summary(records)
    acts = [] if content["every"] else [1, 2]
    if not acts:  # drops are measured at interventions within tasks, of which there are none
        summary.update({"mean_drop": None, "mean_agreement": None, "mean_output_kl": None})
    record = {"role": "classifier", "seconds": 0.25, "revived_fraction": None, "parameters": 0}
    moments = [(task, phase) for task in range(3) for phase in ("after", "end")]
    content["summary"] = summary
    content["interventions"] = [{**record, "task": task, "update": 2 * task} for task in acts]
    content["plasticity"] = [
        {"task": task, "phase": phase, "role": "classifier", "metrics": {"dormant-ratio": 0.25, "srank": 3.0}}
        for task, phase in moments
    ]
    content["cost"] |= {"updates": 6, "samples": 120, "intervention_seconds": 0.25 * len(acts)}
    return Result.from_dict(content)


def submitted_acting(intervention: str = "none", final: float = 100.0) -> Result:
    """Make a result of an RL run whose values all agree."""
    env_options = {"steps": 3000, "envs": 1, "evaluate_every": 1000}
    agent_options = {"learning_starts": 1000, "replay_ratio": 0.5, "batch_size": 8}
    content = acting(intervention, 0, final, env_options=env_options, agent_options=agent_options).to_dict()
    content["plasticity"] = [{"task": 0, "phase": "training", "position": 3000.0, "role": "critic", "metrics": {}}]
    content["cost"] |= {"updates": 1000, "environment_steps": 3000, "intervention_seconds": 0.0}
    return Result.from_dict(content)


def acting(intervention: str = "none", seed: int = 0, final: float = 100.0, **more: Any) -> Result:
    """Make the result of an RL run in CartPole."""
    options = {"env": "rl-cartpole", "agent": "dqn-mlp", "device": "cpu", **more}
    spec = RunSpec.make(intervention=intervention, seed=seed, **options)
    curve = [returns.Evaluation(0, steps, final * steps / 3000, 0.1) for steps in (0, 1000, 2000, 3000)]
    trainer = returns.result(curve, [], spec.create("env").reference_returns)
    return _composed(spec, trainer, {"agent_steps": 3000}, 1, None)


def _composed(spec: RunSpec, trainer: Any, cost: dict[str, Any] | None, version: int, data: str | None) -> Result:
    usual = {"seconds": 10.0, "intervention_seconds": 0.5, "metric_seconds": 1.0, "updates": 60}
    sizes = {"network_bytes": 1000, "intervention_bytes": 0}
    return compose_result(spec, trainer, [], [], {**usual, **sizes, **(cost or {})}, ORIGIN, version, data)


def written(folder: Path, found: Sequence[Result]) -> Path:
    """Write results into a folder of runs."""
    for each in found:
        (folder / each.id).mkdir(parents=True, exist_ok=True)
        write_result(folder / each.id, each)
    return folder
