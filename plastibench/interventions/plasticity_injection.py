"""Plasticity injection (Nikishin et al. 2023)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from torch import nn

from plastibench.config.errors import UserError
from plastibench.config.options import option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention, Report
from plastibench.nn.branches import Stage, branch, branched_outputs, head_stages, outputs_of, tail_stages
from plastibench.nn.network import Network, as_batch, as_evaluated, seeded

_TRIAL = 7_919_317  # a seed that is no one's: a branch that happened to equal the tail would hide what mixes them


@register_intervention("plasticity-injection")
@dataclass
class PlasticityInjection(Intervention):
    """The last layers h become h(x) + g(x) - g⁰(x): h frozen, g newly drawn, g⁰ its frozen copy.

    Nothing that the network returns changes at that moment. Afterwards g learns, and what is before the tail does;
    its gradient flows through all three branches, as in timoklein/plasticity-injection-torch (frozen weights, inputs
    not detached; Plasticine detaches g⁰ and leaves h trained). Frozen weights leave the optimizer, so that weight decay
    no longer acts on them. A target network gets the same g and g⁰ beside its own h, which follows the frozen one.

    - ``tail``: in a network with an encoder (all agents that act) the layers after it, as in the source; else the last
      k blocks, final norm and head of a ViT or ResNet, or the last k hidden layers and the output layer.
    - ``head``: the output layers alone. Where each is one Linear, as in all networks here, their sum is one Linear
      too: a mere re-parameterisation, which only renews the optimizer's state and changes what weight decay pulls on.

    In training mode dropout draws another mask in each branch, and BatchNorm's statistics go on in all of them. Every
    injection adds twice the tail, in memory and time. Unit-level methods and metrics leave frozen modules out; the last
    layer of a branch that ends before code of the network's own (a ViT's last block, the layers before the head of
    DQN) counts as one that writes into a residual stream.
    """

    kind = "architecture"
    extra_memory = 0.5  # copies of the parameters of vit-nano
    extra_compute = "the tail three times"

    part: Literal["tail", "head"] = option("tail", "what is frozen and doubled: the last layers, or the output layers")
    k: int = option(1, "for tail: blocks (or hidden layers) that count, where there is no encoder", low=1)
    times: int = option(1, "how many of the calls inject, the first ones", low=1)

    def __post_init__(self) -> None:
        self._network: Network | None = None
        self._stages: list[Stage] = []
        self._outputs: tuple[str, ...] = ()  # as they were called at first
        self._done = 0

    def prepare(self, network: Network) -> None:
        """Find the tail.

        Raises:
            UserError: There is none.
        """
        self._network = network
        self._outputs = outputs_of(network.module, network.outputs)
        if self.part == "head":
            self._stages = head_stages(network.module, self._outputs)
        else:
            self._stages = tail_stages(network.module, self._outputs, self.k)

    def intervene(self, network: Network, batch: TensorDictBase) -> Report:
        """Inject, if it has not happened often enough.

        Raises:
            UserError: The tail cannot be divided into branches; the network is as it was.
        """
        if self._network is None:
            self.prepare(network)
        if self._done >= self.times or network.led:
            return Report()
        self._try(network, as_batch(batch)[:3])
        return self._inject(network)

    def state_dict(self) -> dict[str, Any]:
        """How many injections there were."""
        return {"done": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Rebuild the network of ``prepare`` as often, so that its saved weights fit."""
        for _ in range(self._done, state["done"]):
            if self._network is not None and not self._network.led:
                self._inject(self._network)
        self._done = state["done"]

    def _inject(self, network: Network) -> Report:
        before = set(network.module.parameters())
        network.rebuild(self._change(network))
        self._done += 1
        for each in (network, *network.followers):
            each.outputs = branched_outputs(self._stages, self._outputs, 1 + 2 * self._done)
        return Report(parameters=sum(p.numel() for p in set(network.module.parameters()) - before if p.requires_grad))

    def _change(self, network: Network) -> partial[None]:
        return partial(branch, stages=self._stages, outputs=self._outputs, draw=network.builder())

    @torch.no_grad()
    def _try(self, network: Network, batch: TensorDictBase) -> None:
        """See on a copy whether the network's own code lets branches through."""
        copied: nn.Module = copy.deepcopy(network.module)
        with as_evaluated(copied):
            expected = network.loss(copied, batch)
            try:
                with seeded(_TRIAL):
                    self._change(network)(copied)
                found = network.loss(copied.to(network.device).eval(), batch)
            except (RuntimeError, AttributeError, TypeError, ValueError) as error:
                raise self._unfit(network) from error
        if not torch.allclose(found, expected, rtol=1e-4, atol=1e-6):
            raise self._unfit(network)

    def _unfit(self, network: Network) -> UserError:
        names = ", ".join(name for stage in self._stages for name in stage[:1])
        return UserError(
            f"plasticity-injection: the tail ({names}) of {type(network.module).__name__} is no chain of modules that "
            "can run in branches; take part=head"
        )
