"""Small networks of off-policy agents, with batches for their losses."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase

from plastibench.config.options import build
from plastibench.config.registry import agents, envs
from plastibench.nn.network import Network

RL = [("dqn-mlp", "critic"), ("dqn-dueling", "critic"), ("sac-mlp", "critic"), ("sac-mlp", "actor")]


def rl_agent(name: str, **options: Any) -> tuple[Any, TensorDictBase]:
    """Create an agent and a batch of 16 transitions."""
    if name == "dqn-dueling":
        name, options = "dqn-mlp", {**options, "dueling": True}
    entry, env = agents[name], envs["rl-pendulum" if name.startswith("sac") else "rl-cartpole"]
    stream = build(env.load(), dict(env.defaults), "env").make()
    config: Any = build(entry.load(), {**entry.defaults, "hidden": (8, 8, 8), "batch_size": 16, **options}, name)
    learner = config.build(stream, 0, torch.device("cpu"))
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
    return learner, TensorDict(columns, batch_size=[16])


def rl_network(name: str, role: str = "critic", **options: Any) -> tuple[Network, TensorDictBase]:
    """Create the network with a role, after one optimizer step, and a prepared batch of 16 transitions."""
    learner, batch = rl_agent(name, **options)
    learner.update(batch.clone())
    return learner.networks[role], learner.add_targets(batch)
