"""Utility-based Perturbed Gradient Descent (UPGD): protect useful weights, perturb the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plastibench.config.options import option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention
from plastibench.nn.network import Network
from plastibench.nn.parameters import learning_rates
from plastibench.nn.units import has_units


@register_intervention(
    "upgd", "SGD that protects useful weights and perturbs the others (UPGD, Elsayed & Mahmood 2024)"
)
@register_intervention(
    "upgd-adam", "UPGD's gate applied to the steps of the agent's own optimizer (AdamUPGD)", rule="adam"
)
@dataclass
class UPGD(Intervention):
    """Add noise to the step of each weight, and multiply the step by 1 - s, which is smaller for useful weights.

    The utility of a weight is the running mean of -g·θ, a first-order estimate of how much the loss would rise without
    the weight. s = σ(utility / largest utility), so the most useful weight takes 27 % of its step, and a weight without
    utility takes half of it. Source: Elsayed & Mahmood 2024 and mohmdelsayed/upgd, the global and weight-protecting
    variant.

    - ``sgd``: θ ← (1 - lr·decay)·θ - lr·(g + noise·ξ)·(1 - s). Replaces the step of the agent's optimizer. lr is the
      optimizer's learning rate times ``lr_factor``, because SGD needs about ten times the learning rate of Adam.
    - ``adam``: multiplies the step of the agent's optimizer, including weight decay, by 1 - s (AdamUPGD).

    The running mean is bias-corrected, as in Adam. The paper also corrects the largest utility, so the two corrections
    cancel (``correction="paper"``). The released code divides by the uncorrected largest utility, so gates are sharper
    in the first updates (``correction="released"``): up to σ(1/(1-β)) at the first one.

    The released optimizers have the defaults noise 1, decay 0 and β 0, which their experiments replace. The default
    noise of 0.001 and β of 0.9 are the authors' best values on label-permuted EMNIST, with decay 0. Their AdaUPGD (β
    0.999, decay 0.001) has its own Adam with twice the learning rate, and ε = 1e-5; ``adam`` instead gates the
    agent's own optimizer.

    Norms, class tokens and position embeddings get no noise, because they have no fan-in that would set its scale. The
    learning-rate schedule is that of the optimizer. Memory: two copies of the parameters.
    """

    kind = "optimizer"
    extra_memory = 1.0  # copies of the parameters of vit-nano

    rule: Literal["sgd", "adam"] = option("sgd", "step to gate: an SGD step, or the step of the agent's optimizer")
    lr_factor: float = option(10.0, "for sgd: learning rate, as a multiple of the agent's", low=0)
    noise: float = option(
        0.001, "standard deviation of the noise on the gradient (for adam: on the step divided by lr)", low=0
    )
    decay: float = option(0.0, "for sgd: weight decay", low=0)
    beta: float = option(0.9, "decay of the running mean of utilities, per update", low=0, high=0.99999)
    # Options added later default to None, which keeps the id of older specs unchanged.
    correction: Literal["paper", "released"] | None = option(
        None, "whether to also bias-correct the largest utility: paper (default) does, released does not"
    )

    def __post_init__(self) -> None:
        self._utility: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}  # updates of each utility
        self._trained: dict[str, Tensor] = {}  # parameters of the current update
        self._before: list[Tensor] = []
        self._draws: torch.Generator | None = None

    def prepare(self, network: Network) -> None:
        """Create the noise generator on the network's device."""
        self._draws = torch.Generator(network.device)
        self._draws.manual_seed(int(torch.randint(2**62, (), generator=network.generator)))

    @torch.no_grad()
    def before_update(self, network: Network) -> None:
        """Update the utilities, and store the current weights."""
        self._trained = {name: p for name, p in network.module.named_parameters() if p.grad is not None}
        for name, parameter in self._trained.items():
            known = self._utility.get(name)
            if known is None or known.shape != parameter.shape:  # new, or a head that has grown
                self._utility[name], self._counts[name] = torch.zeros_like(parameter), 0
            self._counts[name] = self._counts.get(name, 0) + 1
        utilities, weights = self._utilities(), list(self._trained.values())
        torch._foreach_mul_(utilities, self.beta)
        torch._foreach_addcmul_(utilities, self._gradients(), weights, value=self.beta - 1)
        self._before = list(torch._foreach_mul(weights, 1.0))

    @torch.no_grad()
    def after_update(self, network: Network) -> None:
        """Gate or replace the step of the optimizer."""
        weights = list(self._trained.values())
        if not weights:
            return
        utilities = self._utilities()
        largest = torch.stack([value.max() for value in utilities]).max().clamp_min(1e-30)
        gates = torch._foreach_div(utilities, largest)
        if self.correction == "released":  # in the paper the corrections cancel
            torch._foreach_div_(gates, [1 - self.beta ** self._counts[name] for name in self._trained])
        torch._foreach_neg_(gates)
        torch._foreach_sigmoid_(gates)  # 1 - s = σ(-U)
        factor = self.lr_factor if self.rule == "sgd" else 1.0
        lrs = [rate * factor for rate in learning_rates(network, weights)]
        if self.rule == "sgd":
            steps = list(torch._foreach_mul(self._gradients(), [-lr for lr in lrs]))
        else:
            steps = list(torch._foreach_sub(weights, self._before))
        if self.noise:
            noisy = _with_fan_in(network.module)
            for name, step, lr in zip(self._trained, steps, lrs, strict=True):
                if name in noisy:
                    drawn = torch.randn(step.shape, generator=self._draws, device=step.device)
                    step.add_(drawn, alpha=-lr * self.noise)
        if self.rule == "sgd" and self.decay:
            torch._foreach_mul_(self._before, [1 - lr * self.decay for lr in lrs])
        torch._foreach_addcmul_(self._before, steps, gates)
        torch._foreach_copy_(weights, self._before)

    def state_dict(self) -> dict[str, Any]:
        """Return the utilities and the state of the noise generator."""
        draws = self._draws.get_state() if self._draws is not None else None
        return {"utility": self._utility, "draws": draws, "counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the utilities and the noise generator."""
        self._utility = {name: value.clone() for name, value in state["utility"].items()}
        self._counts = dict(state.get("counts", {}))
        if self._draws is not None and state["draws"] is not None:
            self._draws.set_state(state["draws"].cpu())

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self._trained.values() if p.grad is not None]

    def _utilities(self) -> list[Tensor]:
        for name, parameter in self._trained.items():  # loaded on another device
            self._utility[name] = self._utility[name].to(parameter.device)
        return [self._utility[name] for name in self._trained]


def _with_fan_in(module: nn.Module) -> set[str]:
    """Return the names of the parameters of Linear and Conv modules."""
    return {
        f"{prefix}.{name}".lstrip(".")
        for prefix, child in module.named_modules()
        if has_units(child) and not isinstance(child, nn.LayerNorm)
        for name, _ in child.named_parameters(recurse=False)
    }
