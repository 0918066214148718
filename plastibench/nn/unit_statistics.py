"""Mean activations and gradients of every unit over a batch, measured in an explicit pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from plastibench.nn.batch_pass import Collector, run_pass
from plastibench.nn.batches import CHUNK_SIZE
from plastibench.nn.network import Network
from plastibench.nn.row_sample import Rows, all_rows
from plastibench.nn.traced_layer import TracedLayer
from plastibench.nn.unit_tracking import axis_of_units
from plastibench.nn.units import unit_axis, unit_count, unit_weight, units_first


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

    def __init__(self, module: nn.Module, device: torch.device, rows_of: Rows) -> None:
        self.module, self._rows_of = module, rows_of
        self.rows = 0
        zeros = torch.zeros(5, unit_count(module), dtype=torch.float64, device=device)
        self.pre, self.post, self.pre_gradient, self.post_gradient, self.signed = zeros.unbind()
        self.activated = 0  # elements
        self.awaited: bool | Tensor = False  # the units without h since the latest run, as a mask, or whether all are

    def rows_of(self, values: Tensor) -> Tensor:
        """Rows of outputs of the module, or of their gradients. [rows, H]."""
        return self._rows_of(values.movedim(unit_axis(self.module), -1))

    def add_by_unit(self, total: Tensor, values: Tensor, unit: Tensor, scale: float = 1.0) -> int:
        """Add to ``total[i]`` the absolute values that belong to unit i; return how many values were added."""
        if (axis := axis_of_units(unit, len(total))) is not None:
            rows = self._rows_of(values.movedim(axis, -1)).abs()
            total += (rows * scale).sum(0, dtype=torch.float64)
            return rows.numel()
        total.index_add_(0, unit.flatten().long(), (values.abs() * scale).flatten().double())
        return values.numel()

    def takes(self, unit: Tensor) -> bool:
        """Whether an activation is h: the first one of its units after a run of the module.

        It may act on a part of the units only, while another one acts on the others.
        """
        present = torch.zeros(len(self.post), dtype=torch.bool, device=unit.device)
        present.index_fill_(0, unit.flatten().long(), True)
        awaited = torch.full_like(present, self.awaited) if isinstance(self.awaited, bool) else self.awaited
        if not bool(awaited[present].all()):
            return False
        self.awaited = awaited & ~present
        return True


class UnitCollector(Collector):
    """Collects the statistics of units in a forward and backward pass.

    Gradients of the mean loss are scaled to those of single samples.
    """

    def __init__(self, network: Network, layers: Iterable[TracedLayer], samples: int, rows_of: Rows = all_rows) -> None:
        """Measure the given layers over ``samples`` samples, on the rows that ``rows_of`` chooses."""
        self.sums = {layer.name: _Sums(layer.module, network.device, rows_of) for layer in layers}
        self.names = {total.module: name for name, total in self.sums.items()}
        self._samples, self._size = samples, 0
        weights = {id(total.module.weight): name for name, total in self.sums.items()}
        self._of_weight = {name: weights[id(p)] for name, p in network.module.named_parameters() if id(p) in weights}
        self._weight_gradient = {name: torch.zeros_like(total.module.weight) for name, total in self.sums.items()}  # type: ignore[arg-type]

    def attach(self) -> list[RemovableHandle]:
        """Observe the outputs of the layers."""
        return [module.register_forward_hook(self._forward) for module in self.names]

    def begin(self, size: int) -> None:
        """Gradients of this chunk are those of the mean over ``size`` samples."""
        self._size = size

    def _forward(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        total, size = self.sums[self.names[module]], self._size
        total.awaited = True
        rows = total.rows_of(output.detach())
        total.rows += len(rows)
        total.pre += rows.abs().sum(0, dtype=torch.float64)

        def add_gradient(grad: Tensor) -> None:
            rows = total.rows_of(grad)
            total.pre_gradient += rows.abs().sum(0, dtype=torch.float64) * size
            total.signed.add_(rows.sum(0, dtype=torch.float64), alpha=size)

        _on_gradient(output, add_gradient)

    def activation(self, name: str, output: Tensor, unit: Tensor) -> None:
        """The first activation after a run of a layer is that of its units."""
        total, size = self.sums.get(name), self._size
        if total is None or total.awaited is False or not total.takes(unit):
            return
        total.activated += total.add_by_unit(total.post, output.detach(), unit)

        def add_gradient(grad: Tensor) -> None:
            total.add_by_unit(total.post_gradient, grad, unit, size)

        _on_gradient(output, add_gradient)

    def end(self, loss: Tensor, gradients: Mapping[str, Tensor], size: int) -> None:
        """Add the gradients of the weights."""
        for name, grad in gradients.items():
            if name in self._of_weight:
                self._weight_gradient[self._of_weight[name]] += grad * (size / self._samples)

    def statistics(self) -> dict[str, UnitStatistics]:
        """The statistics by layer name."""
        return {name: _means(total, self._weight_gradient[name]) for name, total in self.sums.items()}


def measure_units(
    network: Network, batch: TensorDictBase, layers: Iterable[TracedLayer], *, chunk_size: int = CHUNK_SIZE
) -> dict[str, UnitStatistics]:
    """Measure activations and gradients of the given layers over a batch.

    Runs in eval mode and float32. ``.grad``, the modes of all modules and the global random state are left as they
    were.

    Args:
        network: The network.
        batch: A large representative batch with the inputs of the loss.
        layers: The layers to measure, from :func:`plastibench.nn.dataflow.trace`.
        chunk_size: Samples per forward and backward pass.
    """
    collector = UnitCollector(network, layers, len(batch))
    run_pass(network, batch, [collector], tracked=collector.names, backward=True, chunk_size=chunk_size)
    return collector.statistics()


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
