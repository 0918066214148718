"""L2 regularization towards zero or towards the initial weights (L2 Init, Kumar et al. 2023)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor

from plastibench.config.options import option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention
from plastibench.nn.network import Network
from plastibench.nn.parameters import initial_values, learning_rates, trainable_parameters


@register_intervention("l2", "Add ½λ‖θ‖² to the loss (Krogh & Hertz 1991)")
@register_intervention(
    "l2-decoupled",
    "Decay the weights after each step: θ ← θ − lr·λ·θ (Loshchilov & Hutter 2019)",
    form="decoupled",
    strength=0.05,
)
@register_intervention(
    "l2-init", "Add ½λ‖θ−θ₀‖² to the loss, with the initial weights θ₀ (Kumar et al. 2023)", towards="initial"
)
@register_intervention(
    "l2-init-decoupled",
    "Pull the weights towards θ₀ after each step: θ ← θ − lr·λ·(θ−θ₀) (Kumar et al. 2023, decoupled)",
    towards="initial",
    form="decoupled",
    strength=1.0,
)
@register_intervention(
    "l2-init-norm",
    "Add λ‖θ−θ₀‖, not squared, to the loss (Kumar et al. 2023, as some repositories implement it)",
    towards="initial",
    form="norm",
    strength=1e-2,
)
@dataclass
class L2(Intervention):
    """Pull the parameters towards 0, or towards their initial values θ₀.

    ``form`` is one of:

    - ``loss``: add ½λ Σ‖θ−θ₀‖² to the loss (Kumar et al. 2023, skumar9876/L2_Init). Its gradient λ(θ−θ₀) is clipped
      together with the gradient of the loss. Adam divides it by the root of the second moment, so parameters with large
      gradients are pulled less.
    - ``decoupled``: θ ← θ − lr·λ·(θ−θ₀) after every step, with the learning rate of the parameter group. It follows
      warm-up and schedule, and is not affected by clipping or Adam's scaling. Towards 0 this is the weight decay of
      AdamW. The agents apply that as well (``--agent.weight-decay``), to all parameters and before the step.
    - ``norm``: add λ‖θ−θ₀‖₂, the norm over all parameters, not squared, to the loss, as some repositories do
      (RLE-Foundation/Plasticine). The pull has strength λ at any distance from θ₀.

    Parameters of normalization layers are excluded, as LayerNorm parameters are in Kumar et al. Buffers are always
    excluded.
    """

    kind = "regularizer"
    extra_compute = "1 copy of the weights if towards=initial"

    strength: float = option(1e-4, "regularization strength λ", low=0)
    towards: Literal["zero", "initial"] = option("zero", "pull towards 0 or towards the initial weights")
    form: Literal["loss", "decoupled", "norm"] = option(
        "loss", "loss: squared distance in the loss; decoupled: pull after the step; norm: distance in the loss"
    )
    norms: bool = option(False, "also regularize the parameters of normalization layers")

    def __post_init__(self) -> None:
        self._initial: dict[str, Tensor] = {}

    def prepare(self, network: Network) -> None:
        """Store the initial weights if they are needed."""
        if self.towards == "initial":
            initial_values(self._initial, trainable_parameters(network.module, norms=self.norms))

    def penalty(self, network: Network, batch: TensorDictBase) -> Tensor | None:
        """Return the regularization term, or None for the decoupled form."""
        if self.form == "decoupled":
            return None
        parameters = trainable_parameters(network.module, norms=self.norms)
        away = list(parameters.values())
        if self.towards == "initial":
            away = list(torch._foreach_sub(away, initial_values(self._initial, parameters)))
        lengths = torch.stack(torch._foreach_norm(away))  # [tensors]; the gradient of a zero norm is 0
        if self.form == "norm":
            return self.strength * torch.linalg.vector_norm(lengths)
        return 0.5 * self.strength * lengths.square().sum()

    @torch.no_grad()
    def after_update(self, network: Network) -> None:
        """Pull the parameters, for the decoupled form."""
        if self.form != "decoupled":
            return
        parameters = trainable_parameters(network.module, norms=self.norms)
        values = list(parameters.values())
        factors = [rate * self.strength for rate in learning_rates(network, values)]
        if self.towards == "initial":
            torch._foreach_lerp_(values, initial_values(self._initial, parameters), factors)
        else:
            torch._foreach_mul_(values, [1 - factor for factor in factors])

    def state_dict(self) -> dict[str, Any]:
        """Return the initial weights."""
        return {"initial": copy.copy(self._initial)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the initial weights."""
        self._initial = dict(state["initial"])
