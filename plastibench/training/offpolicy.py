"""Train an off-policy RL agent: act in environments, store transitions, learn from the replay buffer."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import VectorEnv
from tensordict import TensorDictBase
from torch import Tensor

from plastibench.agents.offpolicy_agent import OffPolicyAgent
from plastibench.config.errors import UserError
from plastibench.config.spec import RunOptions
from plastibench.envs.environment_check import check_action, check_finite, naming_environment
from plastibench.envs.rl_env import RLEnvironment
from plastibench.interventions.target_networks import TargetNetworks
from plastibench.results import returns
from plastibench.results.returns import Evaluation, Event
from plastibench.training.action_log import ActionLog
from plastibench.training.learner import Learner
from plastibench.training.replay_buffer import BufferSpec, ReplayBuffer
from plastibench.training.rollout import evaluate_policy, to_tensor
from plastibench.training.trainer import Log, Trainer
from plastibench.training.videos import record_episode
from plastibench.utils.seeding import derive, generator
from plastibench.utils.wording import plural

Array = npt.NDArray[Any]
_PROBE = 512  # transitions for the plasticity metrics
_BATCHES_AT_ONCE = 16  # batches that are sampled together


class OffPolicyTrainer(Trainer):
    """Trains an RL agent in vectorized environments, one task after the other.

    There are three separate counts: agent steps, summed over all environments; environment steps, which are more if
    actions are repeated (frame skip); and updates. Intervention schedules count updates.
    """

    axis = "steps"
    unit = "steps"

    def __init__(
        self,
        env: RLEnvironment,
        learner: Learner,
        options: RunOptions,
        log: Log | None = None,
        folder: Path | None = None,
    ) -> None:
        """Create the replay buffer.

        Args:
            env: The tasks' environments.
            learner: What learns.
            options: Seed, schedule and sizes of the run.
            log: Where metrics go.
            folder: Folder for the files of a memory-mapped replay buffer (``storage = "memmap"``).
        """
        super().__init__(learner, options, log)
        assert isinstance(learner.agent, OffPolicyAgent)
        self.env, self.agent = env, learner.agent
        self.device = self.agent.device
        config = self.agent.config
        shape, dtype = env.frame_shape, env.frame_dtype
        priority = (config.priority_alpha, config.priority_beta) if config.prioritized else None
        self._mapped = folder / "memory" if folder is not None and config.storage == "memmap" else None
        buffer_device = torch.device("cpu") if self._mapped is not None else self.device
        self._moves_batches = buffer_device != self.device
        self.order = generator(options.seed, "order", "cpu" if priority else buffer_device)
        self.draws = generator(options.seed, "representative")
        buffer_spec = BufferSpec(
            capacity=config.buffer_size,
            envs=self.env_config.envs,
            frame=(shape, torch.from_numpy(np.empty(0, dtype)).dtype),
            action=torch.int32 if env.num_actions else torch.float32,
            stack=self.env_config.stack_size,
            n_step=config.n_step,
            gamma=config.gamma,
        )
        if self._mapped is not None:
            shutil.rmtree(self._mapped, ignore_errors=True)  # left by a killed process
        self.buffer = ReplayBuffer(
            buffer_spec, self.agent.batch_size, buffer_device, self.order, priority=priority, folder=self._mapped
        )
        self.targets = TargetNetworks(
            learner.modified_networks, self.agent.targets, config.target_policy, learner.make_intervention
        )

        self.task = -1
        self.steps = 0  # agent steps since the start
        self.steps_before = 0
        self.owed = 0.0  # updates due, with a fractional part
        self.actions: list[ActionLog] = []  # one log per task; replaying them restores the environments
        self.curve: list[Evaluation] = []
        self.events: list[Event] = []
        self.episodes: list[float] = []  # returns of the training episodes since the last evaluation
        self._churn: tuple[Tensor, Tensor, Tensor, Tensor] | None = None  # probe and outputs before the next update
        self.envs: VectorEnv[Any, Any, Any]
        self.videos: tuple[Path, int] | None = None  # folder of videos, and the number of evaluations per video

    @property
    def env_config(self) -> Any:
        """The options of the environment."""
        return self.env.config

    # The run ------------------------------------------------------------------------------------------------------

    @property
    def position(self) -> float:
        """Steps of the agent since the start of the run."""
        return self.steps

    @property
    def length(self) -> int:
        """Agent steps of the run."""
        return self.steps_per_task * self.env_config.task_count

    @property
    def steps_per_task(self) -> int:
        """Agent steps per task, rounded up to a multiple of the number of environments."""
        return -(-self.env_config.steps // self.env_config.envs) * self.env_config.envs

    @property
    def finished(self) -> bool:
        """Whether the run is complete."""
        return self.steps >= self.length

    def begin(self) -> None:
        """Start the first task."""
        self._enter(0)
        self._evaluate()

    def advance(self) -> None:
        """Step all environments once, make the updates that are due, then evaluate if it is time."""
        self.learn()
        self.after_update()

    def learn(self) -> None:
        """Step all environments once and make the updates that are due.

        Code that acts and updates for several trainers together calls the three parts itself.
        """
        observation = self.observe()
        self.step(None if observation is None else self.agent.act(observation, greedy=False))
        for batch in self.due_batches():
            self.learner.learn(batch)

    def observe(self) -> Tensor | None:
        """Begin the next task if it is time; return the observations to act on, or None while actions are random."""
        if self.steps == self.steps_per_task * (self.task + 1):
            self._begin_next_task()
        self.agent.set_progress(self.steps / self.length)
        return None if self.steps < self.agent.config.learning_starts else to_tensor(self.seen, self.device)

    def step(self, chosen: Tensor | None) -> None:
        """Step all environments and store the transitions.

        Args:
            chosen: The agent's actions, [envs] or [envs, A]; None: random actions.
        """
        self._step(self._checked(chosen))
        self.steps += self.env_config.envs

    def due_batches(self) -> Iterator[TensorDictBase]:
        """Yield the batches of the updates that are due; the caller learns from each before it takes the next.

        After each update, intervene if it is time.
        """
        starts = max(self.agent.config.learning_starts, self.agent.batch_size)
        if self.steps > starts:
            self.owed += self.agent.config.replay_ratio * min(self.env_config.envs, self.steps - starts)
        if not len(self.buffer):  # with n-step returns, the first transitions are complete some steps later
            return
        count = int(self.owed)
        self.owed -= count
        for first in range(0, count, _BATCHES_AT_ONCE):
            for number, batch in enumerate(self._sampled(min(_BATCHES_AT_ONCE, count - first)), first + 1):
                yield batch
                self._after_learning(batch)
                last = self.finished and number == count  # an intervention after the last update is pointless
                if self.learner.due() and not last:
                    self._intervene_and_evaluate()

    def after_update(self) -> None:
        """Evaluate if it is time."""
        every, before = self.env_config.evaluate_every, self.steps - self.env_config.envs
        if self.steps // every > before // every or self.steps % self.steps_per_task == 0:
            self._evaluate()

    def representative(self) -> TensorDictBase:
        """Draw transitions from the whole replay buffer, and add targets."""
        return self._prepared(self.options.representative, self.draws, "representative")

    def probe(self) -> TensorDictBase:
        """Draw transitions from the whole replay buffer; equal buffers give equal probes."""
        return self._prepared(_PROBE, generator(self.options.seed, f"probe-{self.steps}"), "probe")

    def _prepared(self, size: int, draws: torch.Generator, purpose: str) -> TensorDictBase:
        """Draw transitions and add targets, with noise that does not advance the training's generator."""
        noise = generator(self.options.seed, f"{purpose}-noise-{self.learner.updates}", self.device)
        return self.agent.add_targets(self.buffer.sample_without_replacement(size, draws).to(self.device), noise)

    def counts(self) -> dict[str, int]:
        """Steps of the agent and of the environments, and the size of the replay buffer in bytes."""
        frames = self.steps * self.env_config.frame_skip
        return {"agent_steps": self.steps, "environment_steps": frames, "memory_bytes": self.buffer.bytes}

    def result(self) -> dict[str, Any]:
        """The returns, and the effect of each intervention."""
        return returns.result(self.curve, self.events, self.env_config.reference_returns)

    def collect(self, task: int, steps: int) -> None:
        """Act for a number of steps in a task and store the transitions, without learning."""
        self._enter(task)
        self.steps = self.agent.config.learning_starts  # from here on the agent chooses the actions
        for _ in range(-(-steps // self.env_config.envs)):
            self._step(self._checked(self.agent.act(to_tensor(self.seen, self.device), greedy=False)))

    # Acting and learning -----------------------------------------------------------------------------------------

    def _enter(self, task: int, again: str = "") -> None:
        """Create and reset the environments of a task; ``again`` names a later start with other episodes."""
        if self.task >= 0:
            self.envs.close()
        self.task = task
        self.envs = self.env_config.make_vec(task, self.env_config.envs)
        self.actions.append(ActionLog(self.envs.single_action_space))
        seed = self.options.seed
        with naming_environment(self.env_config.id, f"at the first reset of task {task + 1}"):
            observation, _ = self.envs.reset(seed=derive(seed, f"env-{task}{again}") % 2**31)
            self.frames = self.env_config.preprocess(task, observation)
        check_finite(self.env_config.id, self.frames, None, "at the first reset")
        self.seen = self.env_config.stack_first(self.frames)
        self.sums = np.zeros(self.env_config.envs)
        self.buffer.start_episodes(self.frames)
        self.envs.action_space.seed(derive(seed, f"random-actions-{task}{again}") % 2**31)

    def _checked(self, chosen: Tensor | None) -> Array:
        """Actions in the dtype of the action space, so that a resumed run replays them bit for bit; None: random."""
        if chosen is None:
            action = np.asarray(self.envs.action_space.sample())
        else:
            action = chosen.numpy()
            check_action(action, f"at step {self.steps:,}")
        return action.astype(self.envs.single_action_space.dtype, copy=False)

    def _step(self, action: Array) -> None:
        """Step all environments and store the transitions."""
        if not self.options.checkpoint_memory:
            self.actions[-1].append(action)
        when = f"at step {self.steps + self.env_config.envs:,}"
        with naming_environment(self.env_config.id, when):
            observation, reward, terminated, truncated, info = self.envs.step(action)
            frames = self.env_config.preprocess(self.task, observation)
        ended = terminated | truncated
        check_finite(self.env_config.id, frames, np.asarray(reward), when)
        final = {
            env: self.env_config.preprocess(self.task, np.asarray(info["final_obs"][env])[None])[0]
            for env in np.flatnonzero(truncated & ~terminated)
        }
        for env, last in final.items():
            check_finite(self.env_config.id, last[None], None, when, int(env))
        self.buffer.add(action, self.agent.transform_reward(reward), terminated, truncated, frames, final)
        self.frames, self.seen = frames, self.env_config.stack_next(self.seen, frames, ended)
        self.sums += reward
        self.episodes += self.sums[ended].tolist()
        self.sums[ended] = 0

    def _sampled(self, count: int = 1) -> Iterator[TensorDictBase]:
        for batch in self.buffer.sample(count):
            yield batch.to(self.device) if self._moves_batches else batch

    def _after_learning(self, batch: TensorDictBase) -> None:
        self.buffer.update_priority(batch)
        if self._churn is not None:
            self._measure_churn(*self._churn)
            self._churn = None

    def _intervene_and_evaluate(self) -> None:
        """Intervene. Measure the drop only if interventions are rare enough that two extra evaluations are cheap."""
        self._churn = None  # churn is measured over an update only
        every = self.options.every
        measured = not every or every >= self.agent.config.replay_ratio * self.env_config.evaluate_every
        before = self._evaluate_policy()[0] if measured else 0.0
        self.intervene()
        self.targets.after_intervention(self.representative)
        for _ in range(self.options.offline_updates or 0):
            for batch in self._sampled():
                self.learner.learn(batch)
                self._after_learning(batch)
        if measured:
            changed = self.learner.acts or self.options.offline_updates
            after = self._evaluate_policy()[0] if changed else before
            event = Event(self.task, self.steps, self.learner.updates, before, after)
            self.events.append(event)
            self.record("after", {"return-after": event.after, "drop": event.before - event.after})

    def _begin_next_task(self) -> None:
        """Begin the next task. Interventions see only transitions of earlier tasks: the new one has none yet."""
        self._enter(self.task + 1)
        self.agent.begin_task()
        if self.learner.due_at_boundary() and len(self.buffer):
            self._intervene_and_evaluate()
        if self.env_config.clear_replay:
            self.buffer.clear()
            self.buffer.start_episodes(self.frames)
        self._evaluate()

    # Evaluation --------------------------------------------------------------------------------------------------

    def _evaluate(self) -> None:
        """Record returns of the greedy policy, the training averages since the last evaluation, and plasticity."""
        averages = self.learner.pop_averages()
        value, bias = self._evaluate_policy()
        self._record_video()
        if self.agent.entropic:
            seed = self.options.seed
            bias = self._evaluate_policy(generator(seed, f"evaluation-{self.steps}", self.device))[1]
        self.curve.append(Evaluation(self.task, self.steps, value, bias))
        episodes = {"training-return": float(np.mean(self.episodes))} if self.episodes else {}
        self.episodes = []
        counts = {"agent-steps": self.steps, "environment-steps": self.steps * self.env_config.frame_skip}
        self.record("evaluation", {"return": value, "q-bias": bias})
        self.record("training", {**episodes, **averages, **counts})
        if len(self.buffer) and self.learner.updates:
            self.measure("evaluation")
            fresh = generator(self.options.seed, f"churn-{self.steps}")
            batch = self.buffer.sample_without_replacement(_PROBE, fresh).to(self.device)
            probe = batch["observation"], batch["action"]
            with self.measuring():
                self._churn = *probe, *self._greedy_outputs(*probe)
        self._show(f"return {value:8.2f}", milestone=self.steps % self.steps_per_task == 0 and self.steps > 0)

    def _show(self, value: str, *, milestone: bool = False) -> None:
        position = f"task {self.task + 1}/{self.env_config.task_count}, " if self.env_config.task_count > 1 else ""
        position += f"step {self.steps:,}"
        if self.log is not None:
            self.log.progress(self.steps, self.steps - self.steps_before, position, value, milestone=milestone)

    def _show_evaluation(self, ended: int, step: int) -> None:
        self._show(f"evaluating: {ended} of {plural(self.env_config.evaluation_episodes, 'episode')}, step {step:,}")

    def _evaluate_policy(self, draws: torch.Generator | None = None) -> tuple[float, float]:
        seed = derive(self.options.seed, f"evaluation-{self.steps}") % 2**31
        modules = self.learner.evaluated_modules()
        with self.evaluating():
            return evaluate_policy(
                self.env_config, self.task, self.agent, modules, seed, draws, progress=self._show_evaluation
            )

    def _record_video(self) -> None:
        """Record an episode of the current evaluation, if a video is due."""
        if self.videos is None or (len(self.curve) % self.videos[1] and not self.finished):
            return
        path = self.videos[0] / f"task-{self.task + 1}-step-{self.steps}.gif"
        seed = derive(self.options.seed, f"evaluation-{self.steps}") % 2**31
        with self.evaluating():
            record_episode(self.env_config, self.task, self.agent, self.learner.evaluated_modules(), seed, path)

    def _greedy_outputs(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        return self.agent.act(observation, greedy=True), self.agent.value(observation, action)

    def _measure_churn(self, observation: Tensor, action: Tensor, old_action: Tensor, old_value: Tensor) -> None:
        """Record how much one update changed actions and values, mostly on transitions outside its batch."""
        with self.measuring():
            new_action, new_value = self._greedy_outputs(observation, action)
        changed = (old_action != new_action).flatten(1).any(1) if old_action.ndim > 1 else old_action != new_action
        values = {"q-churn": float((new_value - old_value).abs().mean())}
        if self.env.num_actions:
            values["policy-churn"] = float(changed.float().mean())
        self.record("training", values)

    def close(self) -> None:
        """Close the environments and delete the buffer's files; a resumed run fills the buffer again."""
        if self.task >= 0:
            self.envs.close()
        if self._mapped is not None:
            shutil.rmtree(self._mapped, ignore_errors=True)

    # Saving and restoring ----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """State for an exact resume.

        Environments cannot be saved in general, but they are deterministic: the same seeds and actions lead to the
        same frames and the same replay buffer. If the buffer itself is saved, a resumed run starts new episodes.
        """
        with_buffer = self.options.checkpoint_memory
        return {
            **super().state_dict(),
            "steps": self.steps,
            "owed": self.owed,
            "actions": [torch.from_numpy(taken.to_array()) for taken in self.actions],
            "curve": [vars(point) for point in self.curve],
            "events": [vars(event) for event in self.events],
            "episodes": self.episodes,
            "churn": [*self._churn] if self._churn is not None else [],
            "order": self.order.get_state(),
            "draws": self.draws.get_state(),
            "buffer": self.buffer.state_dict() if with_buffer else self.buffer.sampler_state(),
            "targets": self.targets.state_dict(),
            "seen": zlib.crc32(np.ascontiguousarray(self.seen).tobytes()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from :meth:`state_dict`.

        Raises:
            UserError: The environments are not deterministic.
        """
        super().load_state_dict(state)
        self.task = -1  # no environment is open yet
        if self.options.checkpoint_memory:
            self.buffer.load_state_dict(state["buffer"])
            self._enter(state["task"], again=f"-from-{state['steps']}")
        else:
            self._replay_actions(state)
            self.buffer.load_sampler_state(state["buffer"])
        self.steps = self.steps_before = state["steps"]
        self.owed, self.episodes = state["owed"], state["episodes"]
        self.curve = [Evaluation(**point) for point in state["curve"]]
        self.events = [Event(**event) for event in state["events"]]
        if state["churn"]:
            observation, action, old_action, old_value = state["churn"]
            device = self.device
            self._churn = observation.to(device), action.to(device), old_action.cpu(), old_value.to(device)
        self.order.set_state(state["order"].cpu())
        self.draws.set_state(state["draws"])
        self.targets.load_state_dict(state["targets"])

    def _replay_actions(self, state: dict[str, Any]) -> None:
        """Repeat all earlier actions, to restore the environments and the replay buffer."""
        for task, taken in enumerate(state["actions"]):
            self._enter(task)
            if task and self.env_config.clear_replay:
                self.buffer.clear()
                self.buffer.start_episodes(self.frames)
            for action in self.actions[-1].restored(taken.numpy()):
                if self.steps < self.agent.config.learning_starts:
                    self.envs.action_space.sample()
                self._step(action)
                self.steps += self.env_config.envs
        if zlib.crc32(np.ascontiguousarray(self.seen).tobytes()) != state["seen"]:
            raise UserError(
                "the environment is not deterministic, so the run cannot be resumed; delete its folder and start again "
                "with --checkpoint-memory, which does not need to replay past steps"
            )
