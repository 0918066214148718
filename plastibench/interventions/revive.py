"""Revive: reinitialize the incoming weights of dormant units (paper 3.3), including ReDo and ReGraMa."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.config.errors import UserError
from plastibench.config.options import matches, option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention, Report
from plastibench.nn.dataflow import trace
from plastibench.nn.dormancy import Criterion, dormant_units
from plastibench.nn.memory import scoring_chunk
from plastibench.nn.network import Network, as_batch
from plastibench.nn.optimizer_state import MomentRule
from plastibench.nn.reinit import include_normalized_layers, reinitialize_batch_norms, reinitialize_units, zero_outgoing
from plastibench.nn.selectors import require_match
from plastibench.nn.traced_layer import TracedLayer
from plastibench.nn.unit_statistics import measure_units


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
    """Reinitialize the incoming weights of dormant units with their module's own initialization.

    The output layer is never revived. ``criterion="redo"`` with ``outgoing="zero"`` is ReDo (Sokar et al. 2023).
    ``criterion="regrama"`` is ReGraMa (Liu et al. 2025) with pre-activation gradients. With ``modules="hidden"`` and
    ``outgoing="zero"``, the entries of revived units in a BatchNorm before the nonlinearity are reinitialized too.

    Defaults that differ from their sources: ``tau`` of ``redo`` is 0.1, as in the RnR paper (Sokar et al. 2023: 0.025
    or 0.1, depending on the replay ratio; Dopamine's code: 0). ``tau`` of ``regrama`` is 1.0, which the RnR paper found
    best for pre-activation gradients (Liu et al. 2025: 0.01 for post-activation gradients, the default of
    ``regrama-post``; their code: 0). ``moments`` is ``mean``, because zeroed second moments make the first steps of
    revived units too large; Dopamine zeroes both moments and keeps the step count (``moments=zero``).
    """

    kind = "units"
    extra_compute = "a forward and backward pass per intervention"

    criterion: Criterion = option(
        "low-gradient-quantile", "score of a unit; the first four criteria use tau, the others quantile"
    )
    tau: float = option(1.0, "revive units whose score is at most this multiple of the layer's mean", low=0)
    quantile: float = option(0.4, "fraction of each layer to revive, lowest scores first", low=0, high=1)
    modules: str = option(
        "all",
        "modules to revive: all, hidden (units followed by an activation whose next layers are known), or a regular "
        "expression of names",
    )
    residual_writers: bool = option(True, "also revive units of modules that write into a residual stream")
    split_qkv: bool = option(False, "score q, k and v of a joint projection separately")
    outgoing: Literal["keep", "zero"] = option(
        "keep", "weights that read a revived unit: keep them or set them to zero"
    )
    moments: MomentRule = option(
        "mean", "new optimizer moments of reinitialized weights: mean of the rest, zero, or restart the step count"
    )
    memory: float | None = option(
        None, "GiB of activations to hold at once; larger batches are scored in smaller chunks (default: 1)", low=0.001
    )

    def prepare(self, network: Network) -> None:
        """Check that the selected modules exist."""
        if self.modules not in ("all", "hidden"):
            require_match(self.modules, network.module, "modules")

    def intervene(self, network: Network, batch: TensorDictBase) -> Report:
        """Score all units on the batch, then reinitialize the dormant ones."""
        batch = as_batch(batch)
        layers = trace(network, batch)
        masks, fresh = self.select(network, batch, layers), network.fresh()
        report = self.revive(network, layers, masks, fresh)
        if self.outgoing == "zero":
            zero_outgoing(network, layers, masks, self.moments)
            if self.modules == "hidden":  # a filter may be silent because of its shift
                reinitialize_batch_norms(network, layers, masks, fresh, self.moments)
        return report

    def select(self, network: Network, batch: TensorDictBase, layers: list[TracedLayer]) -> dict[str, Tensor]:
        """Return a mask of dormant units for each module.

        Raises:
            UserError: ``modules`` matches nothing.
        """
        inner = [layer for layer in layers if layer.trained and not layer.output]
        chosen = [layer for layer in inner if self._acts_on(layer)]
        if not chosen:
            names = ", ".join(layer.name for layer in inner[:6]) or "none"
            raise UserError(
                f"modules='{self.modules}' matches no module that can be revived; modules with "
                f"units: {names}{', …' if len(inner) > 6 else ''}"
            )
        statistics = measure_units(network, batch, chosen, chunk_size=scoring_chunk(network, batch, self.memory))
        return {
            layer.name: dormant_units(
                self.criterion,
                statistics[layer.name],
                tau=self.tau,
                quantile=self.quantile,
                generator=network.generator,
                groups=3 if self.split_qkv and layer.name.endswith("qkv") else 1,
            )
            for layer in chosen
        }

    def revive(self, network: Network, layers: list[TracedLayer], masks: dict[str, Tensor], fresh: nn.Module) -> Report:
        """Copy the weights of the masked units from ``fresh``.

        If a LayerNorm precedes the activation of a hidden unit, both the unit's entry in the norm and its row in the
        module before the norm are reinitialized.
        """
        masks = include_normalized_layers(layers, masks) if self.modules == "hidden" else masks
        report = Report(units=masks, parameters=reinitialize_units(network, layers, masks, fresh, self.moments))
        for name, mask in masks.items():
            report.note(name, revived=float(mask.sum()), units=float(len(mask)))
        return report

    def _acts_on(self, layer: TracedLayer) -> bool:
        if layer.residual and not self.residual_writers:
            return False
        if self.modules == "hidden":
            return layer.hidden
        return self.modules == "all" or matches(self.modules, layer.name)
