"""One optimizer that combines several: Muon for matrices, AdamW for everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class CombinedOptimizer(torch.optim.Optimizer):
    """Optimizer that steps several optimizers, and shares their parameter groups and state."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        """Combine optimizers of different parameters; groups that are added later go to the last optimizer."""
        self._parts: tuple[torch.optim.Optimizer, ...] = ()
        super().__init__([{**group} for part in parts for group in part.param_groups], dict(parts[-1].defaults))
        self._parts = parts
        self._share([group for part in parts for group in part.param_groups])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the last part."""
        if not self._parts:
            super().add_param_group(param_group)
            return
        self._parts[-1].add_param_group(param_group)
        self._share([*self.param_groups, self._parts[-1].param_groups[-1]])

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step every part; a closure is evaluated once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore from :meth:`state_dict`."""
        super().load_state_dict(state_dict)  # creates new groups and a new state
        self._share(self.param_groups)

    def _share(self, groups: list[dict[str, Any]]) -> None:
        self.param_groups = groups
        start = 0
        for part in self._parts:
            count = len(part.param_groups)
            part.param_groups, part.state = groups[start : start + count], self.state
            start += count
