"""Recouple: refit modules after another intervention, to preserve the network's outputs (paper 3.4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tensordict import TensorDictBase
from torch import Tensor

from plastibench.config.errors import UserError
from plastibench.config.options import matches, option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Report
from plastibench.interventions.wrapper import Wrapper
from plastibench.nn.dataflow import trace
from plastibench.nn.least_squares import Fit, Solver, SolverName
from plastibench.nn.memory import refit_plan
from plastibench.nn.network import Network, as_batch
from plastibench.nn.refit import announce, frozen_copy, only_units_differ, refit, refit_pair, snapshot
from plastibench.nn.row_order import row_order
from plastibench.nn.selectors import require_match
from plastibench.nn.traced_layer import TracedLayer
from plastibench.nn.units import unit_count


@register_intervention("recouple")
@dataclass
class Recouple(Wrapper):
    """Apply another intervention, then refit each module to the outputs before the intervention (paper 3.4).

    Units that the inner intervention reinitialized keep their new weights. All other rows of every module except the
    first are refitted, in execution order. After an intervention that changes all weights, such as Shrink & Perturb,
    this amounts to a layer-wise distillation of the old network. ``refit`` restricts it to some modules.
    """

    kind = "wrapper"
    extra_compute = "least-squares fits per intervention"

    refit: str = option("all", "modules to refit: all, or a regular expression of module names")
    solver: SolverName = option("delta-ridge", "solver of the linear systems; pinv is the formula in the paper")
    ridge: float = option(
        10.0, "penalty, relative to the mean diagonal of the Gram matrix (unused by pinv; for ridge use 0.01)", low=0
    )
    max_growth: float = option(
        0.0, "raise the penalty until no weight norm grows by more than this factor; 0: no limit", low=0
    )
    memory: float | None = option(
        None, "GiB of activations to hold at once; larger batches are streamed in chunks (default: 1)", low=0.001
    )

    def prepare(self, network: Network) -> None:
        """Prepare the inner intervention, and check that the selected modules exist."""
        super().prepare(network)
        self._check(network)

    def intervene(self, network: Network, batch: TensorDictBase) -> Report:
        """Apply the inner intervention, then refit.

        Raises:
            UserError: There is no module to refit, or the inner intervention changes the architecture.
        """
        self._check(network)
        batch = as_batch(batch)
        layers = trace(network, batch)
        if not layers:
            raise UserError(f"recouple: {type(network.module).__name__} has no module that can be refitted")
        plan = refit_plan(network, batch, self.memory)
        order = row_order(network, batch, layers, plan.chunk)
        announce("recouple", order)
        before, teacher = snapshot(layers), frozen_copy(network)
        report = self._inner.intervene(network, batch)
        if network.module.state_dict().keys() != teacher.state_dict().keys():
            raise UserError("recouple: the inner intervention changes the architecture; use 'distil' instead")
        if only_units_differ(network, teacher, layers):
            fits = refit(network, batch, layers, before, report.units, self._refits, self._solver(), order, plan)
            return with_fits(report, layers, fits, report.units)
        fits = {}
        for reader in layers[1:]:
            if self._refits(reader.name) and reader.trained and reader.name not in order.moving:
                keep = report.units.get(reader.name)
                fit = refit_pair(network, batch, teacher, reader, self._solver(), keep, plan.chunk)
                if fit is not None:
                    fits[reader.name] = fit
        return with_fits(report, layers, fits, report.units)

    def _check(self, network: Network) -> None:
        if self.refit != "all":
            require_match(self.refit, network.module, "refit")

    def _refits(self, name: str) -> bool:
        return self.refit == "all" or matches(self.refit, name)

    def _solver(self) -> Solver:
        return Solver(self.solver, self.ridge, self.max_growth)


def with_fits(report: Report, layers: list[TracedLayer], fits: dict[str, Fit], spared: Mapping[str, Tensor]) -> Report:
    """Add the fits to a report: residual and weight growth per refitted module, and the parameters that changed."""
    modules = {layer.name: layer.module for layer in layers}
    for name, fit in fits.items():
        kept = int(spared[name].sum()) if name in spared else 0
        if kept < len(fit.weight):
            report.note(name, residual=fit.residual, norm_ratio=fit.norm_ratio)
        count = unit_count(modules[name])
        report.parameters += sum(p.numel() // count * (count - kept) for p in modules[name].parameters())
    return report
