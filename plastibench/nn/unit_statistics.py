"""Mean activations and gradients of every unit over a batch, measured in an explicit pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.nn.batches import CHUNK_SIZE, chunks
from plastibench.nn.network import Network, as_evaluated
from plastibench.nn.traced_layer import TracedLayer
from plastibench.nn.unit_tracking import UnitTracker
from plastibench.nn.units import unit_count, unit_rows, unit_weight, units_first


@dataclass
class UnitStatistics:
    """Statistics of the units of one layer: means over all rows (samples x tokens or positions); each [H], float64.

    ``L(x)`` is the loss of one sample, z the layer's own output (the pre-activation), and h the output of the
    nonlinearity that follows (z if there is none).

    Attributes:
        activation: E|h_i|, the score of ReDo.
        pre_gradient: E|∂L/∂z_i|, the score of RnR's ReGraMa and Low Gradient Quantile (paper 3.3).
        post_gradient: E|∂L/∂h_i|, the score of ReGraMa as published.
        signed_gradient: E[∂L/∂z_i], the quantity in the paper's Fig. 3.
        weight_gradient: mean_j |∂E[L]/∂W_ij|, the score of ReGraMa as released; it cancels across samples.
        weight_norm: ||W_i||, the norm of the incoming weights.
    """

    activation: Tensor
    pre_gradient: Tensor
    post_gradient: Tensor
    signed_gradient: Tensor
    weight_gradient: Tensor
    weight_norm: Tensor


class _Sums:
    """Running sums of one layer."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.module = module
        self.rows = 0
        zeros = torch.zeros(5, unit_count(module), dtype=torch.float64, device=device)
        self.pre, self.post, self.pre_gradient, self.post_gradient, self.signed = zeros.unbind()
        self.activated = 0  # elements
        self.awaited: bool | Tensor = False  # the units without h since the latest run, as a mask, or whether all are

    def add(self, total: Tensor, values: Tensor, scale: float = 1.0) -> None:
        total += unit_rows(self.module, values).abs().sum(0, dtype=torch.float64) * scale

    def takes(self, unit: Tensor) -> bool:
        """Whether an activation is h: the first one of its units after a run of the module.

        It may act on a part of the units only, while another one acts on the others.
        """
        count = len(self.post)
        present = torch.ones(count, dtype=torch.bool, device=unit.device)
        if not _in_order(unit, count):
            present = torch.zeros_like(present).index_fill_(0, unit.flatten().long(), True)
        awaited = torch.full_like(present, self.awaited) if isinstance(self.awaited, bool) else self.awaited
        if not bool(awaited[present].all()):
            return False
        self.awaited = awaited & ~present
        return True


def measure_units(
    network: Network, batch: TensorDictBase, layers: Iterable[TracedLayer], *, chunk_size: int = CHUNK_SIZE
) -> dict[str, UnitStatistics]:
    """Measure activations and gradients of the given layers over a batch.

    Runs in eval mode and float32; gradients of the mean loss are scaled to those of single samples. ``.grad``, the
    modes of all modules and the global random state are left as they were.

    Args:
        network: The network.
        batch: A large representative batch with the inputs of the loss.
        layers: The layers to measure, from :func:`plastibench.nn.dataflow.trace`.
        chunk_size: Samples per forward and backward pass.
    """
    sums = {layer.name: _Sums(layer.module, network.device) for layer in layers}
    parameters = [p for p in network.module.parameters() if p.requires_grad]
    of_weight = {id(total.module.weight): name for name, total in sums.items()}
    weight_gradient = {name: torch.zeros_like(total.module.weight) for name, total in sums.items()}  # type: ignore[arg-type]

    def on_activation(name: str, output: Tensor, unit: Tensor) -> None:
        total = sums.get(name)
        if total is None or total.awaited is False or not total.takes(unit):
            return
        total.activated += output.numel()
        _add_by_unit(total.post, output.detach().abs(), unit)
        _on_gradient(output, lambda grad: _add_by_unit(total.post_gradient, grad.abs() * size, unit))

    def on_forward(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        total = sums[names[module]]
        total.awaited = True
        total.rows += unit_rows(module, output).shape[0]
        total.add(total.pre, output.detach())

        def add_gradient(grad: Tensor) -> None:
            total.add(total.pre_gradient, grad, size)
            total.signed.add_(unit_rows(module, grad).sum(0, dtype=torch.float64), alpha=size)

        _on_gradient(output, add_gradient)

    names = {total.module: name for name, total in sums.items()}
    hooks = [module.register_forward_hook(on_forward) for module in names]
    try:
        with as_evaluated(network.module), torch.enable_grad():
            for chunk in chunks(batch, chunk_size):
                size = len(chunk)
                with UnitTracker(names, on_activation):
                    loss = network.loss(network.module, chunk)
                for parameter, grad in zip(
                    parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True
                ):
                    if grad is not None and id(parameter) in of_weight:
                        weight_gradient[of_weight[id(parameter)]] += grad * (size / len(batch))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: _means(total, weight_gradient[name]) for name, total in sums.items()}


def _add_by_unit(total: Tensor, values: Tensor, unit: Tensor) -> None:
    """Add to ``total[i]`` all values that belong to unit i."""
    if _in_order(unit, len(total)):
        (axis,) = _varying(unit)
        total += values.movedim(axis, -1).flatten(0, -2).sum(0, dtype=torch.float64)
    else:
        total.index_add_(0, unit.flatten().long(), values.flatten().double())


def _varying(unit: Tensor) -> list[int]:
    """The axes along which the unit number changes."""
    return [axis for axis, stride in enumerate(unit.stride()) if stride and unit.shape[axis] > 1]


def _in_order(unit: Tensor, count: int) -> bool:
    """Whether all units lie along one axis, in order."""
    axes = _varying(unit)
    return len(axes) == 1 and unit.shape[axes[0]] == count


def _on_gradient(output: Tensor, hook: Callable[[Tensor], None]) -> None:
    if output.requires_grad:
        output.register_hook(hook)


def _means(total: _Sums, weight_gradient: Tensor) -> UnitStatistics:
    rows, activated_rows = max(total.rows, 1), total.activated / len(total.post)
    weight = unit_weight(total.module)
    weight_gradient = units_first(total.module, weight_gradient)
    return UnitStatistics(
        activation=total.post / activated_rows if activated_rows else total.pre / rows,
        pre_gradient=total.pre_gradient / rows,
        post_gradient=total.post_gradient / activated_rows if activated_rows else total.pre_gradient / rows,
        signed_gradient=total.signed / rows,
        weight_gradient=weight_gradient.double().flatten(1).abs().mean(1)
        if weight_gradient.ndim > 1
        else weight_gradient.double().abs(),
        weight_norm=weight.detach().double().flatten(1).norm(dim=1)
        if weight.ndim > 1
        else weight.detach().double().abs(),
    )
