"""Base class and shared options of off-policy RL agents."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.agents.encoders import Encoder
from plastibench.agents.images import random_shift
from plastibench.agents.optimizers import OptimizerOptions, grouping, make_optimizer
from plastibench.config.errors import UserError
from plastibench.config.options import option
from plastibench.envs.rl_env import RLEnvironment
from plastibench.nn.network import Loss, Network, seeded
from plastibench.utils.seeding import derive, generator


@dataclass(frozen=True)
class OffPolicyConfig(OptimizerOptions, Encoder):
    """Options shared by DQN and SAC."""

    kind = "rl"
    version = 1  # see ClassifierOptions.version

    lr: float = option(1e-3, "learning rate", low=0)
    eps: float = option(1e-8, "epsilon of Adam and its variants", low=0)
    weight_decay: float | None = option(None, "weight decay (default: 0)", low=0)
    restart_optimizer: bool | None = option(
        None, "create new optimizers for every task, instead of keeping their state (default: false)"
    )
    batch_size: int = option(128, "transitions per update", low=1, high=1_000_000)
    gamma: float = option(0.99, "discount per step", low=0, high=1)
    n_step: int = option(1, "number of rewards summed before bootstrapping", low=1, high=50)
    replay_ratio: float = option(0.25, "updates per agent step", low=0)
    learning_starts: int = option(1_000, "steps with random actions before the first update", low=0)
    buffer_size: int = option(100_000, "capacity of the replay buffer in transitions", low=1, high=1_000_000_000)
    storage: Literal["device", "memmap"] = option(
        "device", "where the replay buffer lives: on the agent's device, or in memory-mapped files"
    )
    prioritized: bool = option(False, "prioritized replay by TD error (Schaul et al. 2016)")
    priority_alpha: float = option(0.5, "exponent of the priorities", low=0)
    priority_beta: float = option(0.5, "exponent of the importance weights", low=0)
    tau: float = option(1.0, "interpolation factor of target updates; 1: copy the network", low=0, high=1)
    target_every: int = option(500, "updates between target updates", low=1)
    target_policy: Literal["keep", "copy", "same"] = option(
        "keep",
        "target network after an intervention: keep it, copy the network, or apply the same intervention to it",
    )
    clip: float = option(10.0, "maximum gradient norm; 0: no clipping", low=0)
    clip_rewards: bool = option(False, "replace rewards with their signs, as usual for Atari")
    random_shift: int = option(
        0, "shift images randomly by up to this many pixels (DrQ, Kostrikov et al. 2021); 0: off", low=0
    )
    precision: Literal["float32", "tf32", "bfloat16"] = option("float32", "precision of matrix products")
    compile: Literal["no", "default", "reduce-overhead"] = option("no", "torch.compile mode")

    def check(self, env: Any) -> RLEnvironment:
        """Return the env after checking that it is an RL environment.

        Raises:
            UserError: The env is a task stream.
        """
        if not isinstance(env, RLEnvironment):
            raise UserError(
                "agent: dqn-* and sac-* need an RL environment (rl-*); for task streams use mlp, vit-tiny, …"
            )
        return env


class OffPolicyAgent:
    """An agent that learns from replayed transitions. A subclass defines its networks and its update.

    Attributes:
        config: The options.
        networks: The trained networks, by role.
        targets: Frozen target networks, by the role of the network they follow.
        batch_size: Transitions per update.
        entropic: Whether the critic's values include the entropy of a stochastic policy (:meth:`sample`).
    """

    entropic = False

    def __init__(self, config: OffPolicyConfig, env: RLEnvironment, seed: int, device: torch.device) -> None:
        self.config, self.device = config, device
        self.batch_size = config.batch_size
        self.shape, self.uint8 = env.observation_shape, env.frame_dtype == np.uint8
        if config.random_shift and len(self.shape) != 3:
            raise UserError(
                f"agent: random-shift needs images, but observations of {env.config.id} have shape {self.shape}"
            )
        self.networks: dict[str, Network] = {}
        self.targets: dict[str, Network] = {}
        self._extra: dict[str, Sequence[Tensor]] = {}  # tensors outside the module that an optimizer updates, by role
        self._forward: dict[str, Callable[..., Tensor]] = {}  # modules by role, compiled if the config says so
        self._seed = seed
        self._noise = generator(seed, "noise", device)
        self._updates = 0
        self._sums: dict[str, Tensor] = {}
        self._summed = 0

    # For subclasses ----------------------------------------------------------------------------------------------

    def _add(
        self,
        role: str,
        build: Callable[[], nn.Module],
        loss: Loss,
        outputs: Sequence[str],
        *,
        target: bool,
        extra: Sequence[Tensor] = (),
    ) -> Network:
        """Add a network with its optimizer, which also updates ``extra`` tensors, and optionally its target network."""
        with seeded(derive(self._seed, f"init-{role}")):
            module = build().to(self.device)
        self._extra[role] = extra
        network = Network(
            module,
            self._new_optimizer(role, module),
            loss,
            fresh=build,
            role=role,
            outputs=outputs,
            clip=self.config.clip,
            generator=generator(self._seed, f"intervention-{role}"),
            grouping=grouping(self.config),
        )
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

    def _new_optimizer(self, role: str, module: nn.Module) -> torch.optim.Optimizer:
        config = self.config
        decay = config.weight_decay or 0.0
        return make_optimizer(
            config, module, "adam", lr=config.lr, weight_decay=decay, eps=config.eps, extra=self._extra[role]
        )

    def _compiled(self, module: nn.Module) -> Callable[..., Tensor]:
        mode = self.config.compile
        return module if mode == "no" else torch.compile(module, mode=None if mode == "default" else mode)

    @torch.no_grad()
    def _update_targets(self) -> None:
        """Count an update, and update the target networks if it is time. Call this at the end of :meth:`update`."""
        self._updates += 1
        if self._updates % self.config.target_every:
            return
        for role, target in self.targets.items():
            network = self.networks[role].module
            torch._foreach_lerp_(list(target.module.parameters()), list(network.parameters()), self.config.tau)
            for old, new in zip(target.module.buffers(), network.buffers(), strict=True):
                old.copy_(new)

    def _add_to_averages(self, **metrics: Tensor) -> None:
        """Add training metrics to the running averages, without a device sync."""
        for name, value in metrics.items():
            if name in self._sums:
                self._sums[name] += value.detach()
            else:
                self._sums[name] = value.detach().clone()
        self._summed += 1

    def _shift_images(self, batch: TensorDictBase) -> TensorDictBase:
        """Apply the random shift to the observations, in place."""
        if not self.config.random_shift:
            return batch
        for name in ("observation", "next_observation"):
            batch[name] = random_shift(batch[name], self.config.random_shift, self._noise)
        return batch

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.config.precision != "bfloat16":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    # For trainers ------------------------------------------------------------------------------------------------

    def act(self, observation: Tensor, greedy: bool, modules: dict[str, nn.Module] | None = None) -> Tensor:
        """Choose actions for a batch of observations. [B] or [B, A].

        Args:
            observation: A batch of observations. [B, ...]
            greedy: Choose the best known actions instead of exploring.
            modules: Modules to use instead of the trained ones, such as averaged copies, by role.
        """
        raise NotImplementedError

    def sample(
        self, observation: Tensor, draws: torch.Generator, modules: dict[str, nn.Module] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Sample actions from the policy, and return them with their entropy bonus, -α log π(a|s). [B, ...] and [B].

        Args:
            observation: A batch of observations. [B, ...]
            draws: A generator on the agent's device.
            modules: See :meth:`act`.
        """
        raise NotImplementedError

    def update(self, batch: TensorDictBase) -> None:
        """Update every network on a batch; if the batch has a ``weight``, write ``td_error`` [B] into it."""
        raise NotImplementedError

    def add_targets(self, batch: TensorDictBase, noise: torch.Generator | None = None) -> TensorDictBase:
        """Add what the networks' losses need: the ``target``, and the noise of sampled actions if there is any.

        Args:
            batch: Transitions; changed in place.
            noise: Draws the noise; by default the training generator, whose state advances.
        """
        raise NotImplementedError

    def value(self, observation: Tensor, action: Tensor, modules: dict[str, nn.Module] | None = None) -> Tensor:
        """The critic's values of actions [B]; for ``modules`` see :meth:`act`."""
        raise NotImplementedError

    def transform_reward(self, reward: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Transform rewards before they are stored: unchanged, or their signs."""
        return np.sign(reward) if self.config.clip_rewards else reward

    def begin_task(self) -> None:
        """Start a new task: create new optimizers if the options require it."""
        if self.config.restart_optimizer:
            for role, network in self.networks.items():
                network.optimizer = self._new_optimizer(role, network.module)

    def set_progress(self, progress: float) -> None:
        """Set the training progress in [0, 1]."""

    def pop_averages(self) -> dict[str, float]:
        """Means of the training metrics since the last call; synchronizes with the device once."""
        if not self._summed:
            return {}
        values = (torch.stack(list(self._sums.values())) / self._summed).tolist()
        names = list(self._sums)
        self._sums, self._summed = {}, 0
        return dict(zip(names, values, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """State for an exact resume."""
        return {
            "networks": {role: _state(network) for role, network in self.networks.items()},
            "targets": {role: _state(target) for role, target in self.targets.items()},
            "noise": self._noise.get_state(),
            "updates": [self._updates, self._summed],
            "sums": self._sums,
        }

    def extra_state(self) -> dict[str, Any]:
        """State that the training losses need besides the weights."""
        return {"targets": {role: target.module.state_dict() for role, target in self.targets.items()}}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore from :meth:`extra_state`."""
        for role, target in self.targets.items():
            target.module.load_state_dict(state["targets"][role])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from :meth:`state_dict`."""
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
