"""Shrink & Perturb (Ash & Adams 2020), including SR-SPR (D'Oro et al. 2023) and BBF (Schwarzer et al. 2023)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor

from plastibench.config.errors import UserError
from plastibench.config.options import option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention, Report
from plastibench.interventions.output_layers import output_layers, reinitialize_layers
from plastibench.nn.branches import reinitializable
from plastibench.nn.network import Network
from plastibench.nn.optimizer_state import clear_state
from plastibench.nn.parameters import initial_values


@register_intervention(
    "shrink-perturb",
    "Shrink the weights and add fresh ones: θ ← keep·θ + noise·fresh (Shrink & Perturb, Ash & Adams 2020)",
)
@register_intervention(
    "shrink-perturb-keep80",
    "Shrink & Perturb with the paper's α=0.8 read as in Ash & Adams 2020: keep 80 %",
    keep=0.8,
    noise=0.2,
)
@register_intervention(
    "shrink-perturb-keep20",
    "Shrink & Perturb with the paper's α=0.8 read as in Lee et al. 2024: keep 20 %, add 80 % of the initial weights",
    keep=0.2,
    noise=0.8,
    source="initial",
)
@register_intervention(
    "sr-spr",
    "Shrink & Perturb that keeps 80 % and reinitializes the output layers (D'Oro et al. 2023); use with "
    "--every and --until",
    keep=0.8,
    noise=0.2,
    heads="reinitialize",
)
@register_intervention(
    "bbf",
    "Shrink & Perturb that keeps 50 % and reinitializes the output layers (Schwarzer et al. 2023); use "
    "with --every and --until",
    keep=0.5,
    noise=0.5,
    heads="reinitialize",
)
@dataclass
class ShrinkPerturb(Intervention):
    """Shrink the weights and add fresh or initial weights θ': θ ← keep·θ + noise·θ' (Ash & Adams 2020).

    ``keep`` and ``noise`` replace the usual α, because repositories disagree on whether α=0.8 keeps 80 % (Ash & Adams,
    BBF) or 20 % (Lee et al.) of the weights. The code of Ash & Adams (JordanAsh/warm_start) has the defaults 0.4 and
    0.1; the defaults here are those of SR-SPR and of the RnR paper (α=0.8), which act repeatedly rather than once. All
    trained parameters are changed, including LayerNorms and position embeddings, as in both sources. Buffers and frozen
    parameters are kept. The optimizer state is reset.

    SR-SPR (0.8/0.2) and BBF (0.5/0.5) reinitialize everything after the encoder instead of shrinking it. Here
    ``heads="reinitialize"`` reinitializes the output layers only. BBF's code keeps the optimizer state of the encoder.
    """

    kind = "reset"
    extra_compute = "1 copy of the weights if source=initial"

    keep: float = option(0.8, "factor of the current weights θ", low=0, high=1)
    noise: float = option(0.2, "factor of the added weights θ'", low=0, high=1)
    source: Literal["fresh", "initial"] = option(
        "fresh", "added weights: freshly initialized, or the initial weights of the run"
    )
    heads: Literal["same", "reinitialize"] | None = option(
        None,
        "output layers: shrink and perturb them too (same, default), or reinitialize them",
        old_values={"redraw": "reinitialize"},
    )

    def __post_init__(self) -> None:
        self._initial: dict[str, Tensor] = {}

    def prepare(self, network: Network) -> None:
        """Store the initial weights if they are needed."""
        if self.source == "initial":
            self._initial = {name: p.detach().clone() for name, p in network.module.named_parameters()}

    @torch.no_grad()
    def intervene(self, network: Network, batch: TensorDictBase) -> Report:
        """Shrink and perturb all trained parameters."""
        if self.source == "initial" and not self._initial:
            self.prepare(network)
        parameters = reinitializable(network.module)
        heads = output_layers(network, batch) if self.heads == "reinitialize" else {}
        stuck = [name for name in network.not_reinitializable() if name in parameters]
        if stuck and not self._initial:
            raise UserError(
                f"shrink-perturb: cannot draw new values for {stuck[0]}: unknown initialization; pass a builder as "
                "Network(…, fresh=…), or set source=initial"
            )
        fresh = dict(network.fresh().named_parameters()) if heads or not self._initial else {}
        if self._initial:  # the initial values of parameters that were added since are the current ones
            initial_values(self._initial, dict(network.module.named_parameters()))
        others = self._initial or fresh
        for name, parameter in parameters.items():
            if name.rpartition(".")[0] not in heads:
                parameter.mul_(self.keep).add_(others[name], alpha=self.noise)
        report = reinitialize_layers(heads, parameters, fresh)
        report.parameters = sum(p.numel() for p in parameters.values())
        clear_state(network.optimizer, list(parameters.values()))
        return report

    def state_dict(self) -> dict[str, Any]:
        """Return the initial weights."""
        return {"initial": copy.copy(self._initial)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the initial weights."""
        self._initial = state["initial"]
