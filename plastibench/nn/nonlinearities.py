"""Places where a nonlinearity follows a Linear or Conv2d, found from a network's structure alone, and work on them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plastibench.config.errors import UserError

_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid),
)
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d)
# Children of timm's modules that run one after the other: layer, norm, activation. What runs behind a residual
# addition (act2 of a BasicBlock, act3 of a Bottleneck) is no such place.
_NAMED: dict[str, list[tuple[str, str | None, str]]] = {
    "Mlp": [("fc1", None, "act")],
    "ResNet": [("conv1", "bn1", "act1")],
    "BasicBlock": [("conv1", "bn1", "act1")],
    "Bottleneck": [("conv1", "bn1", "act1"), ("conv2", "bn2", "act2")],
}


@dataclass(frozen=True)
class Site:
    """One place where a nonlinearity acts on a layer's outputs.

    Attributes:
        layer: Qualified name of the Linear or Conv2d.
        norm: Name of the normalisation between, or None.
        activation: Name of the nonlinearity's module.
        width: Outputs (channels) of the layer.
        conv: Whether the layer is a convolution, so that channels are the second dimension.
    """

    layer: str
    norm: str | None
    activation: str
    width: int
    conv: bool


class Paired(nn.Module):
    """A nonlinearity that makes two features of each input: H inputs along ``dim`` become 2·H.

    Both halves go through one function call, so that :mod:`plastibench.nn.dataflow` sees 2·H features of H units.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"dim={self.dim}"


class CReLU(Paired):
    """[relu(z), relu(-z)] (Shang et al. 2016)."""

    def forward(self, z: Tensor) -> Tensor:
        """[..., H, ...] to [..., 2·H, ...]."""
        return torch.cat([z, -z], self.dim).relu()


class Fourier(Paired):
    """[sin(z), cos(z)] (Lewandowski et al. 2024)."""

    def forward(self, z: Tensor) -> Tensor:
        """[..., H, ...] to [..., 2·H, ...]; cos(z) is computed as sin(z + π/2)."""
        return torch.cat([z, z + math.pi / 2], self.dim).sin()


class Normed(nn.Sequential):
    """A normalisation that was put before a nonlinearity, and the nonlinearity."""


def find_sites(module: nn.Module) -> list[Site]:
    """Every place where structure alone shows that a nonlinearity follows a Linear or Conv2d, in registration order.

    Known are ``nn.Sequential`` runs (Linear or Conv2d, perhaps a norm, an activation module), timm's ``Mlp``
    and timm's residual networks. Nonlinearities that are functions in a ``forward`` are not found.

    Raises:
        UserError: There is none.
    """
    sites = []
    for prefix, parent in module.named_modules():
        runs = _runs(parent) if isinstance(parent, nn.Sequential) else _NAMED.get(type(parent).__name__, [])
        for names in runs:
            site = _site(parent, *names)
            if site is not None:
                dot = f"{prefix}." if prefix else ""
                norm = None if site.norm is None else dot + site.norm
                sites.append(Site(dot + site.layer, norm, dot + site.activation, site.width, site.conv))
    if not sites:
        raise UserError(
            f"{type(module).__name__} has no activation module behind a Linear or Conv2d (in an nn.Sequential or in "
            "timm's Mlp or ResNet blocks), so its activations cannot be worked on"
        )
    return sites


def pair_activations(module: nn.Module, paired: Callable[[int], Paired]) -> None:
    """Replace each nonlinearity by one with two features per input, behind a layer (and norm) of half the width.

    So what reads the features stays as it was, fan-in included, and parameters become fewer. The halved layer keeps
    the first half of its weights, hence the scale of its initialisation.

    Args:
        module: Changed in place.
        paired: Makes the nonlinearity for a dimension.

    Raises:
        UserError: No nonlinearity is found, or a width cannot be halved; the module is as it was.
    """
    sites = find_sites(module)
    for site in sites:
        layer = module.get_submodule(site.layer)
        norm = module.get_submodule(site.norm) if site.norm is not None else None
        if isinstance(module.get_submodule(site.activation), Paired):
            raise UserError(f"{site.activation} has two features per unit already; ask for one such activation alone")
        if site.width % 2:
            raise UserError(f"{site.layer} has {site.width} outputs, which cannot be halved; choose an even width")
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            raise UserError(f"{site.layer} is a grouped convolution, which cannot be halved")
        if isinstance(norm, nn.LayerNorm) and norm.normalized_shape != (site.width,):
            raise UserError(f"{site.norm} normalises {list(norm.normalized_shape)} at once, which cannot be halved")
        if isinstance(norm, nn.GroupNorm) and site.width // 2 % norm.num_groups:
            raise UserError(f"{site.norm} has {norm.num_groups} groups, of which half the channels cannot be made")
    for site in sites:
        for name in (site.layer, site.norm):
            if name is not None:
                module.set_submodule(name, _first_half(module.get_submodule(name)))
        module.set_submodule(site.activation, paired(1 if site.conv else -1))


def normalise_activations(module: nn.Module, affine: bool) -> list[str]:
    """Put a normalisation before each nonlinearity that has none: a LayerNorm, or GroupNorm(1) behind a convolution.

    The nonlinearity ``act`` becomes a sequence of ``act.0``, the norm, and ``act.1``.

    Args:
        module: Changed in place.
        affine: Whether the norms have a scale and an offset.

    Returns:
        Names of the layers before which a normalisation was put.

    Raises:
        UserError: No nonlinearity is found.
    """
    done = []
    for site in find_sites(module):
        if site.norm is not None:
            continue
        activation, layer = module.get_submodule(site.activation), module.get_submodule(site.layer)
        norm = nn.GroupNorm(1, site.width, affine=affine) if site.conv else nn.LayerNorm(site.width, 1e-5, affine)
        norm.to(next(layer.parameters()).dtype)
        module.set_submodule(site.activation, Normed(norm, activation).train(activation.training))
        done.append(site.layer)
    return done


def remove_affine(module: nn.Module) -> list[str]:
    """Take scale and offset from every LayerNorm; return the names of those that had any."""
    done = []
    for name, child in module.named_modules():
        if isinstance(child, nn.LayerNorm) and child.elementwise_affine:
            child.elementwise_affine = False
            child.register_parameter("weight", None)
            child.register_parameter("bias", None)
            done.append(name)
    return done


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
    """The site that these children make, names relative to the parent, or None where they do not make one."""
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


@torch.no_grad()
def _first_half(module: nn.Module) -> nn.Module:
    """A Linear, Conv2d or norm with the first half of the module's outputs."""
    half = copy.deepcopy(module)
    width = len(module.weight) if isinstance(module, nn.Linear | nn.Conv2d) else _features(module)
    for name, parameter in module.named_parameters(recurse=False):
        half.register_parameter(name, nn.Parameter(parameter[: width // 2].clone(), parameter.requires_grad))
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.ndim:
            half.register_buffer(name, buffer[: width // 2].clone())
    for attribute in ("out_features", "out_channels", "num_features", "num_channels"):
        if hasattr(half, attribute):
            setattr(half, attribute, width // 2)
    if isinstance(half, nn.LayerNorm):
        half.normalized_shape = (width // 2,)
    return half


def _features(norm: nn.Module) -> int:
    if isinstance(norm, nn.LayerNorm):
        return int(norm.normalized_shape[0])
    assert isinstance(norm, nn.GroupNorm | nn.BatchNorm1d | nn.BatchNorm2d)
    return norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features
