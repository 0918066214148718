"""Revive: find dormant units and re-draw their incoming weights (paper 3.3). Also ReDo and ReGraMa by themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.config.errors import UserError
from plastibench.config.options import matches, option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention, Report
from plastibench.nn.dataflow import TracedLayer, must_match, trace
from plastibench.nn.dormancy import Criterion, dormant
from plastibench.nn.network import Network, as_batch
from plastibench.nn.optimizer_state import MomentRule
from plastibench.nn.reinit import redraw_batch_norms, redraw_units, whole_neurons, zero_outgoing
from plastibench.nn.unit_statistics import measure


@register_intervention(
    "redo",
    "Reinitialize units with small activations and zero their outgoing weights (ReDo, Sokar et al. 2023)",
    criterion="redo",
    tau=0.1,
    modules="hidden",
    outgoing="zero",
)
@register_intervention(
    "regrama", "Reinitialize units with small pre-activation gradients (ReGraMa, paper 3.3)", criterion="regrama"
)
@register_intervention(
    "regrama-post",
    "Reinitialize units with small post-activation gradients (ReGraMa as published, Liu et al. 2025)",
    criterion="regrama-post",
    tau=1e-2,
)
@register_intervention(
    "regrama-weight",
    "Reinitialize units with small weight gradients (ReGraMa as released, Liu et al. 2025)",
    criterion="regrama-weight",
    tau=1e-2,
)
@register_intervention(
    "low-gradient-quantile",
    "Reinitialize the fraction of units with the smallest gradients (paper 3.3): RnR without recoupling",
    criterion="low-gradient-quantile",
)
@register_intervention(
    "revive-zero",
    "low-gradient-quantile that zeroes outgoing weights, as ReDo does, instead of recoupling",
    outgoing="zero",
)
@dataclass
class Revive(Intervention):
    """Re-draw the incoming weights of dormant units, as their module was initialised.

    The output layer is never revived. With ``outgoing="zero"`` and ``criterion="redo"`` this is ReDo (Sokar et al.
    2023); with ``criterion="regrama"`` it is ReGraMa (Liu et al. 2025) on pre-activation gradients. Hidden units whose
    readers are zeroed lose their entry of a BatchNorm before the nonlinearity, too.
    """

    kind = "units"
    extra_compute = "a forward and backward pass each time"

    criterion: Criterion = option("low-gradient-quantile", "how units are scored; the first four compare with tau")
    tau: float = option(1.0, "revive units whose score is at most this times the layer's mean", low=0)
    quantile: float = option(0.4, "share of each layer that is revived, lowest scores first", low=0, high=1)
    modules: str = option("all", "all, hidden (activated units with known readers), or a regular expression of names")
    residual_writers: bool = option(True, "revive modules that write into a residual stream, too")
    split_qkv: bool = option(False, "judge q, k and v of a joint projection apart")
    outgoing: Literal["keep", "zero"] = option("keep", "what becomes of the weights that read a revived unit")
    moments: MomentRule = option("mean", "what becomes of the optimizer's moments of re-drawn weights")

    def prepare(self, network: Network) -> None:
        """See that there is something to revive."""
        if self.modules not in ("all", "hidden"):
            must_match(self.modules, network.module, "modules")

    def intervene(self, network: Network, batch: TensorDictBase) -> Report:
        """Score once over the batch, then re-draw."""
        batch = as_batch(batch)
        units = trace(network, batch)
        masks, fresh = self.select(network, batch, units), network.fresh()
        report = self.revive(network, units, masks, fresh)
        if self.outgoing == "zero":
            zero_outgoing(network, units, masks, self.moments)
            if self.modules == "hidden":  # its shift may be what silences a filter
                redraw_batch_norms(network, units, masks, fresh, self.moments)
        return report

    def select(self, network: Network, batch: TensorDictBase, units: list[TracedLayer]) -> dict[str, Tensor]:
        """Masks of dormant units by module name.

        Raises:
            UserError: ``modules`` matches nothing.
        """
        inner = [unit for unit in units if unit.trained and not unit.output]
        chosen = [unit for unit in inner if self._acts_on(unit)]
        if not chosen:
            names = ", ".join(unit.name for unit in inner[:6])
            raise UserError(f"modules '{self.modules}' selects nothing to revive in this network (it has {names}, …)")
        statistics = measure(network, batch, chosen)
        return {
            unit.name: dormant(
                self.criterion,
                statistics[unit.name],
                tau=self.tau,
                quantile=self.quantile,
                generator=network.generator,
                groups=3 if self.split_qkv and unit.name.endswith("qkv") else 1,
            )
            for unit in chosen
        }

    def revive(self, network: Network, units: list[TracedLayer], masks: dict[str, Tensor], fresh: nn.Module) -> Report:
        """Re-draw the masked units with the weights they have in ``fresh``.

        A hidden unit whose activation follows a LayerNorm is re-drawn whole: its entry of the norm, and the row of the
        module whose outputs are normalised.
        """
        masks = whole_neurons(units, masks) if self.modules == "hidden" else masks
        report = Report(units=masks, parameters=redraw_units(network, units, masks, fresh, self.moments))
        for name, mask in masks.items():
            report.note(name, revived=float(mask.sum()), units=float(len(mask)))
        return report

    def _acts_on(self, unit: TracedLayer) -> bool:
        if unit.residual and not self.residual_writers:
            return False
        if self.modules == "hidden":
            return unit.hidden
        return self.modules == "all" or matches(self.modules, unit.name)
