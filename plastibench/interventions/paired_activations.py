"""Paired activations: CReLU (Abbas et al. 2023) and deep Fourier features (Lewandowski et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from plastibench.config.errors import UserError
from plastibench.config.options import option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention
from plastibench.nn.computed_weights import computed_parameters
from plastibench.nn.network import Network
from plastibench.nn.nonlinearities import CReLU, Fourier
from plastibench.nn.nonlinearity_edits import pair_nonlinearities
from plastibench.nn.nonlinearity_sites import find_sites

_PAIRED = {"crelu": CReLU, "fourier": Fourier}
_NAMES = {"crelu": "crelu", "fourier": "deep-fourier"}


@register_intervention(
    "crelu", "Replace activations with [relu(z), relu(-z)] of half as many units (Abbas et al. 2023)"
)
@register_intervention(
    "deep-fourier",
    "Replace activations with [sin(z), cos(z)] of half as many units (Lewandowski et al. 2024)",
    features="fourier",
)
@dataclass
class PairedActivations(Intervention):
    """Replace each activation with two features per unit, and halve the number of units in the layer before it.

    - ``crelu``: [relu(z), relu(-z)]. A unit is never dead, but one of its two features is always 0.
    - ``fourier``: [sin(z), cos(z)]. One of the two is always close to linear.

    In a ViT the GELU of each MLP is replaced; in a timm ResNet, every ReLU except those after residual additions. The
    halved layer keeps the first half of its initial weights, so an initialization that depends on the fan-out (He
    initialization in ResNets) has the scale of the full
    layer. Metrics and unit-level methods see half as many units; the activation of a
    unit is the mean of its two features.

    Published versions differ in
    width. Lee et al. 2024 (Hare & Tortoise, MLP head) and Chung et al. 2024 halve the layer
    before the activation, as this class does: the next layer keeps its fan-in and initialization, and the network has
    fewer parameters. Plasticine doubles the input of the next layer, so the network grows. The code of L2 Init removes
    units until the parameter counts match.
    """

    kind = "architecture"
    extra_memory = -0.16  # copies of the parameters of vit-nano

    features: Literal["crelu", "fourier"] = option("crelu", "the two features per unit")

    def prepare(self, network: Network) -> None:
        """Replace the activations.

        Raises:
            UserError: No activation is found, or a layer has an odd width or a weight that is computed from others.
        """
        computed = set(computed_parameters(network.module).values())
        if found := sorted(site.layer for site in find_sites(network.module) if site.layer in computed):
            raise UserError(
                f"{_NAMES[self.features]}: the weight of {found[0]} is computed from other parameters (by weight or "
                "spectral normalization), so the layer cannot be halved; remove the normalization first"
            )
        network.rebuild(partial(pair_nonlinearities, paired=_PAIRED[self.features]))
