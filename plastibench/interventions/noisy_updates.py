"""Gaussian noise on gradients or weights at every update (Dohare et al. 2024; Elsayed & Mahmood 2024)."""

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
from plastibench.nn.parameters import learning_rates, trainable_parameters


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
    """Add noise from N(0, σ²) to the gradients before every optimizer step, or to the weights after it.

    - ``decay`` shrinks the weights after the step, θ ← (1 − lr·decay)·θ, before noise is added. Together with noise on
      the weights this is the Shrink & Perturb of Dohare et al. 2024 (shibhansh/loss-of-plasticity, σ from 1e-6 to 1e-5,
      with the weight decay of SGD).
    - ``times_lr`` multiplies the noise on weights by the learning rate of the parameter, as the baseline of
      Elsayed & Mahmood 2024 does (mohmdelsayed/upgd, σ from 5e-3 to 0.5).
    - Noise on gradients is added after clipping and passes through the optimizer. Adam turns it into steps of the usual
      size.

    Noise is added to all trained parameters. Decay skips normalization layers, because it would drive their scale to 0.
    The noise is drawn on the network's device, by a separate generator seeded from the network's generator.
    """

    kind = "optimizer"
    extra_memory = 0.006  # copies of the parameters of vit-nano
    extra_compute = "one normal draw per parameter and update"

    sigma: float = option(1e-3, "standard deviation σ of the noise", low=0)
    on: Literal["gradients", "weights"] = option("gradients", "add noise to the gradients or to the weights")
    times_lr: bool = option(False, "for weights: multiply the noise by the learning rate")
    decay: float = option(0.0, "weight decay, multiplied by the learning rate", low=0)
    norms: bool = option(False, "also decay the parameters of normalization layers")

    def __post_init__(self) -> None:
        self._generator: torch.Generator | None = None
        self._saved: Tensor | None = None

    def prepare(self, network: Network) -> None:
        """Create the noise generator."""
        self._source(network)

    @torch.no_grad()
    def before_update(self, network: Network) -> None:
        """Add noise to the gradients."""
        if self.on == "gradients":
            gradients = [p.grad for p in trainable_parameters(network.module).values() if p.grad is not None]
            torch._foreach_add_(gradients, list(self._noise(network, gradients)), alpha=self.sigma)

    @torch.no_grad()
    def after_update(self, network: Network) -> None:
        """Decay the weights, then add noise to them."""
        if self.decay:
            decayed = list(trainable_parameters(network.module, norms=self.norms).values())
            rates = learning_rates(network, decayed)
            torch._foreach_mul_(decayed, [1 - rate * self.decay for rate in rates])
        if self.on == "weights":
            values = list(trainable_parameters(network.module).values())
            noise = list(self._noise(network, values))
            if self.times_lr:
                torch._foreach_mul_(noise, learning_rates(network, values))
            torch._foreach_add_(values, noise, alpha=self.sigma)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the noise generator."""
        return {"generator": self._generator.get_state() if self._generator is not None else self._saved}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the noise generator."""
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
        """Yield noise from N(0, 1) in the shape of each tensor, from a single draw."""
        if not like:
            return
        sizes = [tensor.numel() for tensor in like]
        first = like[0]
        drawn = torch.randn(sum(sizes), dtype=first.dtype, device=first.device, generator=self._source(network))
        for tensor, values in zip(like, drawn.split(sizes), strict=True):
            yield values.view_as(tensor)
