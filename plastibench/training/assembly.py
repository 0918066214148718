"""Make the parts of a run from its spec: agent, learner and trainer; and check that they fit."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch

from plastibench.config.errors import UserError, all_of, did_you_mean
from plastibench.config.options import build, flag_name
from plastibench.config.spec import RunOptions, RunSpec
from plastibench.envs.task_stream import TaskStream
from plastibench.training.learner import Learner
from plastibench.training.memory_guard import MemoryGuard
from plastibench.training.offpolicy import OffPolicyTrainer
from plastibench.training.run_checks import check_plan, check_processes
from plastibench.training.supervised import SupervisedTrainer
from plastibench.training.trainer import Log, Trainer
from plastibench.utils import distributed
from plastibench.utils.runtime import resolve_device
from plastibench.utils.seeding import derive

_SMALL = 30_000_000  # parameters times samples per update; below this size, more threads are not faster


def build_agent(spec: RunSpec, env: Any) -> Any:
    """Build the agent of a run.

    Raises:
        UserError: The agent does not fit into memory or does not match the env.
    """
    try:
        with MemoryGuard(f"agent {spec.agent[0]}"):
            return spec.create("agent").build(env, spec.run.seed, torch.device(spec.run.device))
    except (MemoryError, OverflowError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate" not in str(error):
            raise
        raise UserError(
            f"agent {spec.agent[0]} with these options does not fit into memory; choose smaller sizes"
        ) from error


def make_learner(spec: RunSpec, agent: Any) -> Learner:
    """The learner that a spec describes."""
    seed_dropout(spec)
    options = spec.run
    return Learner(
        agent, lambda: spec.create("intervention"), roles=options.roles, every=options.every, until=options.until
    )


def seed_dropout(spec: RunSpec, updates: int = 0) -> None:
    """Seed the global generator, from which only dropout draws.

    Each process draws other numbers, because it sees other samples. A process that joins a run after some updates
    starts with a seed of its own.
    """
    purpose = f"dropout-{distributed.rank()}-{updates}" if distributed.rank() else "dropout"
    torch.manual_seed(derive(spec.run.seed, purpose))


def make_trainer(spec: RunSpec, env: Any, agent: Any, log: Log | None = None, folder: Path | None = None) -> Trainer:
    """The trainer that a spec describes.

    Args:
        spec: The spec of the run.
        env: Its task stream or RL environment.
        agent: Its agent.
        log: Where metrics go; by default they are discarded.
        folder: Folder for a memory-mapped replay buffer.
    """
    learner = make_learner(spec, agent)
    if isinstance(env, TaskStream):
        return SupervisedTrainer(env, learner, spec.run, log)
    return OffPolicyTrainer(env, learner, spec.run, log, folder)


def choose_threads(agent: Any, threads: int) -> None:
    """Set the number of CPU threads; 0: one for a small network, unchanged for a large one."""
    size = sum(p.numel() for network in agent.networks.values() for p in network.module.parameters())
    if threads or size * agent.batch_size < _SMALL:
        torch.set_num_threads(threads or 1)


def check_roles(spec: RunSpec, roles: Any, data_dir: str | Path, device: str | None = None) -> None:
    """Check that the agent of a run has networks with given roles. A spec whose intervention is ``none`` has no roles.

    Raises:
        UserError: There is no such network, or the run cannot start.
    """
    device, given = device or resolve_device(spec.run.device), build(RunOptions, {"roles": roles}, "run").roles
    spec = dataclasses.replace(spec, run=dataclasses.replace(spec.run, device=device, roles=given))
    env = spec.create("env").make(data_dir)
    check_options(spec, env, build_agent(spec, env))


def check_options(spec: RunSpec, env: Any, agent: Any) -> list[str]:
    """Check that the options of the run fit its env and agent.

    Returns:
        What the user should know before the run starts.

    Raises:
        UserError: The agent has no network with a given role, an option is only for RL agents, or the run would not
            train or not intervene; see :func:`plastibench.training.run_checks.check_plan`.
    """
    known = list(agent.networks)

    def check_role(role: str) -> None:
        if role not in known:
            hint = did_you_mean(role, known)
            raise UserError(f"{spec.agent[0]} has no network '{role}'{hint} (it has: {', '.join(known)})")

    def check_rl_option(name: str) -> None:
        if getattr(spec.run, name) and isinstance(env, TaskStream):
            raise UserError(f"--{flag_name(name)} is for RL agents; {spec.env[0]} is a task stream")

    *_, warnings = all_of(
        [
            *(functools.partial(check_role, role) for role in spec.run.roles or ()),
            *(functools.partial(check_rl_option, name) for name in ("offline_updates", "checkpoint_memory")),
            lambda: check_processes(spec, env, agent),
            lambda: check_plan(spec, env, agent),
        ]
    )
    return list(warnings)
