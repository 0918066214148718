"""Calibrated partial resets: move units towards fresh ones, more if their gradients are small (LucMc 2026)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.config.errors import UserError
from plastibench.config.options import option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention, Report
from plastibench.nn.dataflow import trace
from plastibench.nn.network import Network, as_batch
from plastibench.nn.parameters import layer_weights
from plastibench.nn.reinit import broadcast_rows
from plastibench.nn.traced_layer import TracedLayer


@register_intervention("calibrated-partial-resets")
@dataclass
class CalibratedPartialResets(Intervention):
    """Move each unit slightly towards a fresh one, more if its gradients are small (LucMc/continual-learning 2026).

    The score u_i of a hidden unit starts at 1 and is the running average of ``mean_j |∂L/∂W_ij|``, divided by the mean
    of its layer. A unit moves by the fraction ``p_i = rate · min(2σ(-sharpness · (u_i - threshold)), 1)``: its incoming
    weights become ``(1-p_i)·W_i + p_i·W̃_i`` with fresh weights W̃, and the columns that read it are multiplied by
    ``1-p_i``. All scores are then reset to 1.

    Follows LucMc/continual-learning (``optim/cpr.py``): biases, output layers and optimizer state are kept. The source
    acts every 1000 updates; this class acts at the interventions of the run or, if set, every ``every`` updates.
    """

    kind = "units"
    extra_memory = 0.012  # copies of the parameters of vit-nano

    rate: float = option(0.015, "largest fraction by which a unit moves (ρ)", low=0, high=1)
    sharpness: float = option(16.0, "steepness of the decrease above the threshold (κ)", low=0)
    threshold: float = option(1.0, "score up to which a unit moves by the full rate", low=0)
    decay: float = option(0.99, "decay of the running average of scores, per update", low=0, high=1)
    every: int = option(0, "updates between additional resets, besides the interventions of the run; 0: none", low=0)

    def __post_init__(self) -> None:
        self._scores: dict[str, Tensor] = {}
        self._updates = 0
        self._batch: TensorDictBase | None = None

    def penalty(self, network: Network, batch: TensorDictBase) -> Tensor | None:
        """Add no penalty. Store the batch for the next reset."""
        self._batch = batch if self.every else None
        return None

    @torch.no_grad()
    def after_update(self, network: Network) -> None:
        """Update the scores, and reset every ``every`` updates.

        Raises:
            UserError: A reset is due, but ``penalty`` was not called in this update.
        """
        for name, weight in layer_weights(network.module).items():
            if weight.grad is not None:
                size = weight.grad.flatten(1).abs().mean(1)
                score = size / size.mean().clamp_min(torch.finfo(size.dtype).tiny)
                self._score(name, weight).lerp_(score, 1 - self.decay)
        self._updates += 1
        if self.every and self._updates % self.every == 0:
            if self._batch is None:
                raise UserError(
                    "calibrated-partial-resets: with every > 0, call penalty(network, batch) before each update"
                )
            self._act(network, trace(network, as_batch(self._batch)))
        self._batch = None

    @torch.no_grad()
    def intervene(self, network: Network, batch: TensorDictBase) -> Report:
        """Move every hidden unit."""
        units = trace(network, as_batch(batch))
        report = Report()
        for name, fractions in self._act(network, units).items():
            report.parameters += network.module.get_parameter(f"{name}.weight").numel()
            report.note(name, moved_fraction=float(fractions.mean()))
        return report

    def state_dict(self) -> dict[str, Any]:
        """Return the scores and the number of updates."""
        return {"scores": {name: score.clone() for name, score in self._scores.items()}, "updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the scores and the number of updates."""
        self._scores, self._updates = dict(state["scores"]), state["updates"]

    def _act(self, network: Network, units: list[TracedLayer]) -> dict[str, Tensor]:
        """Move every hidden unit, in execution order. Return the fractions by module."""
        weights, fresh = layer_weights(network.module), network.fresh()
        hidden = [unit for unit in units if unit.name in weights and not unit.output]
        moved = {unit.name: self._fractions(self._score(unit.name, weights[unit.name])) for unit in hidden}
        for unit in hidden:
            weight, fractions = weights[unit.name], moved[unit.name]
            weight.lerp_(
                fresh.get_parameter(f"{unit.name}.weight"), broadcast_rows(fractions, weight).expand_as(weight)
            )
            for reader, places in unit.outgoing.items():
                if reader in weights:
                    read = weights[reader]
                    columns = fractions[places.to(fractions.device)]
                    read.mul_(1 - columns.reshape(1, -1, *[1] * (read.ndim - 2)))
        self._scores.clear()
        return moved

    def _fractions(self, score: Tensor) -> Tensor:
        return self.rate * (2 * torch.sigmoid(-self.sharpness * (score - self.threshold))).clamp_max(1.0)

    def _score(self, name: str, weight: nn.Parameter) -> Tensor:
        """Return the running scores of the units of a module. [H]."""
        known = self._scores.get(name)
        if known is None or len(known) != len(weight):  # new, or a layer that has grown
            self._scores[name] = torch.ones(len(weight), dtype=weight.dtype, device=weight.device)
        elif known.device != weight.device:  # loaded on another device
            self._scores[name] = known.to(weight.device)
        return self._scores[name]
