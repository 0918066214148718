"""The parameters of a layer after a fit, and how they are written."""

from __future__ import annotations

import torch
from torch import Tensor

from plastibench.nn.least_squares import Fit
from plastibench.nn.network import Network
from plastibench.nn.optimizer_state import clear_state
from plastibench.nn.reinit import broadcast_rows
from plastibench.nn.traced_layer import TracedLayer
from plastibench.nn.units import unit_parameters

_ROUNDING = 1e-5  # relative to the norm of a parameter


def fitted_parameters(layer: TracedLayer, fit: Fit, keep: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The parameters after a fit, except for the units in ``keep`` [H].

    If the fit changes a parameter only by rounding errors, because no earlier layer has changed, it keeps its value.
    """

    def updated(parameter: Tensor, new: Tensor) -> Tensor:
        new = new.to(parameter.dtype)
        new = new if keep is None else torch.where(broadcast_rows(keep, parameter), parameter, new)
        return new if float((new - parameter).norm()) > _ROUNDING * float(parameter.norm()) else parameter

    weight, bias = unit_parameters(layer.module)
    return updated(weight, fit.weight), None if bias is None or fit.bias is None else updated(bias, fit.bias)


def write_parameters(network: Network, layer: TracedLayer, new: tuple[Tensor, Tensor | None]) -> None:
    """Write parameters into a layer; if any of them is new, clear the optimizer state of the layer."""
    moved = False
    for parameter, value in zip(unit_parameters(layer.module), new, strict=True):
        if parameter is not None and value is not None and value.data_ptr() != parameter.data_ptr():
            parameter.copy_(value)
            moved = True
    if moved:
        clear_state(network.optimizer, list(layer.module.parameters(recurse=False)))
