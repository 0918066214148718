"""Resets: re-draw the whole network or named parts of it (paper, Fig. 2; Nikishin et al. 2022)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from tensordict import TensorDictBase
from torch import nn

from plastibench.errors import UserError
from plastibench.interventions.base import Intervention, Report
from plastibench.layers.blocks import last_blocks
from plastibench.layers.optimizer_state import forget_all
from plastibench.layers.trace import trace
from plastibench.layers.units import has_units, unit_count
from plastibench.network import Network, as_batch
from plastibench.options import matches, option

Part = Literal["all", "mlp", "mlp-qkv", "linear", "layernorm", "head", "last-k"]


@dataclass
class Reset(Intervention):
    """Re-draw the selected parameters from the network's own initialisation; their optimizer state starts anew.

    - ``all``: every parameter and buffer, class token, position embedding and BatchNorm statistics included.
    - ``mlp``: both layers of every MLP block. In a network without blocks: every Linear but the last.
    - ``mlp-qkv``: these and the joint query-key-value projections.
    - ``linear``: every Linear, the head included, the convolution of the patch embedding not.
    - ``layernorm``: every LayerNorm.
    - ``head``: the last Linear, or every output layer of a network that has several.
    - ``last-k``: the last ``k`` blocks and all that follows them (final norm, head).
    - ``match``: parameters whose names match the regular expression, instead of ``select``.
    """

    select: Part = option("all", "which parameters to re-draw")
    k: int = option(1, "for last-k: how many blocks", low=1)
    match: str = option("", "instead of select: a regular expression of parameter names")

    @torch.no_grad()
    def intervene(self, network: Network, batch: TensorDictBase) -> Report:
        """Re-draw.

        Raises:
            UserError: Nothing is selected, or a selected parameter cannot be re-drawn.
        """
        module = network.module
        chosen = self._chosen(network, as_batch(batch))
        if not chosen:
            raise UserError(f"reset: '{self.match or self.select}' selects no parameter of this network")
        if stuck := sorted(set(network.cannot_redraw()) & set(chosen)):
            raise UserError(f"reset: nothing says how {stuck[0]} was initialised; give Network(…, fresh=…) a builder")
        fresh = network.fresh()
        parameters = dict(module.named_parameters())
        for name in chosen:
            parameters[name].copy_(fresh.get_parameter(name))
        if len(chosen) == len(parameters):
            for name, buffer in module.named_buffers():
                buffer.copy_(fresh.get_buffer(name))
        forget_all(network.optimizer, [parameters[name] for name in chosen])
        report = Report(parameters=sum(parameters[name].numel() for name in chosen))
        for prefix, child in module.named_modules():
            if has_units(child) and f"{prefix}.weight" in chosen:
                mask = torch.ones(unit_count(child), dtype=torch.bool, device=network.device)
                report.units[prefix] = mask
                report.note(prefix, revived=float(len(mask)), units=float(len(mask)))
        return report

    def _chosen(self, network: Network, batch: TensorDictBase) -> list[str]:
        module = network.module
        names = [name for name, _ in module.named_parameters()]
        if self.match:
            return [name for name in names if matches(self.match, name)]
        if self.select == "all":
            return names
        if self.select == "last-k":
            return last_blocks(module, self.k)
        heads = [unit.name for unit in trace(network, batch) if unit.output]
        blocks = any(re.search(_MLP, prefix) for prefix, _ in module.named_modules())
        selected: dict[str, Callable[[str, nn.Module], bool]] = {
            "mlp": lambda prefix, child: _in_mlp(prefix, child, heads, blocks),
            "mlp-qkv": lambda prefix, child: prefix.endswith("qkv") or _in_mlp(prefix, child, heads, blocks),
            "linear": lambda prefix, child: isinstance(child, nn.Linear),
            "layernorm": lambda prefix, child: isinstance(child, nn.LayerNorm),
            "head": lambda prefix, child: prefix in heads,
        }
        return [
            f"{prefix}.{name}"
            for prefix, child in module.named_modules()
            if selected[self.select](prefix, child)
            for name, _ in child.named_parameters(recurse=False)
        ]


_MLP = r"\.mlp\.fc[12]$"


def _in_mlp(prefix: str, child: nn.Module, heads: list[str], blocks: bool) -> bool:
    if blocks:
        return re.search(_MLP, prefix) is not None
    return isinstance(child, nn.Linear) and prefix not in heads
