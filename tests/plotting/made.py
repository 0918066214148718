"""Results made by hand, for the tests of plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from plastibench.results.result import SCHEMA, Result

ORIGIN = {
    "command": "plastibench run",
    "commit": "0123456789ab",
    "versions": {"plastibench": "0.1.0", "torch": "2.15.0"},
    "hardware": {"processor": "Some CPU", "cores": 2, "device": "cpu"},
    "threads": 1,
    "precision": "float32",
}
RNR = {"criterion": "low-gradient-quantile", "tau": 1.0, "quantile": 0.4}


def accuracies(seed: int, name: str, tasks: int = 4) -> np.ndarray:
    """Accuracies at the end of each task, different for each seed and name. [tasks]"""
    generator = np.random.default_rng([seed, *map(ord, name)])
    return generator.uniform(0.2, 0.9, tasks)


def supervised_result(
    name: str = "none",
    seed: int = 0,
    *,
    changed: dict[str, Any] | None = None,
    env: str = "cl-digits",
    agent: str = "vit-nano",
    folder: Path | None = None,
    **other: Any,
) -> Result:
    """A supervised result over four tasks; interventions drop a tenth of the accuracy at each task boundary."""
    key = f"{name}{sorted((changed or {}).items())}"
    ends = accuracies(seed, key).tolist()
    lost = [None, *(0.0 if name == "none" else 0.1 * end for end in ends[:-1])]
    same = {"samples": 10, "noise": 0.0, "before": None, "after": None, "recovery": None}
    tasks = [
        {**same, "task": n, "curve": [(0.0, 0.1), (10.0, end)], "end": end, "drop": drop, "auc": end}
        for n, (end, drop) in enumerate(zip(ends, lost, strict=True))
    ]
    plasticity = [
        {
            "task": n,
            "phase": phase,
            "position": 10.0,
            "role": "classifier",
            "metrics": {"dormant-ratio": 0.01 * n + 0.1 * seed, "srank": 5.0},
        }
        for n in range(4)
        for phase in ("after", "end")
    ]
    content = {
        "schema": SCHEMA,
        "id": f"{env}_{agent}_{key}_s{seed}",
        "group": f"{env}_{agent}_{key}",
        "env": env,
        "agent": agent,
        "intervention": name,
        "seed": seed,
        "options": {"env": {}, "agent": {}, "intervention": {**RNR, **(changed or {})} if name == "rnr" else {}},
        "changed": {"env": {}, "agent": {}, "intervention": changed or {}},
        "every": 0,
        "schedule": {},
        "summary": {"final_accuracy": ends[-1], "mean_drop": float(np.mean(lost[1:]))},
        **({} if "returns" in other else {"tasks": tasks}),
        "interventions": [],
        "plasticity": plasticity,
        "cost": {"seconds": 9.0, "intervention_seconds": 0.5, "updates": 60},
        "origin": ORIGIN,
        **other,
    }
    made = Result.from_dict(content)
    made._folder = folder
    return made


def rl_result(name: str = "none", seed: int = 0, tasks: int = 1) -> Result:
    """An RL result over 4,000 steps, with an evaluation every 1,000."""
    value = accuracies(seed, name, 5)
    points = [{"task": n * tasks // 5, "steps": 1000 * n, "value": float(v), "bias": 0.0} for n, v in enumerate(value)]
    event = {"task": 0, "update": 500, "before": 9.0, "after": 8.0}
    events = [{**event, "steps": s, "drop": 0.1 * s / 1000 + seed} for s in (1000, 2000) if name != "none"]
    moments = [
        {"task": 0, "phase": "training", "position": 1000 * n, "role": role, "metrics": {"low-gradient-ratio": 0.1 * n}}
        for n in (1, 2)
        for role in ("critic", "actor")
    ]
    summary = {
        "final_return": float(value[-1]),
        "mean_drop": float(np.mean([e["drop"] for e in events])) if events else None,
    }
    trainer = {"returns": points, "events": events, "summary": summary}
    return supervised_result(name, seed, env="rl-cartpole", agent="dqn-mlp", plasticity=moments, **trainer)


def results_of(*names: str, seeds: int = 4, **other: Any) -> list[Result]:
    """Results of interventions, with several seeds each."""
    return [supervised_result(name, seed, **other) for name in names for seed in range(seeds)]
