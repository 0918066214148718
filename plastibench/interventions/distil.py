"""Distil: after another intervention, take a few gradient steps towards the old outputs; a control for Recouple."""

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
from plastibench.nn.batch_outputs import layer_outputs
from plastibench.nn.branches import merged_outputs
from plastibench.nn.dataflow import trace
from plastibench.nn.finetune import Objective, finetune
from plastibench.nn.network import Network, as_batch, as_evaluated
from plastibench.nn.refit import frozen_copy


@register_intervention(
    "distil",
    "Apply another intervention (default low-gradient-quantile), then take 20 gradient steps towards the "
    "old outputs (a control)",
)
@register_intervention("shrink-perturb-distil", "Shrink & Perturb, then distil", inner="shrink-perturb")
@register_intervention("reset-distil", "Full reset, then distil", inner="reset")
@dataclass
class Distil(Wrapper):
    """Apply another intervention, then take Adam steps on the squared error to the outputs before the intervention.

    A control for Recouple: it shows what gradient descent on the same batch achieves in ``steps`` steps, or in the
    same time (``seconds``). The error is averaged over samples and units and summed over output layers. The steps run
    in eval mode, without dropout, and do not change buffers. The state of the network's optimizer is reset.
    """

    kind = "wrapper"
    extra_compute = "20 gradient steps per intervention"

    inner: str | Intervention = option(
        "low-gradient-quantile", "name of the inner intervention, which acts first", names="intervention"
    )
    steps: int = option(20, "number of gradient steps", low=0)
    seconds: float | None = option(None, "take steps for this long instead of a fixed number (not reproducible)", low=0)
    lr: float = option(1e-3, "learning rate of Adam", low=0)
    minibatch: int = option(64, "samples per step, drawn from the representative batch", low=1)

    def intervene(self, network: Network, batch: TensorDictBase) -> Report:
        """Apply the inner intervention, then take gradient steps."""
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
        """Return the loss of the gradient steps. Called before the inner intervention acts."""
        outputs = merged_outputs(network.module, [unit.name for unit in trace(network, batch) if unit.output])
        teacher = frozen_copy(network)

        def error(part: TensorDictBase) -> Tensor:
            with as_evaluated(teacher), torch.no_grad():
                wanted = layer_outputs(network, teacher, part, outputs)
            found = layer_outputs(network, network.module, part, outputs)
            return torch.stack([F.mse_loss(a, b) for a, b in zip(found, wanted, strict=True)]).sum()

        return error
