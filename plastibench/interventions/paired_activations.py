"""Two features per unit: CReLU (Abbas et al. 2023) and deep Fourier features (Lewandowski et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from plastibench.config.options import option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention
from plastibench.nn.network import Network
from plastibench.nn.nonlinearities import CReLU, Fourier, pair_activations

_PAIRED = {"crelu": CReLU, "fourier": Fourier}


@register_intervention("crelu", "Replace activations by [relu(z), relu(-z)] of half as many units (Abbas et al. 2023)")
@register_intervention(
    "deep-fourier",
    "Replace activations by [sin(z), cos(z)] of half as many units (Lewandowski et al. 2024)",
    features="fourier",
)
@dataclass
class PairedActivations(Intervention):
    """Each activation (whatever it was) makes two features of a unit, and layers before it have half the units.

    - ``crelu``: [relu(z), relu(-z)]. A unit is never dead, but half of its features are always 0.
    - ``fourier``: [sin(z), cos(z)]. One of the two is always close to linear.

    Sources differ in widths. Hare & Tortoise (Lee et al. 2024, MLP head) and Chung et al. 2024 halve the layer before
    the activation, as is done here: what reads the features keeps its fan-in and its initialisation, and the network
    has fewer parameters than before. Plasticine doubles the input of the next layer instead, so that the network
    grows; L2-Init's code removes a fraction of the units until the numbers of parameters match. The halved layer keeps
    the first half of what the network's own initialisation draws; scales that depend on fan-out (He's for ResNets) are
    those of the whole layer. In a ViT the GELU of each MLP is replaced, in a timm ResNet every ReLU but those behind
    residual additions. Metrics and unit-level methods see a layer of half the units, each activation being the mean
    over both features. ``intervene`` does nothing.
    """

    kind = "architecture"
    extra_memory = -0.16  # copies of the parameters of vit-nano

    features: Literal["crelu", "fourier"] = option("crelu", "which two features")

    def prepare(self, network: Network) -> None:
        """Replace the activations.

        Raises:
            UserError: No activation is found, or a layer has an odd width.
        """
        network.rebuild(partial(pair_activations, paired=_PAIRED[self.features]))
