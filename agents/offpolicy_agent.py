"""What off-policy agents share: their options, their target networks, and how figures of training are averaged."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.agents.encoders import Encoder
from plastibench.agents.images import random_shift
from plastibench.config.errors import UserError
from plastibench.config.options import option
from plastibench.nn.network import Loss, Network, seeded
from plastibench.utils.seeding import derive, generator

if TYPE_CHECKING:
    from plastibench.envs.rl_env import RLEnvironment


@dataclass(frozen=True)
class OffPolicyConfig(Encoder):
    """Options that DQN and SAC share."""

    kind = "rl"

    lr: float = option(1e-3, "learning rate of Adam", low=0)
    eps: float = option(1e-8, "epsilon of Adam", low=0)
    batch_size: int = option(128, "transitions per update", low=1)
    gamma: float = option(0.99, "discount per step", low=0, high=1)
    n_step: int = option(1, "rewards summed before the bootstrap", low=1, high=50)
    replay_ratio: float = option(0.25, "updates per step of the agent", low=0)
    learning_starts: int = option(1_000, "steps of random actions before the first update", low=0)
    buffer_size: int = option(100_000, "transitions remembered", low=1)
    storage: Literal["device", "memmap"] = option("device", "where they are kept: beside the networks, or in files")
    prioritized: bool = option(False, "sample by TD error (Schaul et al. 2016)")
    priority_alpha: float = option(0.5, "exponent of the priorities", low=0)
    priority_beta: float = option(0.5, "exponent of the importance weights", low=0)
    tau: float = option(1.0, "share of the network that each target update takes over; 1: copy", low=0, high=1)
    target_every: int = option(500, "updates between target updates", low=1)
    target_policy: Literal["keep", "copy", "same"] = option(
        "keep",
        "target after an intervention: left, copied from the network, or intervened on too, by draws of its own",
    )
    clip: float = option(10.0, "largest gradient norm; 0: no clipping", low=0)
    clip_rewards: bool = option(False, "learn from the signs of rewards, as usual on Atari")
    random_shift: int = option(0, "pixels of random shift of images (DrQ, Kostrikov et al. 2021); 0: none", low=0)
    precision: Literal["float32", "tf32", "bfloat16"] = option("float32", "arithmetic of matrix products")
    compile: Literal["no", "default", "reduce-overhead"] = option("no", "torch.compile mode of the networks")

    def check(self, env: Any) -> RLEnvironment:
        """The env, if it is one to act in.

        Raises:
            UserError: It is a supervised task stream.
        """
        from plastibench.envs.rl_env import RLEnvironment

        if not isinstance(env, RLEnvironment):
            raise UserError(
                "agent: dqn-* and sac-* act in rl-* environments; this env is a supervised stream (mlp, vit-tiny, …)"
            )
        return env


class OffPolicyAgent:
    """Networks that learn from remembered transitions. A subclass says what they are and how they learn.

    Attributes:
        networks: What interventions work on, by role.
        targets: Frozen copies that bootstrap, by the role of the network that they follow.
        batch_size: Transitions per update.
        label: Precision of the arithmetic, for the result.
        config: The options.
        entropic: Whether the critic counts the entropy of a policy that draws its actions (:meth:`sample`).
    """

    entropic = False

    def __init__(self, config: OffPolicyConfig, stream: RLEnvironment, seed: int, device: torch.device) -> None:
        self.config, self.device = config, device
        self.batch_size = config.batch_size
        self.label = config.precision
        self.shape, self.bytes = stream.observation_shape, stream.frame_dtype == np.uint8
        if config.random_shift and len(self.shape) != 3:
            raise UserError(f"random-shift moves images, which {stream.config.id} does not show")
        self.networks: dict[str, Network] = {}
        self.targets: dict[str, Network] = {}
        self._forward: dict[str, Callable[..., Tensor]] = {}  # modules, compiled if wanted, by role
        self._seed = seed
        self._noise = generator(seed, "noise", device)
        self._updates = 0
        self._sums: dict[str, Tensor] = {}
        self._summed = 0

    # For subclasses ----------------------------------------------------------------------------------------------

    def _add(
        self, role: str, build: Callable[[], nn.Module], loss: Loss, outputs: Sequence[str], *, target: bool
    ) -> Network:
        """Build a network with its optimizer, and its target where it has one."""
        with seeded(derive(self._seed, f"init-{role}")):
            module = build().to(self.device)
        optimizer = torch.optim.Adam(module.parameters(), lr=self.config.lr, eps=self.config.eps, fused=True)
        own = generator(self._seed, f"intervention-{role}")
        clip = self.config.clip
        network = Network(module, optimizer, loss, fresh=build, role=role, outputs=outputs, clip=clip, generator=own)
        self.networks[role] = network
        self._forward[role] = self._compiled(module)
        if target:
            frozen = copy.deepcopy(module).requires_grad_(False)
            own = generator(self._seed, f"intervention-{role}-target")
            self.targets[role] = Network(
                frozen, None, loss, fresh=build, role=f"{role}-target", outputs=outputs, generator=own
            )
            network.add_replica(self.targets[role])
            self._forward[f"{role}-target"] = self._compiled(frozen)
        return network

    def _compiled(self, module: nn.Module) -> Callable[..., Tensor]:
        mode = self.config.compile
        return module if mode == "no" else torch.compile(module, mode=None if mode == "default" else mode)

    @torch.no_grad()
    def _update_targets(self) -> None:
        """Count an update and move the target networks when it is time; a subclass calls this at its end of update."""
        self._updates += 1
        if self._updates % self.config.target_every:
            return
        for role, target in self.targets.items():
            network = self.networks[role].module
            torch._foreach_lerp_(list(target.module.parameters()), list(network.parameters()), self.config.tau)
            for old, new in zip(target.module.buffers(), network.buffers(), strict=True):
                old.copy_(new)

    def _note(self, **figures: Tensor) -> None:
        """Add to the averages, without waiting for the device."""
        for name, value in figures.items():
            if name in self._sums:
                self._sums[name] += value.detach()
            else:
                self._sums[name] = value.detach().clone()
        self._summed += 1

    def _shifted(self, batch: TensorDictBase) -> TensorDictBase:
        if not self.config.random_shift:
            return batch
        for name in ("observation", "next_observation"):
            batch[name] = random_shift(batch[name], self.config.random_shift, self._noise)
        return batch

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.config.precision != "bfloat16":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    # For the run -------------------------------------------------------------------------------------------------

    def act(self, observation: Tensor, greedy: bool, modules: dict[str, nn.Module] | None = None) -> Tensor:
        """Actions for a batch of observations. [B] or [B, action].

        Args:
            observation: [B, ...]
            greedy: The best known action, instead of one that explores.
            modules: What acts instead of the networks themselves (slow copies), by role.
        """
        raise NotImplementedError

    def sample(
        self, observation: Tensor, draws: torch.Generator, modules: dict[str, nn.Module] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Actions drawn from the policy, and what their entropy adds to the value, -α log π(a|s). [B, ...] and [B].

        Args:
            observation: [B, ...]
            draws: On the agent's device.
            modules: As for :meth:`act`.
        """
        raise NotImplementedError

    def update(self, batch: TensorDictBase) -> None:
        """One update of every network on a sampled batch; writes ``td_error`` [B] into one that has weights."""
        raise NotImplementedError

    def add_targets(self, batch: TensorDictBase, noise: torch.Generator | None = None) -> TensorDictBase:
        """The batch with all that the networks' losses need: ``target`` values, and noise of actions.

        Args:
            batch: Transitions; changed in place.
            noise: Draws the noise, so that a look at the networks leaves that of training alone.
        """
        raise NotImplementedError

    def value(self, observation: Tensor, action: Tensor, modules: dict[str, nn.Module] | None = None) -> Tensor:
        """What the critic expects of actions. [B]; ``modules`` as for :meth:`act`."""
        raise NotImplementedError

    def transform_reward(self, reward: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What is learned from: the rewards, or their signs."""
        return np.sign(reward) if self.config.clip_rewards else reward

    def set_progress(self, share: float) -> None:
        """Be told how much of the run is over, between 0 and 1."""

    def pop_averages(self) -> dict[str, float]:
        """Means of the figures of training since the last call; waits for the device once."""
        if not self._summed:
            return {}
        values = (torch.stack(list(self._sums.values())) / self._summed).tolist()
        names = list(self._sums)
        self._sums, self._summed = {}, 0
        return dict(zip(names, values, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """All that an exact resume needs."""
        return {
            "networks": {role: _state(network) for role, network in self.networks.items()},
            "targets": {role: _state(target) for role, target in self.targets.items()},
            "noise": self._noise.get_state(),
            "updates": [self._updates, self._summed],
            "sums": self._sums,
        }

    def extra_state(self) -> dict[str, Any]:
        """What the losses of the finished networks need beside them."""
        return {"targets": {role: target.module.state_dict() for role, target in self.targets.items()}}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`extra_state` returned."""
        for role, target in self.targets.items():
            target.module.load_state_dict(state["targets"][role])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        for role, network in self.networks.items():
            _load(network, state["networks"][role])
        for role, target in self.targets.items():
            _load(target, state["targets"][role])
        self._noise.set_state(state["noise"].cpu())
        self._updates, self._summed = state["updates"]
        self._sums = {name: value.to(self.device) for name, value in state["sums"].items()}


def _state(network: Network) -> dict[str, Any]:
    optimizer = network.optimizer.state_dict() if network.optimizer is not None else {}
    return {"module": network.module.state_dict(), "optimizer": optimizer, "generator": network.generator.get_state()}


def _load(network: Network, state: dict[str, Any]) -> None:
    network.module.load_state_dict(state["module"])
    if network.optimizer is not None:
        network.optimizer.load_state_dict(state["optimizer"])
    network.generator.set_state(state["generator"].cpu())
