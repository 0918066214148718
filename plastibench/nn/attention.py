"""How widely attention heads spread their attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.nn.network import Network, as_evaluated
from plastibench.nn.unit_statistics import pieces


def is_attention(module: nn.Module) -> bool:
    """Whether this is self-attention as timm builds it: one projection for queries, keys and values."""
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

    def project(self, _: nn.Module, args: Any, output: Tensor) -> None:
        """From the output of ``qkv`` [B, T, 3·D]: softmax(q kᵀ / sqrt(d)), what it attends to, and its entropy."""
        module = self.module
        if output.ndim != 3 or output.shape[-1] % (3 * module.num_heads) or output.shape[1] < 2:
            self.plain = False
            return
        size, tokens, width = output.shape
        query, key, value = output.reshape(size, tokens, 3, module.num_heads, -1).permute(2, 0, 3, 1, 4)  # [B, h, T, d]
        query = getattr(module, "q_norm", nn.Identity())(query)
        key = getattr(module, "k_norm", nn.Identity())(key)
        weights = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)  # [B, h, T, T]
        self.expected = (weights @ value).transpose(1, 2).reshape(size, tokens, width // 3)
        entropy = torch.special.entr(weights.double()).sum(-1) / math.log(tokens)
        total = entropy.sum((0, 2))
        self.total = total if self.total is None else self.total + total
        self.queries += size * tokens

    def check(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        """Masks, position biases and gates change what ``proj`` receives: such modules are left out."""
        seen, expected = args[0], self.expected
        if expected is None or seen.shape != expected.shape or not torch.allclose(seen, expected, rtol=1e-3, atol=1e-4):
            self.plain = False


@torch.no_grad()
def attention_entropies(network: Network, batch: TensorDictBase) -> dict[str, Tensor]:
    """Mean entropy of each head's attention over log T: 1 attends to all tokens alike, 0 to one alone.

    Args:
        network: The network; left as it was. Attention that does more than softmax(q kᵀ / sqrt(d)) v is left out.
        batch: Probe batch.

    Returns:
        Name of each attention module to a float64 tensor [heads].
    """
    found = {name: _Heads(module) for name, module in network.module.named_modules() if is_attention(module)}
    hooks = []
    for heads in found.values():
        hooks.append(heads.module.qkv.register_forward_hook(heads.project))
        hooks.append(heads.module.proj.register_forward_pre_hook(heads.check))
    try:
        with as_evaluated(network.module):
            for part in pieces(batch, 64) if found else ():
                network.loss(network.module, part)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: heads.total / heads.queries for name, heads in found.items() if heads.plain and heads.total is not None
    }
