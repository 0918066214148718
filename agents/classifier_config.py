"""How a classifier is trained: the options that every classifier shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from plastibench.config.errors import UserError
from plastibench.config.options import option

if TYPE_CHECKING:
    import torch
    from torch import nn

    from plastibench.agents.classifier import Classifier
    from plastibench.envs.task_stream import TaskStream


@dataclass(frozen=True)
class ClassifierConfig:
    """Training options; the defaults are the paper's Table 1 and A.2 for ViT-Tiny."""

    kind = "classifier"

    lr: float = option(3e-3, "peak learning rate of AdamW", low=0)
    weight_decay: float = option(0.05, "decoupled weight decay, on every parameter as in Lee et al.", low=0)
    batch_size: int = option(256, "samples per update", low=1)
    clip: float = option(0.5, "largest gradient norm; 0: no clipping", low=0)
    warmup: float = option(0.1, "share of a task's updates over which the learning rate rises from 0", low=0, high=1)
    schedule: Literal["cosine", "constant"] = option("cosine", "learning rate after the warm-up, within each task")
    precision: Literal["float32", "tf32", "bfloat16"] = option("float32", "arithmetic of matrix products")
    compile: Literal["no", "default", "reduce-overhead"] = option("no", "torch.compile mode of forward and backward")

    def module(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """The untrained network for images of ``shape`` (C, H, W)."""
        raise NotImplementedError

    def build(self, env: TaskStream, seed: int, device: torch.device) -> Classifier:
        """The agent for a task stream."""
        from plastibench.agents.classifier import Classifier
        from plastibench.envs.task_stream import TaskStream

        if not isinstance(env, TaskStream):
            raise UserError("agent: a classifier learns from supervised streams, as cl-*; for rl-* take dqn-* or sac-*")
        return Classifier(self, env, seed, device)
