"""Detect replaced, added or enlarged modules, fast enough to check at every update."""

from __future__ import annotations

import torch
from torch import nn


class Architecture:
    """The modules of a network and the shapes of their parameters at one moment."""

    def __init__(self, module: nn.Module) -> None:
        self._parts = [(child, _part(child)) for child in module.modules()]

    def unchanged(self) -> bool:
        """Whether every module still has the same children and parameters of the same shapes."""
        return all(_part(child) == known for child, known in self._parts)


def _part(module: nn.Module) -> tuple[list[nn.Module | None], list[torch.Size]]:
    own = module._parameters
    return [*module._modules.values()], [p.shape for p in own.values() if p is not None] if own else []
