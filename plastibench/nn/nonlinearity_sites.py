"""Find where a nonlinearity follows a Linear or Conv2d, from the structure of a network, without a batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from plastibench.config.errors import UserError
from plastibench.nn.nonlinearities import Normed, Paired

_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid),
)
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d)
# Children of timm's modules that run one after the other: layer, norm, activation. Activations after a residual
# addition (act2 of a BasicBlock, act3 of a Bottleneck) do not belong to one layer.
_KNOWN_RUNS: dict[str, list[tuple[str, str | None, str]]] = {
    "Mlp": [("fc1", None, "act")],
    "ResNet": [("conv1", "bn1", "act1")],
    "BasicBlock": [("conv1", "bn1", "act1")],
    "Bottleneck": [("conv1", "bn1", "act1"), ("conv2", "bn2", "act2")],
}


@dataclass(frozen=True)
class Site:
    """A layer and the nonlinearity that acts on its outputs.

    Attributes:
        layer: Qualified name of the Linear or Conv2d.
        norm: Name of the normalization in between, or None.
        activation: Name of the nonlinearity.
        width: Number of outputs (channels) of the layer.
        conv: Whether the layer is a convolution, so that channels are dimension 1.
    """

    layer: str
    norm: str | None
    activation: str
    width: int
    conv: bool


def find_sites(module: nn.Module) -> list[Site]:
    """Find every nonlinearity that directly follows a Linear or Conv2d, in registration order.

    Recognizes runs in an ``nn.Sequential`` (Linear or Conv2d, optional norm, activation), timm's ``Mlp``, and timm's
    residual networks. Functional nonlinearities in a ``forward`` are not found.

    Raises:
        UserError: There is none.
    """
    sites = []
    for prefix, parent in module.named_modules():
        runs = _runs(parent) if isinstance(parent, nn.Sequential) else _KNOWN_RUNS.get(type(parent).__name__, [])
        for names in runs:
            site = _site(parent, *names)
            if site is not None:
                dot = f"{prefix}." if prefix else ""
                norm = None if site.norm is None else dot + site.norm
                sites.append(Site(dot + site.layer, norm, dot + site.activation, site.width, site.conv))
    if not sites:
        raise UserError(
            f"{type(module).__name__} has no activation module after a Linear or Conv2d, so its activations cannot be "
            "changed (supported: nn.Sequential, timm's Mlp and ResNet blocks)"
        )
    return sites


def _runs(sequence: nn.Sequential) -> list[tuple[str, str | None, str]]:
    """Names of the layer, norm and activation of each run in a sequence."""
    runs: list[tuple[str, str | None, str]] = []
    layer: str | None = None
    norm: str | None = None
    for name, child in sequence.named_children():
        if isinstance(child, nn.Linear | nn.Conv2d):
            layer, norm = name, None
        elif layer is not None and norm is None and isinstance(child, _NORMS):
            norm = name
        elif layer is not None and _is_activation(child):
            runs.append((layer, norm, name))
            layer = None
        elif not isinstance(child, nn.Identity):
            layer = None
    return runs


def _site(parent: nn.Module, layer: str, norm: str | None, activation: str) -> Site | None:
    """The site made of these children, with names relative to the parent; None if they do not make one."""
    children = dict(parent.named_children())
    before, between, after = children.get(layer), children.get(norm or ""), children.get(activation)
    if not isinstance(before, nn.Linear | nn.Conv2d) or after is None or not _is_activation(after):
        return None
    if norm is not None and not isinstance(between, (nn.Identity, *_NORMS)):
        return None
    if norm is not None and isinstance(between, nn.Identity):
        norm = None
    if isinstance(after, Normed):
        norm, activation = f"{activation}.0", f"{activation}.1"
    return Site(layer, norm, activation, len(before.weight), isinstance(before, nn.Conv2d))


def _is_activation(module: nn.Module) -> bool:
    return isinstance(module, (*_ACTIVATIONS, Paired, Normed)) or type(module).__module__ == "timm.layers.activations"
