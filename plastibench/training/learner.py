"""The learner: an agent with its attached interventions, independent of environments and files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.config.errors import DivergedError, RunError
from plastibench.interventions.attach import Attached
from plastibench.interventions.base import Intervention, Report, overrides
from plastibench.interventions.class_checks import check_method
from plastibench.interventions.effects import Effects
from plastibench.nn.agreement import check_equal
from plastibench.nn.network import Network


class Agent(Protocol):
    """The interface that a learner needs from an agent."""

    networks: dict[str, Network]

    def update(self, batch: TensorDictBase) -> None:
        """Update every network on a batch, through :meth:`Network.update`."""

    def pop_averages(self) -> dict[str, float]:
        """Means of the training metrics since the last call."""

    def state_dict(self) -> dict[str, Any]:
        """State for an exact resume."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from :meth:`state_dict`."""

    def extra_state(self) -> dict[str, Any]:
        """What the losses of the trained networks need besides their weights."""


class Learner:
    """Updates an agent, and applies interventions to its networks according to a schedule.

    It does not know where batches come from or where metrics go: a trainer passes in batches and receives reports.

    Attributes:
        agent: The agent.
        attached: The intervention of each network, by role; networks outside ``roles`` have one that does nothing.
        updates: Updates since the start.
        initial: Parameters of each network before training, by role. For a parameter that a method adds later, its
            value when it was added.
        intervention_seconds: Wall-clock time spent in interventions so far.
        intervention_cpu_seconds: CPU time spent in them; None if a checkpoint of an older version lacks it.
        intervention_gpu_seconds: GPU time spent in them; None without a GPU.
    """

    def __init__(
        self,
        agent: Agent,
        make_intervention: Callable[[], Intervention] = Intervention,
        *,
        roles: Sequence[str] | None = None,
        every: int = 0,
        until: int | None = None,
    ) -> None:
        """Attach an intervention to every network of the agent.

        Args:
            agent: The agent.
            make_intervention: Creates an intervention; each instance serves one network.
            roles: Roles of the networks to modify; None for all.
            every: Intervene every N updates; 0: at task boundaries.
            until: No intervention after this many updates; None for no limit.
        """
        self.agent = agent
        self.make_intervention = make_intervention
        self.roles, self.every, self.until = roles, every, until
        methods = {role: make_intervention() if self.modifies(role) else Intervention() for role in agent.networks}
        self.attached: dict[str, Attached] = {}
        for role, network in agent.networks.items():
            check_method(methods[role])
            effects = Effects(methods[role])
            effects.prepare(methods[role], network)
            self.attached[role] = Attached(methods[role], network)
            self.attached[role].effects = effects
        self.initial = {role: _parameters(network.module) for role, network in agent.networks.items()}
        self.updates = 0
        self.intervention_seconds = 0.0
        self.intervention_cpu_seconds: float | None = 0.0
        self.intervention_gpu_seconds: float | None = None

    @property
    def networks(self) -> dict[str, Network]:
        """The agent's networks, by role."""
        return self.agent.networks

    def modifies(self, role: str) -> bool:
        """Whether interventions act on the network with this role."""
        return self.roles is None or role in self.roles

    @property
    def modified_networks(self) -> dict[str, Network]:
        """The networks that interventions act on, by role."""
        return {role: network for role, network in self.networks.items() if self.modifies(role)}

    @property
    def acts(self) -> bool:
        """Whether a scheduled intervention can change a network; most regularizers, for example, never do."""
        return any(overrides(attached.intervention, "intervene") for attached in self.attached.values())

    def learn(self, batch: TensorDictBase) -> None:
        """Update the agent once, without a device sync."""
        self.agent.update(batch)
        self.updates += 1

    def due(self) -> bool:
        """Whether the schedule asks for an intervention after the latest update."""
        return bool(self.every) and self.updates % self.every == 0 and self._within_limit()

    def due_at_boundary(self) -> bool:
        """Whether the schedule asks for an intervention at a task boundary."""
        return not self.every and self._within_limit()

    def intervene(self, batch: TensorDictBase) -> dict[str, Report]:
        """Let the interventions act on their networks.

        Args:
            batch: A representative batch with everything that the networks' losses need; the same in all processes.

        Returns:
            What was done, by role.

        Raises:
            RunError: The weights have diverged, so that a method cannot solve its equations.
        """
        reports: dict[str, Report] = {}
        for role, attached in self.attached.items():
            if not self.modifies(role):
                continue
            try:
                reports[role] = attached.intervene(batch, expect_steps=False, gather=False)
            except DivergedError as error:
                loss = self.agent.pop_averages().get("loss", math.nan)
                raise RunError(
                    f"the intervention on the {role} failed after update {self.updates} ({error.__cause__}; "
                    f"loss {loss}); try a smaller --agent.lr"
                ) from error
            for name, parameter in attached.network.module.named_parameters():
                if name not in self.initial[role]:
                    self.initial[role][name] = parameter.detach().clone()
        for role, report in reports.items():
            if not overrides(self.attached[role].intervention, "intervene"):
                continue  # nothing was done, so it has no cost
            self.intervention_seconds += report.seconds
            if self.intervention_cpu_seconds is not None:
                self.intervention_cpu_seconds += report.cpu_seconds
            if report.gpu_seconds is not None:
                self.intervention_gpu_seconds = (self.intervention_gpu_seconds or 0.0) + report.gpu_seconds
        return reports

    def evaluated_modules(self) -> dict[str, nn.Module]:
        """The modules to evaluate, by role: the networks' own, or averaged copies."""
        return {role: attached.evaluated for role, attached in self.attached.items()}

    def pop_averages(self) -> dict[str, float]:
        """Means of the agent's training metrics since the last call.

        Raises:
            RunError: A value is not finite.
        """
        averages = self.agent.pop_averages()
        for name, value in averages.items():
            if not math.isfinite(value):
                raise RunError(f"the {name} became {value} before update {self.updates}; try a smaller --agent.lr")
        return averages

    def check_weights(self) -> None:
        """Check that all parameters are finite. Finite outputs are not enough, because a ReLU can mask NaN parameters.

        Raises:
            RunError: A parameter is not finite, or differs between processes.
        """
        for role, network in self.networks.items():
            parameters = dict(network.module.named_parameters())
            finite = torch.stack([value.detach().isfinite().all() for value in parameters.values()]).tolist()
            if not all(finite):
                name = list(parameters)[finite.index(False)]
                raise RunError(
                    f"the weights of the {role} are not finite after update {self.updates} (first: {name}); try a "
                    "smaller --agent.lr"
                )
            check_equal(network)

    def complaints(self) -> list[str]:
        """Return warnings about methods that have had no effect so far."""
        found = [attached.effects.complaint(role) for role, attached in self.attached.items() if attached.effects]
        return [complaint for complaint in found if complaint]

    def intervention_states(self) -> list[dict[str, Any]]:
        """The state of every intervention, which may determine the architecture of its network."""
        return [attached.intervention.state_dict() for attached in self.attached.values()]

    def state_dict(self) -> dict[str, Any]:
        """State for an exact resume."""
        return {
            "updates": self.updates,
            "interventions": self.intervention_states(),
            "agent": self.agent.state_dict(),
            "initial": self.initial,
            "intervention-seconds": self.intervention_seconds,
            "intervention-cpu-seconds": self.intervention_cpu_seconds,
            "intervention-gpu-seconds": self.intervention_gpu_seconds,
            "effects": [each.effects.state_dict() for each in self.attached.values() if each.effects],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from :meth:`state_dict`."""
        self.updates, self.intervention_seconds = state["updates"], state["intervention-seconds"]
        self.intervention_cpu_seconds = state.get("intervention-cpu-seconds")
        self.intervention_gpu_seconds = state.get("intervention-gpu-seconds")
        for attached, saved in zip(self.attached.values(), state["interventions"], strict=True):
            attached.intervention.load_state_dict(saved)  # before the weights: it may rebuild the module
            attached.steps = self.updates
        watched = [attached.effects for attached in self.attached.values() if attached.effects]
        for effects, seen in zip(watched, state.get("effects", ()), strict=False):  # older checkpoints have none
            effects.load_state_dict(seen)
        self.agent.load_state_dict(state["agent"])
        for role, values in state["initial"].items():
            device = self.networks[role].device
            self.initial[role] = {name: value.to(device) for name, value in values.items()}

    def _within_limit(self) -> bool:
        return self.until is None or self.updates <= self.until


def _parameters(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
