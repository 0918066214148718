"""Normalize-and-Project (Lyle et al. 2024, "Normalization and effective learning rates")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plastibench.config.errors import UserError
from plastibench.config.options import option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention
from plastibench.nn.computed_weights import computed_parameters
from plastibench.nn.network import Network
from plastibench.nn.nonlinearity_edits import add_norms, remove_affine
from plastibench.nn.nonlinearity_sites import find_sites
from plastibench.nn.units import has_units


@register_intervention("normalize-and-project")
@dataclass
class NormalizeAndProject(Intervention):
    """Add norms before nonlinearities, and rescale weights to their initial norm after every update (Lyle et al. 2024).

    The projection is W ← W·‖W₀‖/‖W‖, with Frobenius norms, for every trained Linear and Conv2d except the output
    layers. Norms, embeddings, biases and matrices that are initially zero are not projected. If a norm directly follows
    the layer, its bias is scaled like the weight. The projection then changes no output, except through the epsilon of
    the norm (for BatchNorm: in training mode), and only keeps the effective learning rate from falling. In layers
    that are not followed by a norm (in a ViT: patch embedding, query-key-value, projections, fc2), it constrains the
    outputs.

    The projection cancels decoupled weight decay (AdamW), up to a learning rate that is larger by 1/(1 - lr·decay). Do
    not combine it with a weight penalty in the loss, which acts through the optimizer's moments. Because weights no
    longer grow, the effective learning rate no longer falls by itself; use a schedule (``--agent.schedule``).

    Follows the summary of the method in the paper, with a projection at every update. Plasticine projects once per
    rollout, and projects every parameter named "weight", including the scales of norms in sequences. The paper's joint
    normalization of scale and offset is not implemented.
    """

    kind = "architecture"
    extra_memory = -0.006  # copies of the parameters of vit-nano

    affine: Literal["remove", "keep"] = option(
        "remove", "whether to remove or keep the scale and offset of all LayerNorms, including the added ones"
    )
    output: bool = option(False, "also project the output layers")

    def __post_init__(self) -> None:
        self._norms: dict[str, Tensor] = {}  # initial Frobenius norm by parameter name
        self._shapes: dict[str, torch.Size] = {}  # shapes of the matrices with these norms
        self._normalised: list[str] = []  # layers that are directly followed by a norm

    def prepare(self, network: Network) -> None:
        """Add the norms, and store the initial norm of every matrix.

        Raises:
            UserError: No nonlinearity or no weight is found.
        """
        if computed_parameters(network.module) and not network.is_replica and not self._projected(network):
            raise UserError(
                f"normalize-and-project: {type(network.module).__name__} has no trained hidden Linear or Conv2d with a "
                "weight of its own (not computed from other parameters)"
            )
        network.rebuild(self._normalise)
        self._normalised = [site.layer for site in find_sites(network.module) if site.norm is not None]
        self._norms = {name: weight.detach().norm() for name, weight in self._projected(network).items()}
        self._shapes = {name: weight.shape for name, weight in self._projected(network).items()}

    @torch.no_grad()
    def after_update(self, network: Network) -> None:
        """Project the weights, without synchronizing with the device."""
        parameters = {name: p for name, p in network.module.named_parameters() if p.requires_grad}
        names = [name for name in self._norms if name in parameters]
        weights: list[Tensor] = [parameters[name] for name in names]
        for name, weight in zip(names, weights, strict=True):
            if weight.shape != self._shapes.get(name, weight.shape):  # replaced by a layer of another size
                self._norms[name], self._shapes[name] = weight.norm(), weight.shape
        if not names:
            return
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
        """Return the initial norms."""
        return {"norms": dict(self._norms), "normalised": [*self._normalised]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the initial norms."""
        self._norms, self._normalised = state["norms"], state["normalised"]

    def _projected(self, network: Network) -> dict[str, Tensor]:
        """Return the weights to project, by parameter name."""
        matrices = _matrices(network.module)
        if self.output:
            return matrices
        outputs = network.outputs or [n for n, child in network.module.named_modules() if has_units(child)][-1:]
        ends = tuple(f"{name}." for name in outputs)
        return {name: weight for name, weight in matrices.items() if not name.startswith(ends)}

    def _normalise(self, module: nn.Module) -> None:
        add_norms(module, self.affine == "keep")
        if self.affine == "remove":
            remove_affine(module)


def _matrices(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights of Linear and Conv2d modules by parameter name."""
    return {
        f"{prefix}.weight": child.weight
        for prefix, child in module.named_modules()
        if isinstance(child, nn.Linear | nn.Conv2d)
        and isinstance(child.weight, nn.Parameter)
        and child.weight.requires_grad
    }
