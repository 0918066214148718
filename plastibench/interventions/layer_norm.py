"""Added LayerNorms (Lyle et al. 2023), and LayerNorms without scale and offset."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from plastibench.config.errors import UserError
from plastibench.config.options import option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention
from plastibench.nn.network import Network
from plastibench.nn.nonlinearity_edits import add_norms, remove_affine


@register_intervention("layernorm")
@dataclass
class LayerNorms(Intervention):
    """Add a LayerNorm before every nonlinearity (Lyle et al. 2023).

    After a convolution, GroupNorm(1) is added instead: it computes mean and variance over channels and positions, and
    scales each channel. Nonlinearities that already follow a LayerNorm, GroupNorm or BatchNorm are unchanged. In a ViT,
    whose residual stream is normalized anyway, the hidden units of the MLPs become normalized as well.

    A norm makes the layer before it scale-invariant, so its effective learning rate falls as its weights grow. Lyle et
    al. 2024 therefore combine norms with weight decay (``--agent.weight-decay``) or with ``normalize-and-project``.
    """

    kind = "architecture"
    extra_memory = 1e-2  # copies of the parameters of vit-nano

    affine: bool = option(True, "give the new norms a scale and an offset")

    def prepare(self, network: Network) -> None:
        """Add the norms.

        Raises:
            UserError: No nonlinearity is found, or each of them follows a norm.
        """
        network.rebuild(self._add)

    def _add(self, module: nn.Module) -> None:
        if not add_norms(module, self.affine):
            name = type(module).__name__
            raise UserError(f"layernorm: every nonlinearity in {name} already follows a norm")


@register_intervention("layernorm-affine-free")
@dataclass
class AffineFree(Intervention):
    """Remove scale γ and offset β from every LayerNorm; the RnR paper attributes plasticity loss to their drift.

    With the initial values γ=1 and β=0, this does not change the network's outputs.
    """

    kind = "architecture"
    extra_memory = -0.006  # copies of the parameters of vit-nano

    def prepare(self, network: Network) -> None:
        """Remove the parameters.

        Raises:
            UserError: No LayerNorm has scale and offset.
        """
        network.rebuild(_remove)


def _remove(module: nn.Module) -> None:
    if not remove_affine(module):
        raise UserError(f"layernorm-affine-free: {type(module).__name__} has no LayerNorm with scale and offset")
