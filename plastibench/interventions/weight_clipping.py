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
from plastibench.nn.parameters import trainable_layers


@register_intervention("weight-clipping")
@dataclass
class WeightClipping(Intervention):
    """Clamp the weights to a multiple of their initialization bound after every update (Elsayed et al. 2024).

    Weights and biases of every Linear and Conv2d are clamped to ±κ·b. ``bound`` defines b:

    - ``fan-in``: 1/√fan_in, the bound of PyTorch's default initialization (mohmdelsayed/weight-clipping).
    - ``initial``: the largest initial magnitude among the weights and biases of the module. Use it for networks with
      another initialization, such as timm's (standard deviation 0.02), whose weights rarely reach 1/√fan_in.

    The authors' optimizers have the default κ = 1 (named ``zeta`` there), and their experiments search 1 to 5. Here it
    is 2, because κ = 1 clips a part of the initial weights of networks whose initialization is wider than PyTorch's.

    A bias has the same bound as the weight of its module. In the authors' code a bias has the bound of the preceding
    weight in the parameter list, which may belong to another module; the scale of a LayerNorm counts as a bias there
    and would be clamped far below 1. Normalization layers, class tokens, position embeddings and other parameters
    outside Linear and Conv2d are not clamped. The optimizer state is kept.

    ``intervene`` changes nothing. It reports the fraction of entries that are at their bound.
    """

    kind = "optimizer"

    kappa: float = option(2.0, "bound κ, as a multiple of the initialization bound b (authors: 1 to 5)", low=0)
    bound: Literal["fan-in", "initial"] = option("fan-in", "initialization bound b")
    output: bool = option(
        True, "also clamp the output layers: those named by the network, or else the last registered layer"
    )

    def __post_init__(self) -> None:
        self._largest: dict[str, float] = {}

    def prepare(self, network: Network) -> None:
        """Store the largest initial magnitudes if they define the bound."""
        self._bounded(network)

    @torch.no_grad()
    def after_update(self, network: Network) -> None:
        """Clamp the parameters in place."""
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
        """Report the fraction of clamped entries by module."""
        report = Report()
        for name, fraction in self.clipped(network).items():
            report.note(name, clipped=float(fraction))
        return report

    @torch.no_grad()
    def clipped(self, network: Network) -> dict[str, Tensor]:
        """Return the fraction of entries at their bound by module name, without synchronizing with the device."""
        return {
            name: torch.cat([_on_bound(p, bound) for p in layer.parameters(recurse=False)]).float().mean()
            for name, (layer, bound) in self._bounded(network).items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the largest initial magnitudes by module."""
        return {"largest": dict(self._largest)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the largest initial magnitudes."""
        self._largest = dict(state["largest"])

    def _bounded(self, network: Network) -> dict[str, tuple[nn.Linear | nn.Conv2d, float]]:
        """Return each clamped module with its bound. New modules, e.g. after a rebuild, are measured first."""
        found = trainable_layers(network, output=self.output)
        if self.bound == "fan-in":
            return {name: (layer, self.kappa * layer.weight[0].numel() ** -0.5) for name, layer in found.items()}
        for name in found.keys() - self._largest.keys():
            self._largest[name] = max(float(p.detach().abs().max()) for p in found[name].parameters(recurse=False))
        return {name: (layer, self.kappa * self._largest[name]) for name, layer in found.items()}


def _on_bound(parameter: Tensor, bound: float) -> Tensor:
    limit = torch.full((), bound, dtype=parameter.dtype, device=parameter.device)  # same rounding as the clamp
    return (parameter.abs() >= limit).flatten()
