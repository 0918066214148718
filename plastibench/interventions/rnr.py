"""Revive And Recouple (RnR): the paper's method."""

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
from plastibench.nn.dataflow import TracedLayer, must_match, trace
from plastibench.nn.dormancy import Criterion
from plastibench.nn.least_squares import Fit, Solver, SolverName
from plastibench.nn.network import Network, as_batch
from plastibench.nn.refit import refit_in_one_pass, refit_pair, snapshot, teacher_of
from plastibench.nn.selectors import selector


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
    """Re-draw dormant units, then refit every reader so that the network still returns what it did (paper, Alg. 1).

    Source: the paper's section 3. Where the paper is silent the options say what was chosen. The original and the
    refitted network share BatchNorm's running statistics, so in a ResNet what was recoupled moves again as these are
    learned anew. Memory: activations of an evaluation of twice the representative batch (``--representative``).
    """

    kind = "units"
    extra_compute = "a forward and backward pass each time, and its least-squares fits"

    criterion: Criterion = option("low-gradient-quantile", "how units are scored; the first four compare with tau")
    tau: float = option(1.0, "revive units whose score is at most this times the layer's mean", low=0)
    quantile: float = option(0.4, "share of each layer that is revived, lowest scores first", low=0, high=1)
    modules: str = option("all", "modules to revive: all, hidden, or a regular expression of names")
    residual_writers: bool = option(True, "revive modules that write into a residual stream, too")
    split_qkv: bool = option(False, "judge q, k and v of a joint projection apart")
    targets: Literal["global", "local"] = option(
        "global", "refit to the outputs of the original network, or to those just before each revive"
    )
    scoring: Literal["once", "per-layer"] = option("once", "score all units first, or anew before each layer (Alg. 1)")
    solver: SolverName = option("delta-ridge", "how each linear system is solved; pinv is the paper's formula")
    ridge: float = option(
        10.0, "penalty over the mean diagonal of the Gram matrix (none for pinv; ridge wants 0.01)", low=0
    )
    max_growth: float = option(
        0.0, "raise the penalty until no weight norm grows by more than this factor; 0: never", low=0
    )
    # None leaves the identity of runs that were made before an option existed as it was.
    decay: float | None = option(
        None,
        "factor of tau and quantile after each intervention, so that ever fewer are revived; none: 1",
        low=0,
        high=1,
    )
    refit: str | None = option(
        None, "modules to recouple: mlp, attention, layernorm, or a regular expression of names; none: all"
    )

    def __post_init__(self) -> None:
        self._interventions = 0

    def prepare(self, network: Network) -> None:
        """See that there is something to revive and to recouple."""
        self._reviver().prepare(network)
        if self.refit not in (None, "mlp", "attention", "layernorm"):
            must_match(self.refit, network.module, "refit")

    def intervene(self, network: Network, batch: TensorDictBase) -> Report:
        """Revive all modules but the last, and recouple all but the first, in execution order.

        Raises:
            UserError: Nothing is selected to revive or to recouple.
        """
        batch = as_batch(batch)
        units = trace(network, batch)
        refitted = self._refitted(network, units)
        report = self._act(network, batch, units, refitted)
        self._interventions += 1
        return report

    def state_dict(self) -> dict[str, Any]:
        """How often it has acted."""
        return {"interventions": self._interventions}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore how often it has acted; checkpoints of versions that did not count say nothing."""
        self._interventions = state.get("interventions", 0)

    def _act(self, network: Network, batch: TensorDictBase, units: list[TracedLayer], refitted: set[str]) -> Report:
        if self.targets == "global" and self.scoring == "once":
            before = snapshot(units)
            report = self._reviver().intervene(network, batch)
            fits = refit_in_one_pass(network, batch, units, before, report.units, refitted.__contains__, self._solver())
            return with_fits(report, units, fits, report.units)
        return self._pair_by_pair(network, batch, units, refitted)

    def _pair_by_pair(
        self, network: Network, batch: TensorDictBase, units: list[TracedLayer], refitted: set[str]
    ) -> Report:
        """Algorithm 1 to the letter: about one forward pass of the network and its teacher per pair of modules."""
        reviver, fresh, teacher = self._reviver(), network.fresh(), teacher_of(network)
        masks = reviver.select(network, batch, units)
        report, fits = Report(), dict[str, Fit]()
        for unit, reader in itertools.pairwise(units):
            if unit.name in masks:
                if self.scoring == "per-layer":
                    masks = reviver.select(network, batch, units)
                if self.targets == "local":
                    teacher = teacher_of(network)
                done = reviver.revive(network, units, {unit.name: masks[unit.name]}, fresh)
                report.units.update(done.units)
                report.modules.update(done.modules)
                report.parameters += done.parameters
            if reader.name not in refitted:
                continue
            fit = refit_pair(network, batch, teacher, reader, self._solver())
            if fit is not None:
                fits[reader.name] = fit
        return with_fits(report, units, fits, {})

    def _refitted(self, network: Network, units: list[TracedLayer]) -> set[str]:
        """Names of the modules to recouple."""
        readers = [unit for unit in units[1:] if unit.trained]
        if self.refit is None:
            return {unit.name for unit in readers}
        if self.refit in ("mlp", "attention", "layernorm"):
            chosen = selector(self.refit, network.module, [unit.name for unit in units if unit.output])
            found = {unit.name for unit in readers if chosen(unit.name, unit.module)}
        else:
            found = {unit.name for unit in readers if matches(self.refit, unit.name)}
        if not found:
            names = ", ".join(unit.name for unit in readers[:6])
            raise UserError(f"refit '{self.refit}' selects nothing to recouple in this network (it has {names}, …)")
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
        )

    def _solver(self) -> Solver:
        return Solver(self.solver, self.ridge, self.max_growth)
