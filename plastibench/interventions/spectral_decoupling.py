"""Spectral decoupling: regularize the logits (Pezeshki et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass

from tensordict import TensorDictBase
from torch import Tensor

from plastibench.config.options import option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention
from plastibench.nn.batch_outputs import network_outputs
from plastibench.nn.network import Network


@register_intervention("spectral-decoupling")
@dataclass
class SpectralDecoupling(Intervention):
    """Add λ·mean(logits²) to the loss (Pezeshki et al. 2021).

    The mean is over batch and logits, as in dojeon-ai/Hare-Tortoise. The paper writes ½λ‖logits‖², so its λ is 2λ
    divided by the number of outputs.

    Costs one extra forward pass per update, on the batch without augmentation and in eval mode. In reinforcement
    learning the outputs are the values (or logits over atoms) of a critic, or the policy parameters of an actor. The
    term then pulls values to 0, and a Gaussian policy to mean 0 and standard deviation 1.
    """

    kind = "regularizer"
    extra_compute = "1 forward pass per update"

    strength: float = option(1e-3, "regularization strength λ", low=0)

    def penalty(self, network: Network, batch: TensorDictBase) -> Tensor:
        """Return the regularization term."""
        return self.strength * network_outputs(network, network.module, batch).square().mean()
