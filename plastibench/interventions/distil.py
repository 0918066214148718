"""Distil: after any surgery, a few gradient steps back to the old outputs; the plain alternative to recoupling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tensordict import TensorDictBase
from torch import Tensor

from plastibench.config.options import option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention, Report
from plastibench.interventions.wrapper import Wrapper
from plastibench.nn.batch_outputs import of_layers
from plastibench.nn.branches import merged_outputs
from plastibench.nn.dataflow import trace
from plastibench.nn.finetune import Objective, finetune
from plastibench.nn.network import Network, as_batch, as_evaluated
from plastibench.nn.refit import teacher_of


@register_intervention(
    "distil",
    "Apply another intervention (default low-gradient-quantile), then take 20 gradient steps towards the "
    "old outputs (a control)",
)
@register_intervention("shrink-perturb-distil", "Shrink & Perturb, then distil", inner="shrink-perturb")
@register_intervention("reset-distil", "Full reset, then distil", inner="reset")
@dataclass
class Distil(Wrapper):
    """Let another intervention act, then take Adam steps on the squared error to the outputs of the network before.

    The control for Recouple: what gradient descent on the same batch achieves in ``steps`` steps, or in the same time
    (``seconds``). The error is the mean over samples and units, added up where a network has several output layers.
    Eval mode, so no dropout, and buffers stay. The network's optimizer starts anew.
    """

    kind = "wrapper"
    extra_compute = "20 gradient steps each time"

    inner: str | Intervention = option("low-gradient-quantile", "the intervention that acts first: a registered name")
    steps: int = option(20, "gradient steps", low=0)
    seconds: float | None = option(
        None, "take steps for so long instead (no two runs are then the same); none: so many steps", low=0
    )
    lr: float = option(1e-3, "learning rate of the steps", low=0)
    minibatch: int = option(64, "samples of the representative batch per step", low=1)

    def intervene(self, network: Network, batch: TensorDictBase) -> Report:
        """Act, then descend."""
        batch = as_batch(batch)
        objective = self._objective(network, batch)
        report = self._inner.intervene(network, batch)
        taken = finetune(
            network,
            batch,
            objective,
            steps=self.steps,
            seconds=self.seconds,
            lr=self.lr,
            minibatch=self.minibatch,
        )
        report.parameters += sum(p.numel() for p in network.module.parameters()) if taken else 0
        for unit in trace(network, batch):
            if unit.output:
                report.note(unit.name, steps=float(taken))
        return report

    def _objective(self, network: Network, batch: TensorDictBase) -> Objective:
        """What to make small, from the network as it is before the inner intervention."""
        outputs = merged_outputs(network.module, [unit.name for unit in trace(network, batch) if unit.output])
        teacher = teacher_of(network)

        def error(part: TensorDictBase) -> Tensor:
            with as_evaluated(teacher), torch.no_grad():
                wanted = of_layers(network, teacher, part, outputs)
            found = of_layers(network, network.module, part, outputs)
            return torch.stack([F.mse_loss(a, b) for a, b in zip(found, wanted, strict=True)]).sum()

        return error
