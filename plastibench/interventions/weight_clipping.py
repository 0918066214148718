"""Weight clipping (Elsayed et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.config.options import option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention, Report
from plastibench.nn.network import Network
from plastibench.nn.parameters import layers


@register_intervention("weight-clipping")
@dataclass
class WeightClipping(Intervention):
    """Clamp weights and biases of every Linear and Conv2d to ±κ·b after every update.

    - ``fan-in``: b = 1/√fan_in, the bound of PyTorch's default initialisation (mohmdelsayed/weight-clipping).
    - ``initial``: b is the largest magnitude among the module's weights and biases at the start. For networks that
      are initialised otherwise, as timm's (standard deviation 0.02), where 1/√fan_in hardly binds.

    A bias has the bound of its own module's weight. In the authors' code it has that of the weight before it in the
    list of parameters, which is another module's where normalisation layers stand between, and a LayerNorm's scale
    counts as a bias and would be clamped far below 1. Normalisation layers, class tokens, position embeddings and
    other parameters that belong to no such module are spared. The optimizer's state stays: it may keep pushing.

    An intervention at a switch changes nothing and reports the share of entries that lie on their bound.
    """

    kind = "optimizer"

    kappa: float = option(2.0, "κ, the bound in units of that of the initialisation (authors: 1 to 5)", low=0)
    bound: Literal["fan-in", "initial"] = option("fan-in", "what κ multiplies")
    output: bool = option(
        True, "also clip the output layers: those that the network names, or the module with units registered last"
    )

    def __post_init__(self) -> None:
        self._largest: dict[str, float] = {}

    def prepare(self, network: Network) -> None:
        """Keep the largest initial magnitudes, where they are the bound."""
        self._bounded(network)

    @torch.no_grad()
    def after_update(self, network: Network) -> None:
        """Clamp, in place."""
        pairs: list[tuple[Tensor, float]] = [
            (parameter, bound)
            for layer, bound in self._bounded(network).values()
            for parameter in layer.parameters(recurse=False)
        ]
        if pairs:
            parameters, bounds = [p for p, _ in pairs], [bound for _, bound in pairs]
            torch._foreach_clamp_min_(parameters, [-bound for bound in bounds])
            torch._foreach_clamp_max_(parameters, bounds)

    def intervene(self, network: Network, batch: TensorDictBase) -> Report:
        """Report what was clipped."""
        report = Report()
        for name, share in self.clipped(network).items():
            report.note(name, clipped=float(share))
        return report

    @torch.no_grad()
    def clipped(self, network: Network) -> dict[str, Tensor]:
        """Share of each module's entries that lie on their bound, by its name; does not wait for the device."""
        return {
            name: torch.cat([_on_bound(p, bound) for p in layer.parameters(recurse=False)]).float().mean()
            for name, (layer, bound) in self._bounded(network).items()
        }

    def state_dict(self) -> dict[str, Any]:
        """The largest initial magnitudes, by module."""
        return {"largest": dict(self._largest)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self._largest = dict(state["largest"])

    def _bounded(self, network: Network) -> dict[str, tuple[nn.Linear | nn.Conv2d, float]]:
        """Each clipped module with its bound; one that is seen for the first time, as after a rebuild, is measured."""
        found = layers(network, output=self.output)
        if self.bound == "fan-in":
            return {name: (layer, self.kappa * layer.weight[0].numel() ** -0.5) for name, layer in found.items()}
        for name in found.keys() - self._largest.keys():
            self._largest[name] = max(float(p.detach().abs().max()) for p in found[name].parameters(recurse=False))
        return {name: (layer, self.kappa * self._largest[name]) for name, layer in found.items()}


def _on_bound(parameter: Tensor, bound: float) -> Tensor:
    limit = torch.full((), bound, dtype=parameter.dtype, device=parameter.device)  # rounded as clamping rounds
    return (parameter.abs() >= limit).flatten()
