"""The training options that all classifiers share. Does not import torch, so that ``--help`` stays fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from plastibench.agents.optimizers import OptimizerOptions
from plastibench.config.options import option

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ClassifierOptions(OptimizerOptions):
    """Training options. The defaults are those of the paper for ViT-Tiny (Table 1, A.2)."""

    kind = "classifier"
    version = 1  # increase it when the same options create a different agent; versions are never compared

    lr: float = option(3e-3, "peak learning rate", low=0)
    weight_decay: float = option(0.05, "weight decay, of all parameters by default (Lee et al. 2024)", low=0)
    batch_size: int = option(256, "samples per update", low=1, high=1_000_000)
    clip: float = option(0.5, "maximum gradient norm; 0: no clipping", low=0)
    warmup: float = option(0.1, "fraction of a task's updates used for linear learning-rate warm-up", low=0, high=1)
    schedule: Literal["cosine", "constant"] = option(
        "cosine", "learning-rate schedule after the warm-up, within each task"
    )
    restart_optimizer: bool | None = option(
        None, "create a new optimizer for every task, instead of keeping its state (default: true)"
    )
    precision: Literal["float32", "tf32", "bfloat16"] = option("float32", "precision of matrix products")
    compile: Literal["no", "default", "reduce-overhead"] = option("no", "torch.compile mode")

    def module(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Build the untrained network for images of ``shape`` (C, H, W)."""
        raise NotImplementedError
