"""Spectral decoupling (Pezeshki et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass

from tensordict import TensorDictBase
from torch import Tensor

from plastibench.config.options import option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention
from plastibench.nn.batch_outputs import outputs
from plastibench.nn.network import Network


@register_intervention("spectral-decoupling")
@dataclass
class SpectralDecoupling(Intervention):
    """λ·mean(outputs²) in the loss, the mean over batch and logits, as in dojeon-ai/Hare-Tortoise.

    The paper writes ½λ‖logits‖², so its λ is this one divided by half the number of outputs.

    Costs one forward pass more per update, on the batch without augmentation and in eval mode. In reinforcement
    learning the outputs are what the network returns: a critic's values (or its logits over atoms), an actor's policy
    parameters; there the term pulls values to 0, and a Gaussian policy to mean 0 and standard deviation 1.
    """

    kind = "regularizer"
    extra_compute = "1 forward pass per update"

    strength: float = option(1e-3, "λ", low=0)

    def penalty(self, network: Network, batch: TensorDictBase) -> Tensor:
        """The term of the loss."""
        return self.strength * outputs(network, network.module, batch).square().mean()
