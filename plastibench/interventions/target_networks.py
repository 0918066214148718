"""Update target networks when an intervention changes the networks that they track."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from tensordict import TensorDictBase

from plastibench.interventions.base import Intervention
from plastibench.nn.network import Network

Policy = Literal["keep", "copy", "same"]


class TargetNetworks:
    """Applies the agent's target policy after every intervention.

    ``keep`` leaves the targets unchanged, ``copy`` copies the network's weights, and ``same`` applies
    a separate instance of the intervention to the targets, with its own random draws.
    """

    def __init__(
        self,
        networks: Mapping[str, Network],
        targets: Mapping[str, Network],
        policy: Policy,
        make_intervention: Callable[[], Intervention],
    ) -> None:
        """Prepare the targets' own interventions, if the policy needs them.

        Args:
            networks: The networks that the intervention modifies, by role.
            targets: Target networks, by the role of the network they follow; those of other networks are ignored.
            policy: What happens to the targets.
            make_intervention: Creates an intervention; each instance serves one network.
        """
        self.policy, self.networks = policy, networks
        self.targets = {role: target for role, target in targets.items() if role in networks}
        self.interventions: dict[str, Intervention] = {}
        if policy == "same":
            self.interventions = {role: make_intervention() for role in self.targets}
            for role, intervention in self.interventions.items():
                with self._trainable(role):  # methods skip frozen parameters
                    intervention.prepare(self.targets[role])

    def after_intervention(self, representative: Callable[[], TensorDictBase]) -> None:
        """Apply the policy to the targets of all modified networks.

        Args:
            representative: Draws the batch that the targets' interventions see.
        """
        for role, target in self.targets.items():
            if self.policy == "copy":
                target.module.load_state_dict(self.networks[role].module.state_dict())
            elif self.policy == "same":
                with self._trainable(role):
                    self.interventions[role].intervene(target, representative())

    @contextlib.contextmanager
    def _trainable(self, role: str) -> Iterator[None]:
        """Temporarily give the target's parameters the same ``requires_grad`` as those of its network."""
        target, network = self.targets[role].module, self.networks[role].module
        for parameter, own in zip(target.parameters(), network.parameters(), strict=True):
            parameter.requires_grad_(own.requires_grad)
        try:
            yield
        finally:
            target.requires_grad_(False)

    def state_dict(self) -> dict[str, Any]:
        """State for an exact resume."""
        return {role: intervention.state_dict() for role, intervention in self.interventions.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from :meth:`state_dict`."""
        for role, intervention in self.interventions.items():
            intervention.load_state_dict(state[role])
