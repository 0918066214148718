"""L2 regularisation towards zero, or towards the initial weights (Kumar et al. 2023), in the forms that differ."""

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
from plastibench.nn.parameters import learning_rates, remembered, trained


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
    """Pull every parameter back: to 0, or to its initial value θ0.

    - ``loss``: ½λ Σ‖θ−θ0‖² is added to the loss (Kumar et al. 2023, skumar9876/L2_Init). Its gradient λ(θ−θ0) is
      clipped together with the loss's, may use up the limit, and is divided by Adam's root of the second moment:
      parameters with large gradients are hardly pulled.
    - ``decoupled``: θ ← θ − lr·λ(θ−θ0) after every step, with the learning rate of the parameter's group. Towards 0
      this is the weight decay of AdamW, which the agents have anyway (``--agent.weight-decay``, there on all
      parameters, before the step); it knows neither Adam's scaling nor clipping, and follows warm-up and schedule.
    - ``norm``: λ·‖θ−θ0‖₂ over all parameters together, not squared, as some repositories have it (as
      RLE-Foundation/Plasticine): a pull of the same length λ however near θ0 is.

    Scales and shifts of normalisation layers are spared, as Kumar et al. spare those of LayerNorm; buffers always are.
    """

    kind = "regularizer"
    extra_compute = "1 copy if towards initial weights"

    strength: float = option(1e-4, "λ", low=0)
    towards: Literal["zero", "initial"] = option("zero", "where to: 0 or the initial weights")
    form: Literal["loss", "decoupled", "norm"] = option(
        "loss", "half the squared distance in the loss, a pull after the step, or the distance in the loss"
    )
    norms: bool = option(False, "also pull the parameters of normalisation layers")

    def __post_init__(self) -> None:
        self._initial: dict[str, Tensor] = {}

    def prepare(self, network: Network) -> None:
        """Keep the initial weights, where they are the aim."""
        if self.towards == "initial":
            remembered(self._initial, trained(network.module, norms=self.norms))

    def penalty(self, network: Network, batch: TensorDictBase) -> Tensor | None:
        """The term of the loss, where there is one."""
        if self.form == "decoupled":
            return None
        parameters = trained(network.module, norms=self.norms)
        away = list(parameters.values())
        if self.towards == "initial":
            away = list(torch._foreach_sub(away, remembered(self._initial, parameters)))
        lengths = torch.stack(torch._foreach_norm(away))  # [tensors]; the gradient of a length of 0 is 0
        if self.form == "norm":
            return self.strength * torch.linalg.vector_norm(lengths)
        return 0.5 * self.strength * lengths.square().sum()

    @torch.no_grad()
    def after_update(self, network: Network) -> None:
        """The decoupled pull, where that is the form."""
        if self.form != "decoupled":
            return
        parameters = trained(network.module, norms=self.norms)
        values = list(parameters.values())
        shares = [rate * self.strength for rate in learning_rates(network, values)]
        if self.towards == "initial":
            torch._foreach_lerp_(values, remembered(self._initial, parameters), shares)
        else:
            torch._foreach_mul_(values, [1 - share for share in shares])

    def state_dict(self) -> dict[str, Any]:
        """The initial weights."""
        return {"initial": copy.copy(self._initial)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the initial weights."""
        self._initial = dict(state["initial"])
