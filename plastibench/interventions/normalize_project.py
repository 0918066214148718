"""Normalize-and-Project (Lyle et al. 2024, "Normalization and effective learning rates")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plastibench.config.options import option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention
from plastibench.nn.network import Network
from plastibench.nn.nonlinearities import find_sites, normalise_activations, remove_affine
from plastibench.nn.units import has_units


@register_intervention("normalize-and-project")
@dataclass
class NormalizeAndProject(Intervention):
    """Norms before nonlinearities, and after every update each weight matrix goes back to its initial Frobenius norm.

    W ← W·‖W₀‖/‖W‖ for the weights of every trained Linear and Conv2d but the output layers; norms, embeddings and
    biases are not projected. Where a norm directly follows the layer, its bias shrinks with the weight, so that the
    projection changes no output (but for the norm's epsilon; of a BatchNorm, in training mode) and only keeps the
    effective learning rate from falling. Elsewhere (in a ViT: patch embedding, query-key-value, projections, fc2) it is
    a constraint, because no norm of their own follows those layers. Matrices that are zero at first are left alone.

    Decoupled weight decay (AdamW) is undone by the projection, up to a learning rate larger by 1/(1 - lr·decay); a
    penalty on weights in the loss acts through the optimizer's moments and should be off. Since weights no longer grow,
    the learning rate no longer falls by itself: give it a schedule (``--agent.schedule``).

    Followed: the paper's summary of the method, with a projection at every update. Plasticine projects once per
    rollout, and takes every parameter called "weight", scales of norms in sequences included. The paper's joint
    normalisation of scale and offset is not offered. ``intervene`` does nothing.
    """

    kind = "architecture"
    extra_memory = -0.006  # copies of the parameters of vit-nano

    affine: Literal["remove", "keep"] = option("remove", "scale and offset of all LayerNorms and of the norms added")
    output: bool = option(False, "project the output layers, too")

    def __post_init__(self) -> None:
        self._norms: dict[str, Tensor] = {}  # by parameter; of all matrices at the start
        self._normalised: list[str] = []  # layers that a norm follows

    def prepare(self, network: Network) -> None:
        """Add the norms and keep the length of every matrix.

        Raises:
            UserError: No nonlinearity is found.
        """
        network.rebuild(self._normalise)
        self._normalised = [site.layer for site in find_sites(network.module) if site.norm is not None]
        self._norms = {name: weight.detach().norm() for name, weight in _matrices(network.module).items()}
        outputs = network.outputs or [n for n, child in network.module.named_modules() if has_units(child)][-1:]
        if not self.output:
            ends = tuple(f"{name}." for name in outputs)
            self._norms = {name: norm for name, norm in self._norms.items() if not name.startswith(ends)}

    @torch.no_grad()
    def after_update(self, network: Network) -> None:
        """Project; nothing waits for the device."""
        parameters = {name: p for name, p in network.module.named_parameters() if p.requires_grad}
        names = [name for name in self._norms if name in parameters]
        weights: list[Tensor] = [parameters[name] for name in names]
        lengths = torch.stack(torch._foreach_norm(weights))
        start = torch.stack([self._norms[name] for name in names]).to(lengths)
        tiny = torch.finfo(lengths.dtype).tiny
        factors = torch.where(start > 0, start / lengths.clamp_min(tiny), 1.0)
        for name, weight, factor in zip(names, weights, factors, strict=True):
            weight.mul_(factor)
            bias = parameters.get(f"{name.removesuffix('weight')}bias")
            if bias is not None and name.removesuffix(".weight") in self._normalised:
                bias.mul_(factor)

    def state_dict(self) -> dict[str, Any]:
        """The lengths at the start."""
        return {"norms": dict(self._norms), "normalised": [*self._normalised]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self._norms, self._normalised = state["norms"], state["normalised"]

    def _normalise(self, module: nn.Module) -> None:
        normalise_activations(module, self.affine == "keep")
        if self.affine == "remove":
            remove_affine(module)


def _matrices(module: nn.Module) -> dict[str, Tensor]:
    """Weights of Linear and Conv2d modules by parameter name."""
    return {
        f"{prefix}.weight": child.weight
        for prefix, child in module.named_modules()
        if isinstance(child, nn.Linear | nn.Conv2d) and child.weight.requires_grad
    }
