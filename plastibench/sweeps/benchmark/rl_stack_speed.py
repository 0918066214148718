"""Measure what RL runs gain when their agents act and learn together in one process."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.sweeps.benchmark.rl_speed import start_rl_trainer
from plastibench.sweeps.benchmark.timing import Clock, Quartiles, alternate, quartiles, ratio, repeated, shown
from plastibench.sweeps.stacking import stack_key
from plastibench.training.trainer_stack import TrainerStack
from plastibench.utils.wording import plural


@dataclass(frozen=True)
class RLStackSpeed:
    """Time per step of all environments, including updates; quartiles over alternating rounds.

    Attributes:
        env: Name of the env.
        agent: Name of the agent.
        threads: CPU threads.
        clock: ``wall`` or ``cpu``.
        stack: Number of runs that are trained together.
        alone: Seconds per step of a run that is trained by itself.
        together: Seconds per step and run if ``stack`` runs are trained together.
        gain: ``alone`` divided by ``together``.
    """

    env: str
    agent: str
    threads: int
    clock: Clock
    stack: int
    alone: Quartiles
    together: Quartiles
    gain: Quartiles

    def to_text(self) -> str:
        """A report of a few lines."""
        time = "CPU time" if self.clock == "cpu" else "time"
        lines = [
            f"{self.env}, {self.agent}, {plural(self.threads, 'thread')}",
            f"{time} per step of all environments, with its updates; median (quartiles):",
            f"  alone                 {shown(self.alone, 1e3)} ms",
            f"  {f'each of {self.stack} together':21} {shown(self.together, 1e3)} ms",
            f"  gain                  {shown(self.gain)}",
        ]
        return "\n".join(lines)


def measure_rl_stack(
    spec: RunSpec, data_dir: Path, steps: int, rounds: int, threads: int, *, stack: int, clock: Clock = "wall"
) -> RLStackSpeed:
    """Time steps of one trainer and of several trainers together, in alternation. Evaluations are left out.

    Args:
        spec: The run to time.
        data_dir: Folder of datasets.
        steps: Steps of all environments per measurement.
        rounds: Number of rounds, at least 2. Each loop is measured twice per round.
        threads: CPU threads, as for a run.
        stack: Number of runs that are trained together.
        clock: See :func:`plastibench.sweeps.benchmark.timing.time_block`.

    Raises:
        UserError: These runs are not trained together.
    """
    if stack_key(spec) is None:
        raise UserError(f"runs of {spec.agent[0]} on {spec.env[0]} cannot be updated together")
    seeds = [replace(spec, run=replace(spec.run, seed=seed)) for seed in range(stack)]
    alone, *together = (start_rl_trainer(each, data_dir, threads) for each in (spec, *seeds))
    blocks = {
        "alone": repeated(alone.learn, steps),
        "together": repeated(functools.partial(TrainerStack().learn, together), steps),
    }
    found = alternate(blocks, rounds, torch.device(spec.run.device), clock=clock)
    for trainer in (alone, *together):
        trainer.close()
    one = [seconds / steps for seconds in found["alone"]]
    each = [seconds / steps / stack for seconds in found["together"]]
    return RLStackSpeed(
        env=spec.env[0],
        agent=spec.agent[0],
        threads=torch.get_num_threads(),
        clock=clock,
        stack=stack,
        alone=quartiles(one),
        together=quartiles(each),
        gain=ratio(one, each),
    )
