"""Gaussian noise at every update, with or without weight decay (Dohare et al. 2024; Elsayed & Mahmood 2024)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from plastibench.config.options import option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention
from plastibench.nn.network import Network
from plastibench.nn.parameters import learning_rates, trained


@register_intervention(
    "noisy-updates", "Add Gaussian noise to gradients or weights at every update (baseline of Elsayed & Mahmood 2024)"
)
@register_intervention(
    "shrink-perturb-noise",
    "Apply weight decay and add Gaussian noise to the weights at every update (Dohare et al. 2024)",
    on="weights",
    sigma=1e-5,
    decay=5e-4,
)
@dataclass
class NoisyUpdates(Intervention):
    """Add N(0, σ²) to the gradients before, or to the weights after, every optimizer step.

    ``decay`` shrinks the weights after the step, θ ← (1 − lr·decay)·θ, before noise is added. With it and noise on the
    weights this is Shrink & Perturb as Dohare et al. 2024 have it (σ 1e-5 to 1e-6; shibhansh/loss-of-plasticity, where
    the decay is that of SGD). ``times_lr`` multiplies the noise by the parameter's learning rate, as the baseline of
    Elsayed & Mahmood 2024 does (mohmdelsayed/upgd, σ 5e-3 to 0.5). Noise on gradients comes after clipping and passes
    through the optimizer: Adam turns it into steps of the usual size.

    Noise reaches all trained parameters; decay spares normalisation layers, whose scale would go to 0. It is drawn on
    the network's device, by a generator of its own that is seeded from the network's.
    """

    kind = "optimizer"
    extra_memory = 0.006  # copies of the parameters of vit-nano
    extra_compute = "a normal draw per parameter and update"

    sigma: float = option(1e-3, "σ, standard deviation of the noise", low=0)
    on: Literal["gradients", "weights"] = option("gradients", "what it is added to")
    times_lr: bool = option(False, "multiply noise on the weights by the learning rate")
    decay: float = option(0.0, "weight decay, times the learning rate", low=0)
    norms: bool = option(False, "let the decay act on normalisation layers too")

    def __post_init__(self) -> None:
        self._generator: torch.Generator | None = None
        self._saved: Tensor | None = None

    def prepare(self, network: Network) -> None:
        """Seed the generator."""
        self._source(network)

    @torch.no_grad()
    def before_update(self, network: Network) -> None:
        """Noise on the gradients."""
        if self.on == "gradients":
            gradients = [p.grad for p in trained(network.module).values() if p.grad is not None]
            torch._foreach_add_(gradients, list(self._noise(network, gradients)), alpha=self.sigma)

    @torch.no_grad()
    def after_update(self, network: Network) -> None:
        """Decay, then noise on the weights."""
        if self.decay:
            decayed = list(trained(network.module, norms=self.norms).values())
            rates = learning_rates(network, decayed)
            torch._foreach_mul_(decayed, [1 - rate * self.decay for rate in rates])
        if self.on == "weights":
            values = list(trained(network.module).values())
            noise = list(self._noise(network, values))
            if self.times_lr:
                torch._foreach_mul_(noise, learning_rates(network, values))
            torch._foreach_add_(values, noise, alpha=self.sigma)

    def state_dict(self) -> dict[str, Any]:
        """Where the generator stands."""
        return {"generator": self._generator.get_state() if self._generator is not None else self._saved}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the generator."""
        self._saved = state["generator"]
        if self._generator is not None and self._saved is not None:
            self._generator.set_state(self._saved.cpu())

    def _source(self, network: Network) -> torch.Generator:
        if self._generator is None:
            self._generator = torch.Generator(network.device)
            if self._saved is None:
                self._generator.manual_seed(int(torch.randint(2**62, (), generator=network.generator)))
            else:
                self._generator.set_state(self._saved.cpu())
        return self._generator

    def _noise(self, network: Network, like: list[Tensor]) -> Iterator[Tensor]:
        """N(0, 1) in the shape of each tensor, from one draw."""
        if not like:
            return
        sizes = [tensor.numel() for tensor in like]
        first = like[0]
        drawn = torch.randn(sum(sizes), dtype=first.dtype, device=first.device, generator=self._source(network))
        for tensor, values in zip(like, drawn.split(sizes), strict=True):
            yield values.view_as(tensor)
