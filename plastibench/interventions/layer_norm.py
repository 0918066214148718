"""LayerNorm before every nonlinearity (Lyle et al. 2023), and LayerNorms without scale and offset."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from plastibench.config.errors import UserError
from plastibench.config.options import option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention
from plastibench.nn.network import Network
from plastibench.nn.nonlinearities import normalise_activations, remove_affine


@register_intervention("layernorm")
@dataclass
class LayerNorms(Intervention):
    """Normalise before each nonlinearity that has no norm before it: LayerNorm, or GroupNorm(1) behind a convolution.

    GroupNorm(1) takes mean and variance over channels and positions, and scales each channel. A LayerNorm, GroupNorm or
    BatchNorm that is there already stays. In a ViT, whose residual stream is normalised anyway, the hidden units of the
    MLPs become normalised, too. The norms make the layers before them invariant to scale, so that their effective
    learning rate falls as their weights grow; Lyle et al. 2024 combine them with weight decay for that reason
    (``--agent.weight-decay``, or ``normalize-and-project``). ``intervene`` does nothing.
    """

    kind = "architecture"
    extra_memory = 1e-2  # copies of the parameters of vit-nano

    affine: bool = option(True, "the new norms have a scale and an offset")

    def prepare(self, network: Network) -> None:
        """Add the norms.

        Raises:
            UserError: No nonlinearity is found, or each has a norm before it.
        """
        network.rebuild(self._add)

    def _add(self, module: nn.Module) -> None:
        if not normalise_activations(module, self.affine):
            name = type(module).__name__
            raise UserError(f"layernorm: each nonlinearity found in {name} has a norm before it already")


@register_intervention("layernorm-affine-free")
@dataclass
class AffineFree(Intervention):
    """LayerNorms that only normalise: without scale γ and offset β, whose drift the RnR paper blames.

    At the start, where γ=1 and β=0, the function stays the same. ``intervene`` does nothing.
    """

    kind = "architecture"
    extra_memory = -0.006  # copies of the parameters of vit-nano

    def prepare(self, network: Network) -> None:
        """Take the parameters away.

        Raises:
            UserError: No LayerNorm has any.
        """
        network.rebuild(_remove)


def _remove(module: nn.Module) -> None:
    if not remove_affine(module):
        raise UserError(f"layernorm-affine-free: {type(module).__name__} has no LayerNorm with scale and offset")
