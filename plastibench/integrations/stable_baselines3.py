"""Interventions in the algorithms of Stable-Baselines3."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from plastibench.config.errors import UserError, did_you_mean
from plastibench.integrations.sb3_networks import draw_batch, networks_of
from plastibench.interventions.attach import Attached, attach, create
from plastibench.interventions.base import Intervention, Report, overrides
from plastibench.interventions.target_networks import Policy, TargetNetworks
from plastibench.metrics.plasticity import plasticity_report
from plastibench.nn.network import Network
from plastibench.utils import atomic_io
from plastibench.utils.seeding import generator
from plastibench.utils.wording import plural


class PlasticityCallback(BaseCallback):
    """Callback for Stable-Baselines3 that applies an intervention during ``learn()``.

    Example: ``model.learn(100_000, callback=PlasticityCallback("rnr", every=10_000, roles=["critic"]))``.

    The callback supports DQN, SAC, TD3, DDPG, PPO and A2C. It intervenes at the end of a rollout, before the updates
    that follow. The batch for an intervention consists of transitions from the replay buffer or the rollout. The
    callback does not change the random numbers that training draws.

    - A penalty is computed on a separate batch. Its gradient is added right before the optimizer step, so the
      algorithm's gradient clipping does not apply to it.
    - To continue training later, save both parts: ``model.save(path)`` and ``callback.save(path)``. To continue, create
      the callback with the same arguments and call ``callback.load(path, model)`` on the loaded model. If the method
      changes the architecture (such as ``plasticity-injection``), ``DQN.load(path)`` cannot create it. Then create a
      new model, call ``callback.load(callback_path, model)``, and ``model.set_parameters(model_path)``.
    - The algorithm acts with the weights that it trains. If a method keeps an averaged copy
      (``callback.attached["critic"].evaluated``), evaluate it yourself.

    Attributes:
        attached: The attached interventions, by role; empty before training starts.
    """

    def __init__(
        self,
        intervention: str | Intervention,
        *,
        every: int = 0,
        timesteps: Sequence[int] = (),
        roles: Sequence[str] | None = None,
        size: int = 512,
        target_policy: Policy = "keep",
        metrics: bool = True,
        options: Mapping[str, Any] | None = None,
        seed: int = 0,
        verbose: int = 0,
    ) -> None:
        """Configure the intervention and its schedule.

        Args:
            intervention: A registered name, or an instance; each network gets a copy of it.
            every: Intervene once for every ``every`` timesteps; 0: never.
            timesteps: Intervene when these numbers of timesteps are reached.
            roles: Networks to modify: ``critic``, ``actor`` or ``policy`` (default: all that the algorithm has).
            size: Number of transitions in the batch for an intervention.
            target_policy: What happens to target networks: ``keep`` leaves them, ``copy`` copies the new weights,
                ``same`` applies a separate instance of the intervention.
            metrics: Record plasticity metrics before each intervention, as ``plasticity/ROLE/METRIC``.
            options: Options of a named intervention.
            seed: Seed of all randomness of the intervention.
            verbose: 1 prints a line for each intervention.
        """
        super().__init__(verbose)
        if every < 0:
            raise UserError(f"PlasticityCallback: every is {every}; it must be at least 0")
        if target_policy not in ("keep", "copy", "same"):
            raise UserError(f"PlasticityCallback: target_policy is {target_policy!r}; choose keep, copy or same")
        self.intervention, self.options = intervention, dict(options or {})
        self.every, self.timesteps, self.roles = every, sorted(timesteps), roles
        self.size, self.target_policy, self.metrics = size, target_policy, metrics
        self.attached: dict[str, Attached] = {}
        self._generator = generator(seed, "intervention")
        self._targets: TargetNetworks | None = None
        self._seen = 0  # timesteps up to which scheduled interventions are done
        self._attached_to: BaseAlgorithm | None = None

    def attach(self, model: BaseAlgorithm) -> None:
        """Prepare the networks of a model. ``learn`` calls this; call it yourself to load a changed architecture.

        Raises:
            UserError: The algorithm is not supported, it has no network with a given role, or the method does not fit.
        """
        networks, targets = networks_of(model, self._generator)
        for role in self.roles or ():
            if role not in networks:
                hint = did_you_mean(role, networks)
                raise UserError(
                    f"PlasticityCallback: {type(model).__name__} has no network '{role}'{hint} "
                    f"(it has: {', '.join(networks)})"
                )
        chosen = {role: network for role, network in networks.items() if self.roles is None or role in self.roles}
        for attached in self.attached.values():
            attached.detach()
        self._attached_to, self.attached = model, {}
        for role, network in chosen.items():
            method = self._new()
            if overrides(method, "penalty"):
                self._add_penalty(role, network)  # before attach: its hook must see the complete gradient
            self.attached[role] = attach(method, network)
        self._targets = TargetNetworks(chosen, targets, self.target_policy, self._new)

    def intervene(self) -> dict[str, Report]:
        """Intervene now on all chosen networks; return what was done, by role."""
        batch = self._draw(self.size)
        for role, attached in self.attached.items():
            if self.metrics:
                for name, value in plasticity_report(attached.network, batch).overall.items():
                    self.logger.record(f"plasticity/{role}/{name}", value)
            report = attached.intervene(batch, expect_steps=False)
            self.logger.record(f"intervention/{role}/revived_fraction", report.revived_fraction)
            self.logger.record(f"intervention/{role}/parameters", report.parameters)
            self.logger.record(f"intervention/{role}/seconds", report.seconds)
            if self.verbose:
                print(
                    f"timestep {self.num_timesteps:,}: {role}: {plural(report.parameters, 'parameter')} changed, "
                    f"{report.revived_fraction:.0%} of units reinitialized"
                )
        assert self._targets is not None
        self._targets.after_intervention(lambda: self._draw(self.size))
        return {role: attached.report for role, attached in self.attached.items() if attached.report is not None}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the state of the interventions and the schedule; save the model itself with ``model.save``."""
        assert self._targets is not None, "the callback is not attached to a model"
        state = {
            "attached": {role: attached.state_dict() for role, attached in self.attached.items()},
            "targets": self._targets.state_dict(),
            "generator": self._generator.get_state(),
            "seen": self._seen,
        }
        with atomic_io.atomic(Path(path)) as file:
            torch.save(state, file)

    def load(self, path: str | os.PathLike[str], model: BaseAlgorithm) -> None:
        """Attach to a model and restore the state that :meth:`save` wrote."""
        self.attach(model)
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["attached"].keys() != self.attached.keys():
            raise UserError(
                f"{path} contains the state of the networks {', '.join(state['attached'])}; pass the same roles"
            )
        for role, saved in state["attached"].items():
            self.attached[role].load_state_dict(saved)
        assert self._targets is not None
        self._targets.load_state_dict(state["targets"])
        self._generator.set_state(state["generator"])
        self._seen = state["seen"]

    # Called by Stable-Baselines3 ---------------------------------------------------------------------------------

    def _init_callback(self) -> None:
        if self._attached_to is not self.model:
            self.attach(self.model)
            self._seen = self.model.num_timesteps

    def _on_training_start(self) -> None:
        self._seen = min(self._seen, self.model.num_timesteps)  # learn() counts from 0 again by default

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self.num_timesteps <= getattr(self.model, "learning_starts", 0):
            return  # nothing has been learned yet
        now, before, self._seen = self.num_timesteps, self._seen, self.num_timesteps
        if (self.every and now // self.every > before // self.every) or any(
            before < at <= now for at in self.timesteps
        ):
            self.intervene()

    def _new(self) -> Intervention:
        return create(copy.deepcopy(self.intervention), **self.options)

    def _draw(self, size: int) -> Any:
        assert self._attached_to is not None
        return draw_batch(self._attached_to, size, self._generator)

    def _add_penalty(self, role: str, network: Network) -> None:
        def add(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            attached = self.attached.get(role)
            if attached is None or attached.network is not network:  # the callback has moved to another model
                return
            penalty = attached.penalty(self._draw(int(getattr(self.model, "batch_size", self.size))))
            if isinstance(penalty, Tensor) and penalty.requires_grad:
                trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
                penalty.backward(inputs=trained)

        assert network.optimizer is not None
        network.optimizer.register_step_pre_hook(add)
