"""Start a trainer without a run folder, so that single updates can be timed."""

from __future__ import annotations

from pathlib import Path

from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.envs.task_stream import TaskStream
from plastibench.training.assembly import build_agent, check_options, choose_threads, make_trainer
from plastibench.training.supervised import SupervisedTrainer
from plastibench.utils.runtime import set_up_torch


def start_trainer(spec: RunSpec, data_dir: Path, threads: int = 0) -> SupervisedTrainer:
    """A trainer at the start of its first task.

    Args:
        spec: The run.
        data_dir: Folder of datasets.
        threads: CPU threads; 0: as for a run.

    Raises:
        UserError: The spec is not a run on a task stream.
    """
    env = spec.create("env").make(data_dir)
    if not isinstance(env, TaskStream):
        raise UserError(
            f"{spec.env[0]} is not a task stream (cl-*, relabel-*, …); measure RL agents with: plastibench bench rl"
        )
    set_up_torch(spec)
    agent = build_agent(spec, env)
    check_options(spec, env, agent)
    choose_threads(agent, threads)
    trainer = make_trainer(spec, env, agent)
    assert isinstance(trainer, SupervisedTrainer)
    trainer.begin()
    return trainer
