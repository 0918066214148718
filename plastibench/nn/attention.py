"""Entropy of attention heads: how widely they spread their attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from plastibench.nn.batch_pass import Collector, run_pass
from plastibench.nn.network import Network

_SAMPLES = 64  # whose attention weights are in memory at once


def is_attention(module: nn.Module) -> bool:
    """Whether this is self-attention in the form of timm: one projection for queries, keys and values."""
    linear = all(isinstance(getattr(module, name, None), nn.Linear) for name in ("qkv", "proj"))
    return linear and isinstance(getattr(module, "num_heads", None), int)


class _Heads:
    """Entropies of one attention module, summed over samples and queries."""

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module
        self.total: Tensor | None = None  # [heads]
        self.queries = 0
        self.expected: Tensor | None = None
        self.plain = True

    @torch.no_grad()
    def project(self, _: nn.Module, args: Any, output: Tensor) -> None:
        """Compute softmax(q kᵀ / sqrt(d)) from the output of ``qkv`` [B, T, 3·D], and add up its entropy."""
        module = self.module
        if output.ndim != 3 or output.shape[-1] % (3 * module.num_heads) or output.shape[1] < 2:
            self.plain = False
            return
        self.expected = torch.cat([self._attend(part) for part in output.split(_SAMPLES)])
        self.queries += output.shape[0] * output.shape[1]

    def _attend(self, output: Tensor) -> Tensor:
        module = self.module
        size, tokens, width = output.shape
        query, key, value = output.reshape(size, tokens, 3, module.num_heads, -1).permute(2, 0, 3, 1, 4)  # [B, h, T, d]
        query = getattr(module, "q_norm", nn.Identity())(query)
        key = getattr(module, "k_norm", nn.Identity())(key)
        weights = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)  # [B, h, T, T]
        entropy = torch.special.entr(weights.double()).sum(-1) / math.log(tokens)
        total = entropy.sum((0, 2))
        self.total = total if self.total is None else self.total + total
        return (weights @ value).transpose(1, 2).reshape(size, tokens, width // 3)

    @torch.no_grad()
    def check(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        """Exclude modules with masks, position biases or gates: these change the input of ``proj``."""
        actual, expected = args[0], self.expected
        if (
            expected is None
            or actual.shape != expected.shape
            or not torch.allclose(actual, expected, rtol=1e-3, atol=1e-4)
        ):
            self.plain = False


class AttentionCollector(Collector):
    """Collects the entropy of each head's attention; see :func:`attention_entropies`."""

    def __init__(self, network: Network) -> None:
        """Observe every attention module of the network."""
        modules = network.module.named_modules()
        self._heads = {name: _Heads(module) for name, module in modules if is_attention(module)}

    def attach(self) -> list[RemovableHandle]:
        """Observe the projections of each attention module."""
        hooks = []
        for heads in self._heads.values():
            hooks.append(heads.module.qkv.register_forward_hook(heads.project))
            hooks.append(heads.module.proj.register_forward_pre_hook(heads.check))
        return hooks

    def entropies(self) -> dict[str, Tensor]:
        """Mean entropy of each head, by module name. [heads]."""
        found = {name: heads for name, heads in self._heads.items() if heads.plain}
        return {name: heads.total / heads.queries for name, heads in found.items() if heads.total is not None}


def attention_entropies(network: Network, batch: TensorDictBase) -> dict[str, Tensor]:
    """Mean entropy of each head's attention, divided by log T: 1 for uniform attention, 0 for attention to one token.

    Args:
        network: The network; left as it was. Attention other than softmax(q kᵀ / sqrt(d)) v is left out.
        batch: Probe batch.

    Returns:
        A float64 tensor [heads] for the name of each attention module.
    """
    collector = AttentionCollector(network)
    if any(is_attention(module) for module in network.module.modules()):
        run_pass(network, batch, [collector], chunk_size=_SAMPLES)
    return collector.entropies()
