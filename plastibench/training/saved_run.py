"""Load a saved run: its spec, env and agent, with the networks in their last saved state."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.envs.task_stream import TaskStream
from plastibench.nn.network import Network
from plastibench.results.run_folder import read_spec
from plastibench.training import checkpoint
from plastibench.utils.seeding import derive


@dataclass
class SavedRun:
    """A run in its last saved state.

    Attributes:
        spec: The spec, with the device it was opened on.
        file: The file that contains the state: ``final.pt``, or ``checkpoint.pt`` for an unfinished run.
        state: The content of that file.
        env: The task stream or RL environment; not reset yet.
        config: The agent config.
        agent: The agent, with its networks in the saved state.
        initial: Parameters of each network at the start of the run, by role.
    """

    spec: RunSpec
    file: Path
    state: dict[str, Any]
    env: Any
    config: Any
    agent: Any
    initial: dict[str, dict[str, Tensor]]

    @property
    def task(self) -> int:
        """Number of the task in which the state was saved, from 0; the last task for a finished run."""
        if self.file.name == "final.pt":
            return int(self.env.config.task_count) - 1
        return int(self.state["trainer"]["task"])


def open_run(folder: Path, device: str, data_dir: Path) -> SavedRun:
    """Create the agent of a run and load its last saved state.

    Args:
        folder: The run's folder.
        device: Device of the networks.
        data_dir: Folder of datasets.

    Raises:
        UserError: The folder contains no saved run, or its files are damaged.
    """
    spec_file = folder / "spec.toml"
    if not spec_file.is_file():
        raise UserError(f"{folder} is not a run's folder: it has no {spec_file.name}")
    spec = read_spec(spec_file)
    final = folder / checkpoint.FINAL
    files = [final] if final.exists() else checkpoint.saved_checkpoints(folder)
    if not files:
        raise UserError(f"{folder} contains neither final.pt nor checkpoint.pt; the run has not been saved yet")
    file = files[0]
    try:
        state = checkpoint.load(file)
    except UserError as error:
        raise UserError(f"{file} is damaged and cannot be read") from error
    spec = dataclasses.replace(spec, run=dataclasses.replace(spec.run, device=device))
    env = spec.create("env").make(data_dir)
    config = spec.create("agent")
    agent = config.build(env, spec.run.seed, torch.device(device))
    try:
        initial = _load(spec, agent, state)
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{file} does not match its spec.toml ({type(error).__name__}: {reason})") from error
    return SavedRun(spec, file, state, env, config, agent, initial)


def trained_and_fresh(folder: Path, device: str, *, data_dir: Path) -> tuple[Network, Network, TensorDictBase]:
    """Load the classifier of a run, its copy at the start of the run, and all training data of the last task.

    Raises:
        UserError: The folder contains no run on a task stream, or its files are damaged.
    """
    saved = open_run(folder, device, data_dir)
    if not isinstance(saved.env, TaskStream):
        raise UserError(f"{folder}: {saved.spec.env[0]} is not a task stream, so there is no training data to load")
    fresh = saved.config.build(saved.env, saved.spec.run.seed, torch.device(device))  # the same initial weights
    data = data_of_task(saved.env, saved.spec, saved.env.config.task_count - 1).to(device)
    return saved.agent.networks["classifier"], fresh.networks["classifier"], data


def data_of_task(env: TaskStream, spec: RunSpec, task: int) -> TensorDictBase:
    """All training images of a task in the order in which they were added, with their labels in that task.

    Args:
        env: The task stream; it is reset.
        spec: The spec of the run, for its seed.
        task: Index of the task.
    """
    observation, _ = env.reset(seed=derive(spec.run.seed, "stream"))
    images = observation["images"]
    for _ in range(task):
        observation = env.step(env.evaluation_labels)[0]
        replaced = len(observation["images"]) == len(observation["labels"])  # the same rule as in add_task_data()
        images = observation["images"] if replaced else np.concatenate([images, observation["images"]])
    content = {"image": torch.from_numpy(images), "label": torch.from_numpy(observation["labels"])}
    return TensorDict(content, batch_size=[len(images)])


def _load(spec: RunSpec, agent: Any, state: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Load a saved state into a new agent; return the parameters at the start of the run, by role."""
    networks = list(agent.networks.items())
    roles = spec.run.roles
    interventions = [spec.create("intervention") if roles is None or role in roles else None for role in agent.networks]
    for (_, network), intervention in zip(networks, interventions, strict=True):
        if intervention is not None:  # prepare() may change the architecture
            intervention.prepare(network)
    initial = {role: {n: p.detach().clone() for n, p in each.module.named_parameters()} for role, each in networks}
    learner = state["trainer"]["learner"] if "trainer" in state else state
    for intervention, saved in zip(interventions, learner["interventions"], strict=True):
        if intervention is not None:
            intervention.load_state_dict(saved)
    if "agent" in learner:
        agent.load_state_dict(learner["agent"])
        return initial
    for (_, network), saved in zip(networks, state["networks"], strict=True):
        network.module.load_state_dict(saved)
    agent.load_extra_state(state.get("extra", {}))
    return initial
