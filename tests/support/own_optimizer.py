"""Optimizers as a user writes them, and some that cannot be used."""

from __future__ import annotations

from typing import Any

import torch


class Signs(torch.optim.Optimizer):
    """Steps by the sign of an average gradient (signSGD with momentum)."""

    def __init__(self, params: Any, lr: float = 1e-3, momentum: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Step."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                average = self.state[p].setdefault("average", torch.zeros_like(p))
                average.lerp_(p.grad, 1 - group["momentum"])
                p.sub_(average.sign(), alpha=group["lr"])


class NeedsClosure(Signs):
    """Needs the loss."""

    def step(self, closure: Any) -> None:  # type: ignore[override]
        """Step."""


class OwnState(Signs):
    """Keeps an object that a checkpoint cannot hold."""

    def step(self, closure: Any = None) -> None:
        """Step."""
        super().step()
        for p in self.param_groups[0]["params"]:
            self.state[p]["object"] = Signs


def function(params: Any, lr: float) -> int:
    """Is no optimizer."""
    return 3
