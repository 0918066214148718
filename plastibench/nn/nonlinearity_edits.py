"""Change the nonlinearities and norms of a network in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from plastibench.config.errors import UserError
from plastibench.nn.computed_weights import copied
from plastibench.nn.nonlinearities import Normed, Paired
from plastibench.nn.nonlinearity_sites import find_sites
from plastibench.utils.wording import plural


def pair_nonlinearities(module: nn.Module, paired: Callable[[int], Paired]) -> None:
    """Replace each nonlinearity with one that has two features per input, and halve the layer (and norm) before it.

    The readers of the features and their fan-in stay the same, and the network has fewer parameters. A halved layer
    keeps the first half of its weights, and so the scale of its initialization.

    Args:
        module: Changed in place.
        paired: Builds the nonlinearity for a dimension.

    Raises:
        UserError: No nonlinearity is found, or a layer cannot be halved; the module is unchanged.
    """
    sites = find_sites(module)
    _refuse_frozen(module, [name for site in sites for name in (site.layer, site.norm) if name is not None])
    for site in sites:
        layer = module.get_submodule(site.layer)
        norm = module.get_submodule(site.norm) if site.norm is not None else None
        if isinstance(module.get_submodule(site.activation), Paired):
            raise UserError(f"{site.activation} already has two features per unit; use only one paired activation")
        if site.width % 2:
            raise UserError(
                f"{site.layer} has {plural(site.width, 'output')}, which cannot be halved; choose an even width"
            )
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            raise UserError(f"{site.layer} is a grouped convolution, which cannot be halved")
        if isinstance(norm, nn.LayerNorm) and norm.normalized_shape != (site.width,):
            raise UserError(f"{site.norm} normalizes over {list(norm.normalized_shape)}, which cannot be halved")
        if isinstance(norm, nn.GroupNorm) and site.width // 2 % norm.num_groups:
            raise UserError(
                f"{site.norm} has {plural(norm.num_groups, 'group')}, which does not divide half of its channels"
            )
    for site in sites:
        for name in (site.layer, site.norm):
            if name is not None:
                module.set_submodule(name, _first_half(module.get_submodule(name)))
        module.set_submodule(site.activation, paired(1 if site.conv else -1))


def add_norms(module: nn.Module, affine: bool) -> list[str]:
    """Insert a norm before each nonlinearity that has none: LayerNorm, or GroupNorm(1) after a convolution.

    The nonlinearity ``act`` becomes a sequence of the norm ``act.0`` and the nonlinearity ``act.1``.

    Args:
        module: Changed in place.
        affine: Whether the norms have a scale and a shift.

    Returns:
        Names of the layers after which a norm was inserted.

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
    """Remove scale and shift from every LayerNorm; return the names of those that had them.

    Raises:
        UserError: A LayerNorm of a network that is trained is frozen; the module is unchanged.
    """
    norms = {n: c for n, c in module.named_modules() if isinstance(c, nn.LayerNorm) and c.elementwise_affine}
    _refuse_frozen(module, norms)
    for child in norms.values():
        child.elementwise_affine = False
        child.register_parameter("weight", None)
        child.register_parameter("bias", None)
    return list(norms)


def _refuse_frozen(module: nn.Module, names: Iterable[str]) -> None:
    """Refuse to change frozen layers of a network that is trained; a target network is frozen as a whole."""
    if any(parameter.requires_grad for parameter in module.parameters()):
        for name in names:
            if not all(parameter.requires_grad for parameter in module.get_submodule(name).parameters()):
                raise UserError(
                    f"{name} is frozen, and this method would change its shape; unfreeze it or choose another method"
                )


@torch.no_grad()
def _first_half(module: nn.Module) -> nn.Module:
    """A copy of a Linear, Conv2d or norm with the first half of its outputs."""
    half = copied(module)
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
