"""Time RL agents: environment steps, updates, and both together, against a plain loop of DQN or SAC."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import torch

from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.envs.rl_env import RLEnvConfig
from plastibench.sweeps.benchmark.plain_rl import plain_rl_loop
from plastibench.sweeps.benchmark.timing import Clock, Quartiles, alternate, quartiles, ratio, repeated, shown
from plastibench.training.assembly import build_agent, check_options, choose_threads, make_trainer
from plastibench.training.offpolicy import OffPolicyTrainer
from plastibench.utils.runtime import set_up_torch
from plastibench.utils.tables import text_table
from plastibench.utils.wording import plural

_NEVER = 10**12  # steps between evaluations


@dataclasses.dataclass(frozen=True)
class RLSpeed:
    """Seconds of plastibench and of a plain loop, measured in alternating rounds; values have quartiles.

    Attributes:
        env: Name of the env.
        agent: Name of the agent.
        device: The device.
        threads: CPU threads.
        envs: Environments that are stepped together.
        replay_ratio: Updates per agent step.
        batch_size: Transitions per update.
        clock: ``wall``, or ``cpu`` for CPU time.
        acting: Seconds to act, step all environments and store the transitions.
        acting_plain: The same for the plain loop.
        acting_ratio: ``acting`` relative to ``acting_plain``.
        update: Seconds to draw a batch and make an update.
        update_plain: The same for the plain loop.
        update_ratio: ``update`` relative to ``update_plain``.
        training: Seconds per step of all environments with the updates that the replay ratio asks for.
        training_plain: The same for the plain loop.
        training_ratio: ``training`` relative to ``training_plain``.
    """

    env: str
    agent: str
    device: str
    threads: int
    envs: int
    replay_ratio: float
    batch_size: int
    clock: str
    acting: Quartiles
    acting_plain: Quartiles
    acting_ratio: Quartiles
    update: Quartiles
    update_plain: Quartiles
    update_ratio: Quartiles
    training: Quartiles
    training_plain: Quartiles
    training_ratio: Quartiles

    def to_text(self) -> str:
        """A table of at most 80 columns."""
        rows = []
        for name, per, count in (
            ("acting", "agent steps/s", self.envs),
            ("update", "updates/s", 1),
            ("training", "agent steps/s", self.envs),
        ):
            ours, theirs = (f"{count / getattr(self, key)[1]:,.0f}" for key in (name, f"{name}_plain"))
            rows.append([f"{name}, {per}", ours, theirs, shown(getattr(self, f"{name}_ratio"))])
        return "\n".join(
            [
                f"{self.env}, {self.agent}, {self.device}, {plural(self.threads, 'thread')}",
                f"{plural(self.envs, 'environment')}, {self.replay_ratio:g} updates per agent step of "
                f"{plural(self.batch_size, 'transition')}",
                "",
                text_table(["", "plastibench", "plain loop", "time ratio (quartiles)"], rows),
                "",
                "training: acting, and the updates that the replay ratio asks for",
                *(["measured in CPU time"] if self.clock == "cpu" else []),
            ]
        )


def measure_rl(
    spec: RunSpec, data_dir: Path, updates: int = 50, rounds: int = 10, threads: int = 0, *, clock: Clock = "wall"
) -> RLSpeed:
    """Time an RL agent and a plain loop with the same networks and sizes, after the steps with random actions.

    Args:
        spec: A run of DQN or SAC.
        data_dir: Folder of datasets.
        updates: Updates, or steps of all environments, per measurement.
        rounds: Number of rounds, at least 2.
        threads: CPU threads; 0: as for a run.
        clock: ``wall``, or ``cpu`` for the CPU time of this process.

    Raises:
        UserError: The env is not an RL environment, or the plain loop does not support the agent.
    """
    with contextlib.ExitStack() as closing:
        trainer = start_rl_trainer(spec, data_dir, threads)
        closing.callback(trainer.close)
        plain = plain_rl_loop(trainer)
        closing.callback(plain.close)
        never = _with_options(spec, "agent", replay_ratio=0.0)
        idle = start_rl_trainer(never, data_dir, threads)  # it acts, but does not update
        closing.callback(idle.close)
        for _ in range(trainer.steps // trainer.env_config.envs):
            plain.step()

        count = max(1, min(16, round(trainer.agent.config.replay_ratio * trainer.env_config.envs)))

        def update() -> None:
            """As many updates as the trainer makes between two steps."""
            for batch in trainer.buffer.sample(count):
                trainer.learner.learn(batch)

        blocks = {
            "acting": repeated(idle.advance, updates),
            "acting_plain": repeated(plain.step, updates),
            "update": repeated(update, updates),
            "update_plain": repeated(repeated(plain.update, count), updates),
            "training": repeated(trainer.advance, updates),
            "training_plain": repeated(plain.advance, updates),
        }
        measured = alternate(blocks, rounds, trainer.device, clock=clock)
    calls = {name: updates * (count if name.startswith("update") else 1) for name in blocks}
    seconds = {name: [value / calls[name] for value in values] for name, values in measured.items()}
    parts: dict[str, Any] = {name: quartiles(values) for name, values in seconds.items()}
    parts |= {
        f"{name}_ratio": ratio(seconds[name], seconds[f"{name}_plain"]) for name in ("acting", "update", "training")
    }
    return RLSpeed(
        env=spec.env[0],
        agent=spec.agent[0],
        device=spec.run.device,
        threads=torch.get_num_threads(),
        envs=trainer.env_config.envs,
        replay_ratio=trainer.agent.config.replay_ratio,
        batch_size=trainer.agent.batch_size,
        clock=clock,
        **parts,
    )


def start_rl_trainer(spec: RunSpec, data_dir: Path, threads: int = 0) -> OffPolicyTrainer:
    """A trainer after the steps with random actions, which is never evaluated again.

    Raises:
        UserError: The env is not an RL environment.
    """
    if not isinstance(spec.create("env"), RLEnvConfig):
        raise UserError(f"{spec.env[0]} is not an RL environment; measure classifiers with: plastibench bench train")
    env = _with_options(spec, "env", evaluate_every=_NEVER, steps=_NEVER).create("env").make(data_dir)
    set_up_torch(spec)
    agent = build_agent(spec, env)
    if agent.config.replay_ratio:
        check_options(spec, env, agent)
    choose_threads(agent, threads)
    trainer = make_trainer(spec, env, agent)
    assert isinstance(trainer, OffPolicyTrainer)
    trainer.begin()
    while trainer.steps <= max(agent.config.learning_starts, agent.batch_size):
        trainer.advance()
    return trainer


def _with_options(spec: RunSpec, part: str, **options: Any) -> RunSpec:
    name, values = getattr(spec, part)
    changes: dict[str, Any] = {part: (name, {**values, **options})}
    return dataclasses.replace(spec, **changes)
