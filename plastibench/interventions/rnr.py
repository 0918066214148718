"""Revive And Recouple (RnR), the method of the paper."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Literal

from tensordict import TensorDictBase

from plastibench.config.errors import UserError
from plastibench.config.options import matches, option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention, Report
from plastibench.interventions.recouple import with_fits
from plastibench.interventions.revive import Revive
from plastibench.nn.dataflow import trace
from plastibench.nn.dormancy import Criterion
from plastibench.nn.least_squares import Fit, Solver, SolverName
from plastibench.nn.memory import MemoryPlan, refit_plan
from plastibench.nn.network import Network, as_batch
from plastibench.nn.refit import announce, frozen_copy, refit, refit_pair, snapshot
from plastibench.nn.row_order import RowOrder, row_order
from plastibench.nn.selectors import attention_of, require_match, selector
from plastibench.nn.traced_layer import TracedLayer


@register_intervention(
    "rnr", "Revive And Recouple (the paper): reinitialize dormant units, then refit the modules that read them"
)
@register_intervention(
    "rnr-decay", "rnr that multiplies the revived fraction by 0.7 after each intervention", decay=0.7
)
@register_intervention("rnr-mlp", "rnr that refits MLP blocks only", refit="mlp")
@register_intervention("rnr-attention", "rnr that refits attention blocks only", refit="attention")
@register_intervention("rnr-layernorm", "rnr that refits LayerNorms only", refit="layernorm")
@dataclass
class RnR(Intervention):
    """Reinitialize dormant units, then refit the modules that read them to preserve the network's outputs.

    Source: section 3 and Algorithm 1 of the paper. Choices that the paper leaves open are options. BatchNorm running
    statistics are not refitted, so the outputs of a ResNet drift again while these statistics adapt. Needs memory
    for the activations of a forward pass on twice the representative batch (``--representative``); if they do not fit
    into ``memory``, the batch is streamed.
    """

    kind = "units"
    extra_compute = "a forward and backward pass and least-squares fits per intervention"

    criterion: Criterion = option(
        "low-gradient-quantile", "score of a unit; the first four criteria use tau, the others quantile"
    )
    tau: float = option(1.0, "revive units whose score is at most this multiple of the layer's mean", low=0)
    quantile: float = option(0.4, "fraction of each layer to revive, lowest scores first", low=0, high=1)
    modules: str = option("all", "modules to revive: all, hidden, or a regular expression of names")
    residual_writers: bool = option(True, "also revive units of modules that write into a residual stream")
    split_qkv: bool = option(False, "score q, k and v of a joint projection separately")
    targets: Literal["global", "local"] = option(
        "global", "refit to the outputs of the original network, or of the network just before each revive step"
    )
    scoring: Literal["once", "per-layer"] = option(
        "once", "score all units once, or again before each layer (Algorithm 1)"
    )
    solver: SolverName = option("delta-ridge", "solver of the linear systems; pinv is the formula in the paper")
    ridge: float = option(
        10.0, "penalty, relative to the mean diagonal of the Gram matrix (unused by pinv; for ridge use 0.01)", low=0
    )
    max_growth: float = option(
        0.0, "raise the penalty until no weight norm grows by more than this factor; 0: no limit", low=0
    )
    # Options added later default to None, which keeps the id of older specs unchanged.
    decay: float | None = option(
        None,
        "multiply tau and quantile by this factor after each intervention, to revive fewer units (default: 1)",
        low=0,
        high=1,
    )
    refit: str | None = option(
        None, "modules to refit: mlp, attention, layernorm, or a regular expression of names (default: all)"
    )
    memory: float | None = option(
        None, "GiB of activations to hold at once; larger batches are streamed in chunks (default: 1)", low=0.001
    )

    def __post_init__(self) -> None:
        self._interventions = 0

    def prepare(self, network: Network) -> None:
        """Check that the selected modules exist."""
        self._reviver().prepare(network)
        if self.refit not in (None, "mlp", "attention", "layernorm"):
            require_match(self.refit, network.module, "refit")

    def intervene(self, network: Network, batch: TensorDictBase) -> Report:
        """Revive all modules except the last, and refit all except the first, in execution order.

        Raises:
            UserError: No module is selected to be revived or refitted.
        """
        batch = as_batch(batch)
        layers = trace(network, batch)
        refitted = self._refitted(network, batch, layers)
        plan = refit_plan(network, batch, self.memory)
        order = row_order(network, batch, layers, plan.chunk)
        announce("rnr", order)
        report = self._act(network, batch, layers, refitted - order.moving, order, plan)
        self._interventions += 1
        return report

    def state_dict(self) -> dict[str, Any]:
        """Return the number of interventions so far."""
        return {"interventions": self._interventions}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the number of interventions. Older checkpoints do not contain it."""
        self._interventions = state.get("interventions", 0)

    def _act(
        self,
        network: Network,
        batch: TensorDictBase,
        layers: list[TracedLayer],
        refitted: set[str],
        order: RowOrder,
        plan: MemoryPlan,
    ) -> Report:
        if self.targets == "global" and self.scoring == "once":
            before = snapshot(layers)
            report = self._reviver().intervene(network, batch)
            wanted = refitted.__contains__
            fits = refit(network, batch, layers, before, report.units, wanted, self._solver(), order, plan)
            return with_fits(report, layers, fits, report.units)
        return self._pair_by_pair(network, batch, layers, refitted, plan.chunk)

    def _pair_by_pair(
        self, network: Network, batch: TensorDictBase, layers: list[TracedLayer], refitted: set[str], chunk_size: int
    ) -> Report:
        """Run Algorithm 1 literally: about one forward pass of network and teacher per pair of modules."""
        reviver, fresh, teacher = self._reviver(), network.fresh(), frozen_copy(network)
        masks = reviver.select(network, batch, layers)
        report, fits = Report(), dict[str, Fit]()
        for layer, reader in itertools.pairwise(layers):
            if layer.name in masks:
                if self.scoring == "per-layer":
                    masks = reviver.select(network, batch, layers)
                if self.targets == "local":
                    teacher = frozen_copy(network)
                done = reviver.revive(network, layers, {layer.name: masks[layer.name]}, fresh)
                report.units.update(done.units)
                report.modules.update(done.modules)
                report.parameters += done.parameters
            if reader.name not in refitted:
                continue
            fit = refit_pair(network, batch, teacher, reader, self._solver(), chunk_size=chunk_size)
            if fit is not None:
                fits[reader.name] = fit
        return with_fits(report, layers, fits, {})

    def _refitted(self, network: Network, batch: TensorDictBase, layers: list[TracedLayer]) -> set[str]:
        """Return the names of the modules to refit."""
        readers = [layer for layer in layers[1:] if layer.trained]
        if self.refit is None:
            return {layer.name for layer in readers}
        if self.refit in ("mlp", "attention", "layernorm"):
            outputs, attention = [layer.name for layer in layers if layer.output], attention_of(network, batch)
            chosen = selector(self.refit, network.module, outputs, attention)
            found = {layer.name for layer in readers if chosen(layer.name, layer.module)}
        else:
            found = {layer.name for layer in readers if matches(self.refit, layer.name)}
        if not found:
            names = ", ".join(layer.name for layer in readers[:6])
            raise UserError(
                f"refit='{self.refit}' matches no module that can be refitted; modules of this network: {names}, …"
            )
        return found

    def _reviver(self) -> Revive:
        decay = 1.0 if self.decay is None else self.decay**self._interventions
        return Revive(
            self.criterion,
            self.tau * decay,
            self.quantile * decay,
            self.modules,
            self.residual_writers,
            self.split_qkv,
            outgoing="keep",
            memory=self.memory,
        )

    def _solver(self) -> Solver:
        return Solver(self.solver, self.ridge, self.max_growth)
