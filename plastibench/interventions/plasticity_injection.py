"""Plasticity injection (Nikishin et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from tensordict import TensorDictBase

from plastibench.config.errors import UserError
from plastibench.config.options import option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention, Report
from plastibench.nn.branches import add_branch, branched_outputs
from plastibench.nn.computed_weights import copied
from plastibench.nn.network import Network, as_batch, as_evaluated, seeded
from plastibench.nn.stages import Stage, head_stages, tail_stages
from plastibench.nn.units import output_layers

_TRIAL = 7_919_317  # a seed used nowhere else: a branch equal to the tail would hide code that mixes the branches


@register_intervention("plasticity-injection")
@dataclass
class PlasticityInjection(Intervention):
    """Freeze the last layers, and add a newly initialized copy minus its initial value (Nikishin et al. 2023).

    The tail h(x) of the network becomes h(x) + g(x) - g₀(x): h is frozen, g is a newly initialized trained copy, and g₀
    is a frozen copy of the initial g. The outputs do not change at the injection. Afterwards g and the layers before
    the tail are trained; gradients flow through all three branches, as in timoklein/plasticity-injection-torch.
    (Plasticine detaches g₀ and keeps training h.) Frozen weights are removed from the optimizer, so weight decay does
    not change them. A target network gets the same g and g₀ next to its own h, which follows the frozen h.

    ``part`` is one of:

    - ``tail``: the layers after the encoder, as in the source, if the network has one (all RL agents). Otherwise the
      last k blocks, final norm and head of a ViT or ResNet, or the last k hidden layers and the output layer.
    - ``head``: the output layers only. If an output layer is one Linear, as in all networks here, the sum of its
      branches is a Linear as well. The injection then only resets the optimizer state and changes what weight decay
      acts on.

    In training mode dropout draws a different mask in each branch, and BatchNorm statistics are updated in all of them.
    Each injection adds twice the tail, in memory and time. Unit-level methods and metrics skip frozen modules. They
    treat the last layer of a branch as one that writes into a residual stream if the branch ends before custom code of
    the network, such as the last block of a ViT or the layers before the head of DQN.
    """

    kind = "architecture"
    grows = True
    extra_memory = 0.5  # copies of the parameters of vit-nano
    extra_compute = "three passes through the tail per update"

    part: Literal["tail", "head"] = option("tail", "part to freeze and copy: the last layers, or the output layers")
    k: int = option(1, "for tail, in a network without an encoder: number of last blocks or hidden layers", low=1)
    times: int = option(1, "number of injections; later interventions do nothing", low=1)

    def __post_init__(self) -> None:
        self._network: Network | None = None
        self._stages: list[Stage] = []
        self._outputs: tuple[str, ...] = ()  # names before the first injection
        self._done = 0

    def prepare(self, network: Network) -> None:
        """Find the tail.

        Raises:
            UserError: The network has no tail that can be frozen and copied.
        """
        self._network = network
        self._outputs = output_layers(network.module, network.outputs)
        if self.part == "head":
            self._stages = head_stages(network.module, self._outputs)
        else:
            self._stages = tail_stages(network.module, self._outputs, self.k)

    def intervene(self, network: Network, batch: TensorDictBase) -> Report:
        """Inject, at the first ``times`` calls.

        Raises:
            UserError: The tail cannot be split into branches. The network is unchanged.
        """
        if self._network is None:
            self.prepare(network)
        if self._done >= self.times or network.is_replica:
            return Report()
        self._try(network, as_batch(batch)[:3])
        return self._inject(network)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of injections."""
        return {"done": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Repeat the injections, so that saved weights fit the network."""
        for _ in range(self._done, state["done"]):
            if self._network is not None and not self._network.is_replica:
                self._inject(self._network)
        self._done = state["done"]

    def _inject(self, network: Network) -> Report:
        before = set(network.module.parameters())
        network.rebuild(self._change(network))
        self._done += 1
        for each in (network, *network.replicas):
            each.outputs = branched_outputs(self._stages, self._outputs, 1 + 2 * self._done)
        return Report(parameters=sum(p.numel() for p in set(network.module.parameters()) - before if p.requires_grad))

    def _change(self, network: Network) -> partial[None]:
        return partial(add_branch, stages=self._stages, outputs=self._outputs, draw=network.builder())

    @torch.no_grad()
    def _try(self, network: Network, batch: TensorDictBase) -> None:
        """Check on a copy that the branches preserve the network's loss."""
        trial = copied(network.module)
        with as_evaluated(trial):
            expected = network.loss(trial, batch)
            try:
                with seeded(_TRIAL):
                    self._change(network)(trial)
                found = network.loss(trial.to(network.device).eval(), batch)
            except (RuntimeError, AttributeError, TypeError, ValueError) as error:
                raise self._unfit(network) from error
        if not torch.allclose(found, expected, rtol=1e-4, atol=1e-6):
            raise self._unfit(network)

    def _unfit(self, network: Network) -> UserError:
        names = ", ".join(name for stage in self._stages for name in stage[:1])
        return UserError(
            f"plasticity-injection: the tail ({names}) of {type(network.module).__name__} is not a sequential chain of "
            "modules, so it cannot be split into branches; use part=head"
        )
