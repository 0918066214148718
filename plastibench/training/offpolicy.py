"""The course of a run in which an agent acts, remembers, and learns from what it remembers."""

from __future__ import annotations

import contextlib
import shutil
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import VectorEnv
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.config.errors import UserError
from plastibench.interventions.base import Intervention
from plastibench.results import returns
from plastibench.results.returns import Evaluation, Event
from plastibench.training.replay_buffer import BufferSpec, ReplayBuffer
from plastibench.training.rollout import on_device, play
from plastibench.utils.seeding import derive, generator

if TYPE_CHECKING:
    from plastibench.agents.offpolicy_agent import OffPolicyAgent
    from plastibench.envs.control import RLEnvironment
    from plastibench.training.runner import Run

Array = npt.NDArray[Any]
_PROBE = 512  # transitions for the plasticity metrics
_AT_ONCE = 16  # batches that are drawn together


class OffPolicyTrainer:
    """An agent in vectorised environments, one task after the other.

    Counted apart: steps of the agent, summed over all environments; steps of the environments, which skip frames; and
    updates. Schedules of interventions count updates.
    """

    axis = "steps"
    unit = "steps"

    def __init__(self, run: Run, env: RLEnvironment, agent: OffPolicyAgent) -> None:
        self.run, self.env, self.agent, self.scenario = run, env, agent, env.scenario
        seed, self.device = run.spec.run.seed, agent.device
        config = agent.config
        shape, dtype = env.frame
        priority = (config.priority_alpha, config.priority_beta) if config.prioritized else None
        mapped = config.storage == "memmap"
        kept_on = torch.device("cpu") if mapped else self.device
        self.elsewhere = kept_on != self.device
        self.order = generator(seed, "order", "cpu" if priority else kept_on)
        self.draws = generator(seed, "representative")
        self.layout = BufferSpec(
            capacity=config.buffer_size,
            envs=self.scenario.envs,
            frame=(shape, torch.from_numpy(np.empty(0, dtype)).dtype),
            action=torch.int32 if env.actions else torch.float32,
            stack=self.scenario.stack,
            n_step=config.n_step,
            gamma=config.gamma,
        )
        folder = run.folder / "memory" if mapped else None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)  # what a killed process left
        self.memory = ReplayBuffer(self.layout, agent.batch_size, kept_on, self.order, priority=priority, folder=folder)
        self.target_interventions: dict[str, Intervention] = {}
        if config.target_policy == "same":
            roles = [role for role in agent.targets if run.works_on(role)]
            self.target_interventions = {role: run.spec.create("intervention") for role in roles}
            for role, intervention in self.target_interventions.items():
                with self._trained_like_its_network(role):  # it would find nothing to act on in a frozen one
                    intervention.prepare(agent.targets[role])

        self.task = -1
        self.steps = 0  # of the agent, since the start
        self.steps_before = 0
        self.owed = 0.0  # updates that are due, as a fraction
        self.actions: list[list[Array]] = []  # all of each task: the state of the environments follows from them
        self.curve: list[Evaluation] = []
        self.events: list[Event] = []
        self.episodes: list[float] = []  # returns of the episodes in training since the last evaluation
        self.churning: tuple[Tensor, Tensor] | None = None
        self.envs: VectorEnv[Any, Any, Any]

    # The course --------------------------------------------------------------------------------------------------

    @property
    def place(self) -> float:
        """Steps of the agent since the start of the run."""
        return self.steps

    @property
    def length(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_task * self.scenario.task_count

    @property
    def steps_per_task(self) -> int:
        """A multiple of the number of environments."""
        return -(-self.scenario.steps // self.scenario.envs) * self.scenario.envs

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.steps >= self.length

    def begin(self) -> None:
        """Enter the first task."""
        self._enter(0)
        self._evaluate()

    def advance(self) -> None:
        """One step of all environments, the updates that it pays for, and what falls due."""
        if self.steps == self.steps_per_task * (self.task + 1):
            self._switch()
        self.agent.set_progress(self.steps / self.length)
        action = self._choose()
        self._step(action)
        before = self.steps
        self.steps += self.scenario.envs
        starts = max(self.agent.config.learning_starts, self.agent.batch_size)
        if self.steps > starts:
            self.owed += self.agent.config.replay_ratio * min(self.scenario.envs, self.steps - starts)
        if len(self.memory):  # else the updates come when the first transition is complete
            count = int(self.owed)
            self.owed -= count
            for first in range(0, count, _AT_ONCE):
                for number, batch in enumerate(self.memory.sample(min(_AT_ONCE, count - first)), first + 1):
                    self._learn(batch)
                    if self.run.due() and not (self.finished and number == count):  # nothing would learn after that
                        self._intervene()
        every = self.scenario.evaluate_every
        if self.steps // every > before // every or self.steps % self.steps_per_task == 0:
            self._evaluate()

    def representative(self) -> TensorDictBase:
        """Transitions drawn from the whole memory, with targets."""
        return self._prepared(self.run.spec.run.representative, self.draws, "representative")

    def probe(self) -> TensorDictBase:
        """Transitions drawn from the whole memory, the same for every method while the memory is."""
        return self._prepared(_PROBE, generator(self.run.spec.run.seed, f"probe-{self.steps}"), "probe")

    def _prepared(self, size: int, draws: torch.Generator, purpose: str) -> TensorDictBase:
        noise = generator(self.run.spec.run.seed, f"{purpose}-noise-{self.run.total}", self.device)
        return self.agent.prepare(self.memory.draw(size, draws).to(self.device), noise)

    @property
    def data(self) -> None:
        """Nothing beside the environment itself, which its id and its package's version name."""
        return None

    def counts(self) -> dict[str, int]:
        """Steps of the agent and of the environments, and the bytes of the memory."""
        frames = self.steps * self.scenario.frame_skip
        return {"agent_steps": self.steps, "environment_steps": frames, "memory_bytes": self.memory.bytes}

    def result(self) -> dict[str, Any]:
        """Returns and what followed each intervention."""
        return returns.result(self.curve, self.events, self.scenario.bounds)

    def remember(self, task: int, steps: int) -> None:
        """Act so many steps in a task and remember them, without learning: for a look at networks that are finished."""
        self._enter(task)
        self.steps = self.agent.config.learning_starts  # from where actions are the agent's own
        for _ in range(-(-steps // self.scenario.envs)):
            self._step(self._choose())

    # Acting and learning -----------------------------------------------------------------------------------------

    def _enter(self, task: int, again: str = "") -> None:
        """Make and reset the environments of a task; ``again`` names a later beginning with other episodes."""
        if self.task >= 0:
            self.envs.close()
        self.task = task
        self.actions.append([])
        self.envs = self.scenario.vector(task, self.scenario.envs)
        seed = self.run.spec.run.seed
        observation, _ = self.envs.reset(seed=derive(seed, f"env-{task}{again}") % 2**31)
        self.frames = self.scenario.observe(task, observation)
        self.seen = self.scenario.first_seen(self.frames)
        self.sums = np.zeros(self.scenario.envs)
        self.memory.begin(self.frames)
        self.envs.action_space.seed(derive(seed, f"random-actions-{task}{again}") % 2**31)

    def _choose(self) -> Array:
        """Actions of the type that the environment states: acted out again, they must be the same to the last bit."""
        if self.steps < self.agent.config.learning_starts:
            chosen = np.asarray(self.envs.action_space.sample())
        else:
            chosen = self.agent.act(on_device(self.seen, self.device), greedy=False).numpy()
        return chosen.astype(self.envs.single_action_space.dtype, copy=False)

    def _step(self, action: Array) -> None:
        """Act and remember."""
        if not self.run.spec.run.checkpoint_memory:
            self.actions[-1].append(action)
        observation, reward, terminated, truncated, info = self.envs.step(action)
        ended = terminated | truncated
        frames = self.scenario.observe(self.task, observation)
        final = {
            env: self.scenario.observe(self.task, np.asarray(info["final_obs"][env])[None])[0]
            for env in np.flatnonzero(truncated & ~terminated)
        }
        self.memory.add(action, self.agent.transform_reward(reward), terminated, truncated, frames, final)
        self.frames, self.seen = frames, self.scenario.next_seen(self.seen, frames, ended)
        self.sums += reward
        self.episodes += self.sums[ended].tolist()
        self.sums[ended] = 0

    def _learn(self, batch: TensorDictBase) -> None:
        if self.elsewhere:
            batch = batch.to(self.device)
        self.run.learn(batch)
        self.agent.follow()
        self.memory.update_priority(batch)
        if self.churning is not None:
            self._measure_churn(*self.churning)
            self.churning = None

    def _intervene(self) -> None:
        """Intervene, and see what it cost where two evaluations more are a small part of the interval."""
        self.churning = None  # of an update, not of an intervention
        every = self.run.spec.run.every
        seen = not every or every >= self.agent.config.replay_ratio * self.scenario.evaluate_every
        before = self._play()[0] if seen else 0.0
        self.run.intervene()
        self._lead_targets()
        for _ in range(self.run.spec.run.offline_updates or 0):
            for batch in self.memory.sample():
                self._learn(batch)
        if seen:
            event = Event(self.task, self.steps, self.run.total, before, self._play()[0])
            self.events.append(event)
            self.run.record("after", {"return-after": event.after, "drop": event.before - event.after})

    def _lead_targets(self) -> None:
        """What becomes of the targets, as the agent's target policy says."""
        policy = self.agent.config.target_policy
        for role, target in self.agent.targets.items():
            if not self.run.works_on(role):
                continue
            if policy == "copy":
                target.module.load_state_dict(self.agent.networks[role].module.state_dict())
            elif policy == "same":
                with self._trained_like_its_network(role):
                    self.target_interventions[role].intervene(target, self.representative())

    @contextlib.contextmanager
    def _trained_like_its_network(self, role: str) -> Iterator[None]:
        """For a time the target's parameters need gradients where those of its network do."""
        target, trained = self.agent.targets[role].module, self.agent.networks[role].module.parameters()
        for parameter, own in zip(target.parameters(), trained, strict=True):
            parameter.requires_grad_(own.requires_grad)
        try:
            yield
        finally:
            target.requires_grad_(False)

    def _switch(self) -> None:
        """Begin the next task; interventions see what is remembered of those before, for nothing else is there yet."""
        self._enter(self.task + 1)
        if self.run.due_at_switch() and len(self.memory):
            self._intervene()
        if self.scenario.clear_replay:
            self.memory.clear()
            self.memory.begin(self.frames)
        self._evaluate()

    # Evaluation --------------------------------------------------------------------------------------------------

    def _evaluate(self) -> None:
        """Returns of the greedy policy, the averages of training since the last time, and plasticity."""
        averages = self.run.averages()
        value, bias = self._play()
        if self.agent.entropic:
            seed = self.run.spec.run.seed
            bias = self._play(generator(seed, f"evaluation-{self.steps}", self.device))[1]
        self.curve.append(Evaluation(self.task, self.steps, value, bias))
        episodes = {"training-return": float(np.mean(self.episodes))} if self.episodes else {}
        self.episodes = []
        counts = {"agent-steps": self.steps, "environment-steps": self.steps * self.scenario.frame_skip}
        self.run.record("training", {"return": value, "q-bias": bias, **episodes, **averages, **counts})
        if len(self.memory) and self.run.total:
            self.run.measure("training")
            fresh = generator(self.run.spec.run.seed, f"churn-{self.steps}")
            batch = self.memory.draw(_PROBE, fresh).to(self.device)
            self.churning = batch["observation"], batch["action"]
            self._before_churn = self._answers(*self.churning)
        place = f"task {self.task + 1}/{self.scenario.task_count}, " if self.scenario.task_count > 1 else ""
        place += f"step {self.steps:,}"
        done = self.steps - self.steps_before
        end = self.steps % self.steps_per_task == 0 and self.steps > 0
        self.run.progress.show(self.steps, done, place, f"return {value:8.2f}", milestone=end)

    def _play(self, draws: torch.Generator | None = None) -> tuple[float, float]:
        seed = derive(self.run.spec.run.seed, f"evaluation-{self.steps}") % 2**31
        return play(self.scenario, self.task, self.agent, self._evaluated(), seed, draws)

    def _evaluated(self) -> dict[str, nn.Module]:
        pairs = zip(self.run.networks, self.run.interventions, strict=True)
        return {network.role: intervention.evaluated(network) for network, intervention in pairs}

    def _answers(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        return self.agent.act(observation, greedy=True), self.agent.value(observation, action)

    def _measure_churn(self, observation: Tensor, action: Tensor) -> None:
        """How much one update changed answers for transitions that were not in its batch, mostly."""
        (old_action, old_value), (new_action, new_value) = self._before_churn, self._answers(observation, action)
        changed = (old_action != new_action).flatten(1).any(1) if old_action.ndim > 1 else old_action != new_action
        figures = {"q-churn": float((new_value - old_value).abs().mean())}
        if self.env.actions:
            figures["policy-churn"] = float(changed.float().mean())
        self.run.record("training", figures)

    def close(self) -> None:
        """Close the environments, and delete what of the memory is in files; a resumed run acts it out again."""
        if self.task >= 0:
            self.envs.close()
        if self.agent.config.storage == "memmap":
            shutil.rmtree(self.run.folder / "memory", ignore_errors=True)

    # Saving and restoring ----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that an exact resume needs.

        Environments have no state that could be saved in general, but they repeat themselves: from the same seed and
        the same actions follow the same frames, and the memory with them. Where the memory itself is saved, a resumed
        run begins new episodes instead.
        """
        whole = self.run.spec.run.checkpoint_memory
        return {
            "task": self.task,
            "steps": self.steps,
            "owed": self.owed,
            "actions": [torch.from_numpy(np.stack(taken)) if taken else torch.empty(0) for taken in self.actions],
            "curve": [vars(point) for point in self.curve],
            "events": [vars(event) for event in self.events],
            "episodes": self.episodes,
            "churning": [*self.churning, *self._before_churn] if self.churning is not None else [],
            "order": self.order.get_state(),
            "draws": self.draws.get_state(),
            "memory": self.memory.state_dict() if whole else self.memory.sampler_state(),
            "targets": {role: each.state_dict() for role, each in self.target_interventions.items()},
            "seen": zlib.crc32(np.ascontiguousarray(self.seen).tobytes()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned.

        Raises:
            UserError: The environments did not repeat themselves.
        """
        if self.run.spec.run.checkpoint_memory:
            self.memory.load_state_dict(state["memory"])
            self._enter(state["task"], again=f"-from-{state['steps']}")
        else:
            self._act_out(state)
            self.memory.load_sampler_state(state["memory"])
        self.steps = self.steps_before = state["steps"]
        self.owed, self.episodes = state["owed"], state["episodes"]
        self.curve = [Evaluation(**point) for point in state["curve"]]
        self.events = [Event(**event) for event in state["events"]]
        if state["churning"]:
            observation, action, *answers = (value.to(self.device) for value in state["churning"])
            self.churning, self._before_churn = (observation, action), (answers[0].cpu(), answers[1])
        self.order.set_state(state["order"].cpu())
        self.draws.set_state(state["draws"])
        for role, each in self.target_interventions.items():
            each.load_state_dict(state["targets"][role])

    def _act_out(self, state: dict[str, Any]) -> None:
        """Do all that was done, so that environments and memory are as they were."""
        for task, taken in enumerate(state["actions"]):
            self._enter(task)
            if task and self.scenario.clear_replay:
                self.memory.clear()
                self.memory.begin(self.frames)
            for action in taken.numpy():
                if self.steps < self.agent.config.learning_starts:
                    self.envs.action_space.sample()
                self._step(action)
                self.steps += self.scenario.envs
        if zlib.crc32(np.ascontiguousarray(self.seen).tobytes()) != state["seen"]:
            raise UserError(
                f"{self.run.spec.id} cannot be continued: its environment does not repeat itself; "
                f"delete {self.run.folder} and start anew with --checkpoint-memory, which needs no repetition"
            )
