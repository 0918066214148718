"""Measure what RL runs gain when their agents act and learn together in one process."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.sweeps.stacking import stack_key
from plastibench.training.assembly import build_agent, choose_threads, make_trainer
from plastibench.training.offpolicy import OffPolicyTrainer
from plastibench.training.trainer_stack import TrainerStack
from plastibench.utils.runtime import set_up_torch
from plastibench.utils.wording import plural

Quartiles = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class RLStackSpeed:
    """CPU seconds of a run per step of all its environments, updates included; quartiles over alternating rounds.

    Attributes:
        env: Name of the env.
        agent: Name of the agent.
        threads: CPU threads.
        stack: Number of runs that are trained together.
        alone: Seconds of a run by itself.
        together: Seconds of one of the runs that are trained together.
        gain: ``alone`` relative to ``together``.
    """

    env: str
    agent: str
    threads: int
    stack: int
    alone: Quartiles
    together: Quartiles
    gain: Quartiles

    def to_json(self) -> str:
        """The values as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    def to_text(self) -> str:
        """A report of a few lines."""

        def line(name: str, values: Quartiles, factor: float, unit: str) -> str:
            low, middle, high = (factor * value for value in values)
            return f"  {name:21} {middle:9.3f} {unit:2}  ({low:.3f} to {high:.3f})"

        return "\n".join(
            [
                f"{self.env}, {self.agent}, {plural(self.threads, 'thread')}",
                "CPU time per step of all environments, with its updates; median (quartiles):",
                line("alone", self.alone, 1e3, "ms"),
                line(f"each of {self.stack} together", self.together, 1e3, "ms"),
                line("gain", self.gain, 1.0, ""),
            ]
        )


def measure(spec: RunSpec, data_dir: Path, stack: int, steps: int, rounds: int, threads: int = 0) -> RLStackSpeed:
    """Time steps of one trainer and of several trainers together, alternately.

    CPU time is measured, so that other processes on the machine matter less. Evaluations are left out.

    Args:
        spec: The run to time.
        data_dir: Folder of datasets.
        stack: Number of runs that are trained together.
        steps: Steps of all environments per measurement.
        rounds: Number of rounds, at least 2. Each loop is measured twice per round.
        threads: CPU threads, as for a run.

    Raises:
        UserError: These runs are not trained together.
    """
    if stack_key(spec) is None:
        raise UserError(f"runs of {spec.agent[0]} on {spec.env[0]} are not updated together; leave out --stack")
    seeds = [dataclasses.replace(spec, run=dataclasses.replace(spec.run, seed=seed)) for seed in range(stack)]
    alone, *together = (_started(each, data_dir, threads) for each in (spec, *seeds))
    learn = TrainerStack().learn
    measured: list[tuple[float, float]] = []
    for _ in range(rounds + 1):
        one, all_of_them = (lambda: alone.learn()), (lambda: learn(together))
        seconds = [_cpu_seconds(step, steps) for step in (one, all_of_them, all_of_them, one)]
        measured.append(((seconds[0] + seconds[3]) / 2, (seconds[1] + seconds[2]) / 2 / stack))
    for trainer in (alone, *together):
        trainer.close()
    rest = measured[1:]  # the first round warms up
    return RLStackSpeed(
        env=spec.env[0],
        agent=spec.agent[0],
        threads=torch.get_num_threads(),
        stack=stack,
        alone=_quartiles([one for one, _ in rest]),
        together=_quartiles([each for _, each in rest]),
        gain=_quartiles([one / each for one, each in rest]),
    )


def _started(spec: RunSpec, data_dir: Path, threads: int) -> OffPolicyTrainer:
    """A trainer that has begun to learn, without a run folder."""
    env = spec.create("env").make(data_dir)
    set_up_torch(spec)
    agent = build_agent(spec, env)
    choose_threads(agent, threads)
    trainer = make_trainer(spec, env, agent)
    assert isinstance(trainer, OffPolicyTrainer)
    trainer.begin()
    while not trainer.learner.updates:
        trainer.learn()
    return trainer


def _cpu_seconds(step: Callable[[], object], count: int) -> float:
    start = time.process_time()
    for _ in range(count):
        step()
    return (time.process_time() - start) / count


def _quartiles(values: Sequence[float]) -> Quartiles:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")  # never outside the values
    return low, middle, high
