"""Estimate updates, interventions, time, memory and disk space of runs before they start."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from plastibench.config.errors import UserError
from plastibench.config.short_names import short_names, tables_of
from plastibench.config.spec import RunSpec
from plastibench.results.files import read_result_if_complete
from plastibench.results.result import Result
from plastibench.training.assembly import check_options, choose_threads, make_trainer
from plastibench.training.memory_guard import MemoryGuard
from plastibench.training.offpolicy import OffPolicyTrainer
from plastibench.training.supervised import EARLY_EPOCHS, SupervisedTrainer
from plastibench.training.trainer import Trainer
from plastibench.utils.machine import available_memory, format_bytes, free_disk
from plastibench.utils.progress import duration
from plastibench.utils.tables import text_table
from plastibench.utils.wording import plural

CALIBRATION_SECONDS = 1.5  # training time per setting
_CALIBRATION_STEPS = 50  # at most
_PROCESS = 400_000_000  # bytes of Python, PyTorch and plastibench in a process
_COPIES = 6  # copies of the weights: gradients, two Adam moments, initial weights, an evaluated or modified copy
_ON_DISK = 4  # copies of the weights: the final ones, and weights and two Adam moments in the checkpoint
_LOGS = 300_000  # bytes of metrics, result and TensorBoard's events of a short run


@dataclass(frozen=True)
class Plan:
    """Estimated cost of a run.

    Attributes:
        spec: The run.
        updates: Number of updates; rounded down for RL agents.
        interventions: How often its intervention acts.
        parameters: Trainable parameters of all networks.
        memory: Approximate peak memory in bytes.
        disk: Approximate size of its folder in bytes while it runs.
        seconds: Approximate time; None if unknown.
        source: What the time estimate is based on.
    """

    spec: RunSpec
    updates: int
    interventions: int
    parameters: int
    memory: int
    disk: int
    seconds: float | None
    source: str


@dataclass(frozen=True)
class _Setting:
    """What runs with the same env and agent have in common."""

    updates: int
    tasks: int
    parameters: int
    memory: int
    disk: int
    seconds: float
    measured: int  # updates of the calibration


def plan_runs(specs: Sequence[RunSpec], runs_dir: Path, data_dir: Path, threads: int = 0) -> list[Plan]:
    """Estimate the cost of each run.

    The time estimate is based on earlier results of the same method, or of other interventions in the same setting.
    Otherwise, a short training in this process is timed.

    Args:
        specs: The runs, with resolved devices.
        runs_dir: Folder of earlier runs.
        data_dir: Folder of datasets.
        threads: CPU threads of a run; 0: the run's default.

    Raises:
        UserError: A network or replay buffer does not fit into memory, or an option is invalid.
    """
    settings: dict[str, _Setting] = {}
    prefixes = sorted({f"{spec.env[0]}_{spec.agent[0]}_" for spec in specs})
    folders = [path.parent for prefix in prefixes for path in runs_dir.glob(f"{prefix}*/result.json")]
    results = [result for folder in folders if (result := read_result_if_complete(folder)) is not None]
    plans = []
    for spec in specs:
        key = repr((spec.env, spec.agent, spec.run.device))
        if key not in settings:
            settings[key] = _measure(spec, data_dir, threads)
        setting = settings[key]
        seconds, source = _earlier(spec, results)
        if seconds is None:
            seconds, source = (
                setting.seconds,
                f"a calibration of {plural(setting.measured, 'update')} without interventions",
            )
        plans.append(
            Plan(
                spec,
                setting.updates,
                interventions_of(spec, setting.updates, setting.tasks),
                setting.parameters,
                setting.memory,
                setting.disk,
                seconds,
                source,
            )
        )
    return plans


def interventions_of(spec: RunSpec, updates: int, tasks: int) -> int:
    """Compute the number of interventions of a run from its updates and its number of tasks."""
    last = updates - 1  # nothing happens after the last update of a run
    until = last if spec.run.until is None else min(last, spec.run.until)
    if spec.intervention[0] == "none":
        return 0
    if spec.run.every:
        return until // spec.run.every
    return sum(boundary * updates // tasks <= until for boundary in range(1, tasks))


def report(plans: Sequence[Plan], slots: int, runs_dir: Path) -> str:
    """Format a table of the planned runs and their total cost.

    Args:
        plans: The runs.
        slots: Number of parallel runs.
        runs_dir: Folder of the runs.
    """
    names = short_names([tables_of(plan.spec) for plan in plans])
    rows = [
        [
            name,
            f"{plan.updates:,}",
            f"{plan.interventions:,}",
            f"{plan.parameters:,}",
            "?" if plan.seconds is None else duration(plan.seconds),
        ]
        for name, plan in zip(names, plans, strict=True)
    ]
    known = [plan.seconds for plan in plans if plan.seconds is not None]
    total = max([sum(known) / max(1, min(slots, len(known))), *known], default=0.0)
    sources = sorted({plan.source for plan in plans})
    memory, disk = max(plan.memory for plan in plans), sum(plan.disk for plan in plans)
    left = available_memory()
    together = f"{plural(len(plans), 'run')}, {min(slots, len(plans))} in parallel: about {duration(total)} in total"
    lines = [
        text_table(["run", "updates", "interventions", "parameters", "time"], rows),
        "",
        f"{together} (from {'; '.join(sources)})",
        f"memory: about {format_bytes(memory)} for the largest run"
        + ("" if left is None else f"; {format_bytes(left)} is available"),
        f"disk:   about {format_bytes(disk)} in {runs_dir}; {format_bytes(free_disk(runs_dir))} is free",
    ]
    return "\n".join(lines)


def check_fit(plans: Sequence[Plan], runs_dir: Path) -> None:
    """Check that each run fits into memory and that all runs fit on the disk.

    Raises:
        UserError: They do not fit.
    """
    left = available_memory()
    largest = max(plans, key=lambda plan: plan.memory)
    if left is not None and largest.memory > left:
        raise UserError(
            f"{largest.spec.id} needs about {format_bytes(largest.memory)} of memory, but only {format_bytes(left)} "
            "is available; choose smaller sizes (--agent.OPTION, --env.OPTION)"
        )
    disk, free = sum(plan.disk for plan in plans), free_disk(runs_dir)
    if disk > free:
        raise UserError(
            f"the runs need about {format_bytes(disk)} in {runs_dir}, but only {format_bytes(free)} is free; choose "
            "another folder with --runs-dir"
        )


def _measure(spec: RunSpec, data_dir: Path, threads: int) -> _Setting:
    """Build the env and the agent of a run, and train for a moment without interventions."""
    fast = dict(spec.agent[1])
    if "learning_starts" in fast:  # otherwise an RL agent would make no updates at the start
        fast["learning_starts"] = min(fast["learning_starts"], fast["batch_size"])
    planned, spec = spec, replace(spec, run=replace(spec.run, every=0, until=None, roles=None))
    env = spec.create("env").make(data_dir)
    before = torch.get_num_threads()
    with MemoryGuard(f"agent {spec.agent[0]}"):
        agent = (
            replace(spec, agent=(spec.agent[0], fast)).create("agent").build(env, spec.run.seed, torch.device("cpu"))
        )
    as_planned = SimpleNamespace(networks=agent.networks, batch_size=agent.batch_size, config=planned.create("agent"))
    check_options(planned, env, as_planned)
    try:
        choose_threads(agent, threads)
        plain = spec.without_intervention()
        with MemoryGuard("the replay buffer", copies=1):
            trainer = make_trainer(plain, env, agent)
        return _calibrate(spec, trainer, agent)
    finally:
        torch.set_num_threads(before)


def _calibrate(spec: RunSpec, trainer: Trainer, agent: Any) -> _Setting:
    weights = [p for network in agent.networks.values() for p in network.module.parameters()]
    size = sum(p.numel() * p.element_size() for p in weights)
    learner, start = trainer.learner, time.perf_counter()
    trainer.begin()
    evaluation = time.perf_counter() - start
    activations = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal activations
        activations += tensor.numel() * tensor.element_size()
        return tensor

    step = trainer.learn if isinstance(trainer, SupervisedTrainer) else trainer.advance
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        while not learner.updates and time.perf_counter() - start < evaluation + 2 * CALIBRATION_SECONDS:
            step()
    begun, first, position, steps = time.perf_counter(), learner.updates, trainer.position, 0
    while not steps or (time.perf_counter() - begun < CALIBRATION_SECONDS and steps < _CALIBRATION_STEPS):
        step()
        steps += 1
    elapsed, made = time.perf_counter() - begun, learner.updates - first
    options, stored = trainer.env_config, 0
    if isinstance(trainer, SupervisedTrainer):
        updates = trainer.length
        looks = options.task_count * (min(EARLY_EPOCHS, options.epochs) + options.epochs // options.evaluate_every + 2)
        seconds = updates * elapsed / steps + looks * evaluation
        data = trainer.env.dataset.train_images.nbytes + trainer.env.dataset.test_images.nbytes
    else:
        assert isinstance(trainer, OffPolicyTrainer)
        given = spec.agent[1]
        updates = int(max(0, trainer.length - given["learning_starts"]) * given["replay_ratio"])
        per_step = elapsed / (trainer.position - position)
        seconds = trainer.length * (per_step + evaluation / options.evaluate_every)
        data = trainer.buffer.bytes
        if given["storage"] == "memmap":
            data, stored = 0, data
    trainer.close()
    memory = _PROCESS + _COPIES * size + 2 * data + activations
    disk = _LOGS + _ON_DISK * size + stored
    return _Setting(updates, options.task_count, sum(p.numel() for p in weights), memory, disk, seconds, made)


def _earlier(spec: RunSpec, results: Sequence[Result]) -> tuple[float | None, str]:
    """Return the mean time of earlier runs with the same env and agent, and the runs that it is based on."""
    alike = [
        result
        for result in results
        if all(dict(getattr(spec, part)[1]) == getattr(result.options, part) for part in ("env", "agent"))
        and (result.env, result.agent) == (spec.env[0], spec.agent[0])
    ]
    same = [result for result in alike if result.group == spec.group()]
    found = [result.cost.seconds for result in same or alike]
    source = "earlier results" if same else "earlier results of other interventions"
    return (sum(found) / len(found), source) if found else (None, "")
