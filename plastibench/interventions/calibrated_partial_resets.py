"""Calibrated partial resets: units fade towards fresh ones, the more so the smaller their gradients (LucMc 2026)."""

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
from plastibench.nn.dataflow import TracedLayer, trace
from plastibench.nn.loss_gradients import weights_of
from plastibench.nn.network import Network, as_batch
from plastibench.nn.reinit import broadcast_rows


@register_intervention("calibrated-partial-resets")
@dataclass
class CalibratedPartialResets(Intervention):
    """Move every hidden unit a small way towards a fresh one; how far follows from its gradients during training.

    The score u_i, at first 1, is the running average of ``mean_j |∂L/∂W_ij|`` over the layer's mean. A unit moves by
    ``p_i = rate · min(2σ(-sharpness · (u_i - threshold)), 1)``: incoming weights ``W_i ← (1-p_i)·W_i + p_i·W̃_i`` with
    fresh W̃, and every known reader's column ``← (1-p_i)·column``. Then scores start again at 1.

    Followed: LucMc/continual-learning (``optim/cpr.py``): biases and optimizer state stay as they are, output layers
    are spared. There it acts every 1000 updates; here when the run's schedule says, or by itself with ``every``.
    """

    kind = "units"
    extra_memory = 0.012  # copies of the parameters of vit-nano

    rate: float = option(0.015, "largest share by which a unit moves (ρ)", low=0, high=1)
    sharpness: float = option(16.0, "how sharply units above the threshold are spared (κ)", low=0)
    threshold: float = option(1.0, "score up to which a unit moves by the whole rate", low=0)
    decay: float = option(0.99, "of the running average of scores, per update", low=0, high=1)
    every: int = option(0, "act every so many updates, beside the run's schedule; 0: never", low=0)

    def __post_init__(self) -> None:
        self._scores: dict[str, Tensor] = {}
        self._updates = 0
        self._batch: TensorDictBase | None = None

    def penalty(self, network: Network, batch: TensorDictBase) -> Tensor | None:
        """No penalty: the batch shows which modules run, once it is time to act."""
        self._batch = batch if self.every else None
        return None

    @torch.no_grad()
    def after_update(self, network: Network) -> None:
        """Average the scores; act every ``every`` updates.

        Raises:
            UserError: It is time to act by itself, and ``penalty`` was not called in this update.
        """
        for name, weight in weights_of(network.module).items():
            if weight.grad is not None:
                size = weight.grad.flatten(1).abs().mean(1)
                score = size / size.mean().clamp_min(torch.finfo(size.dtype).tiny)
                self._score(name, weight).lerp_(score, 1 - self.decay)
        self._updates += 1
        if self.every and self._updates % self.every == 0:
            if self._batch is None:
                raise UserError("calibrated-partial-resets: every needs penalty(network, batch) before each update")
            self._act(network, trace(network, as_batch(self._batch)))
        self._batch = None

    @torch.no_grad()
    def intervene(self, network: Network, batch: TensorDictBase) -> Report:
        """Act now."""
        units = trace(network, as_batch(batch))
        report = Report()
        for name, shares in self._act(network, units).items():
            report.parameters += network.module.get_parameter(f"{name}.weight").numel()
            report.note(name, share=float(shares.mean()))
        return report

    def state_dict(self) -> dict[str, Any]:
        """Scores and the number of updates."""
        return {"scores": {name: score.clone() for name, score in self._scores.items()}, "updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore scores and the number of updates."""
        self._scores, self._updates = dict(state["scores"]), state["updates"]

    def _act(self, network: Network, units: list[TracedLayer]) -> dict[str, Tensor]:
        """Move every hidden unit, in execution order; how far, by module."""
        weights, fresh = weights_of(network.module), network.fresh()
        hidden = [unit for unit in units if unit.name in weights and not unit.output]
        moved = {unit.name: self._shares(self._score(unit.name, weights[unit.name])) for unit in hidden}
        for unit in hidden:
            weight, shares = weights[unit.name], moved[unit.name]
            weight.lerp_(fresh.get_parameter(f"{unit.name}.weight"), broadcast_rows(shares, weight).expand_as(weight))
            for reader, places in unit.outgoing.items():
                if reader in weights:
                    read = weights[reader]
                    columns = shares[places.to(shares.device)]
                    read.mul_(1 - columns.reshape(1, -1, *[1] * (read.ndim - 2)))
        self._scores.clear()
        return moved

    def _shares(self, score: Tensor) -> Tensor:
        return self.rate * (2 * torch.sigmoid(-self.sharpness * (score - self.threshold))).clamp_max(1.0)

    def _score(self, name: str, weight: nn.Parameter) -> Tensor:
        """The running score of a module's units. [H]."""
        if name not in self._scores:
            self._scores[name] = torch.ones(len(weight), dtype=weight.dtype, device=weight.device)
        elif self._scores[name].device != weight.device:  # loaded from elsewhere
            self._scores[name] = self._scores[name].to(weight.device)
        return self._scores[name]
