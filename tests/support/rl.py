"""Small RL agents, batches and run specs for tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from plastibench.agents.offpolicy_agent import OffPolicyAgent
from plastibench.config.errors import UserError
from plastibench.config.options import build
from plastibench.config.registry import agents, envs
from plastibench.config.spec import RunSpec
from plastibench.envs.rl_env import RLEnvironment
from plastibench.nn.network import Network
from plastibench.training.replay_buffer import BufferSpec, ReplayBuffer

RL = [("dqn-mlp", "critic"), ("dqn-dueling", "critic"), ("sac-mlp", "critic"), ("sac-mlp", "actor")]


TINY = {"hidden": (16, 16), "batch_size": 8}


QUICK = {"steps": 240, "envs": 4, "evaluate_every": 80, "evaluation_episodes": 2, "max_episode_steps": 60}


SMALL = {"hidden": (8, 8), "batch_size": 8, "learning_starts": 40, "buffer_size": 120, "replay_ratio": 0.5}


def make_env(name: str, **options: Any) -> RLEnvironment:
    """Create the environments registered under a name."""
    entry = envs[name]
    return build(entry.load(), {**entry.defaults, **options}, name).make()


def make_agent(name: str = "dqn-mlp", env: str = "rl-cartpole", **options: Any) -> Any:
    """Create a small RL agent for an environment."""
    entry = agents[name]
    config = build(entry.load(), {**entry.defaults, **TINY, **options}, name)
    return config.build(make_env(env), 0, torch.device("cpu"))


def transitions(env: str, count: int = 8, seed: int = 0) -> TensorDict:
    """A batch of noise in the shapes of an environment."""
    source = make_env(env)
    generator = torch.Generator().manual_seed(seed)
    shape = (count, *source.observation_shape)
    if source.num_actions:
        action = torch.randint(source.num_actions, (count,), generator=generator, dtype=torch.int32)
    else:
        action = torch.rand(count, len(source.action_low), generator=generator) * 2 - 1
    columns = {
        "observation": torch.randn(shape, generator=generator),
        "next_observation": torch.randn(shape, generator=generator),
        "action": action,
        "reward": 3 * torch.randn(count, generator=generator),
        "discount": 0.9 * (torch.rand(count, generator=generator) < 0.7),
    }
    return TensorDict(columns, batch_size=[count])


def drift(agent: OffPolicyAgent) -> None:
    """Add noise to the target networks, so that they differ from the networks."""
    for target in agent.targets.values():
        for number, parameter in enumerate(target.module.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.3)


def outputs(module: nn.Module, *inputs: Tensor) -> np.ndarray[Any, Any]:
    """What the module returns, in double precision."""
    with torch.no_grad():
        return module(*inputs).double().numpy()


def rl_agent_and_batch(name: str, **options: Any) -> tuple[Any, TensorDictBase]:
    """Create an agent and a batch of 16 transitions."""
    if name == "dqn-dueling":
        name, options = "dqn-mlp", {**options, "dueling": True}
    entry, env = agents[name], envs["rl-pendulum" if name.startswith("sac") else "rl-cartpole"]
    stream = build(env.load(), dict(env.defaults), "env").make()
    config: Any = build(entry.load(), {**entry.defaults, "hidden": (8, 8, 8), "batch_size": 16, **options}, name)
    agent = config.build(stream, 0, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    shape = (16, *stream.observation_shape)
    action = (
        torch.randint(stream.num_actions, (16,), generator=generator)
        if stream.num_actions
        else torch.rand(16, len(stream.action_low), generator=generator) * 2 - 1
    )
    columns = {
        "observation": torch.randn(shape, generator=generator),
        "next_observation": torch.randn(shape, generator=generator),
        "action": action,
        "reward": torch.randn(16, generator=generator),
        "discount": torch.full((16,), 0.9),
    }
    return agent, TensorDict(columns, batch_size=[16])


def rl_network(name: str, role: str = "critic", **options: Any) -> tuple[Network, TensorDictBase]:
    """Create the network with a role, after one optimizer step, and a prepared batch of 16 transitions."""
    agent, batch = rl_agent_and_batch(name, **options)
    agent.update(batch.clone())
    return agent.networks[role], agent.add_targets(batch)


def tiny_rl(
    intervention: str = "none",
    env: str = "rl-cartpole",
    agent: str = "dqn-mlp",
    *,
    env_options: dict[str, Any] | None = None,
    agent_options: dict[str, Any] | None = None,
    **options: Any,
) -> RunSpec:
    """A spec of an RL run that takes about a second."""
    if (agent_options or {}).get("prioritized"):
        need_priorities()
    return RunSpec.make(
        env,
        agent,
        intervention,
        env_options={**QUICK, **(env_options or {})},
        agent_options={**SMALL, **(agent_options or {})},
        device="cpu",
        representative=options.pop("representative", 64),
        **options,
    )


def need_priorities() -> None:
    """Skip the test if torchrl's compiled extension cannot be loaded."""
    try:
        ReplayBuffer(
            BufferSpec(1, 1, ((1,), torch.float32), torch.int32),
            1,
            torch.device("cpu"),
            torch.Generator(),
            priority=(1, 1),
        )
    except UserError as error:
        pytest.skip(str(error))
