"""Resets: reinitialize the network or parts of it (paper, Figure 2; Nikishin et al. 2022; Zhou et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from tensordict import TensorDictBase

from plastibench.config.errors import UserError
from plastibench.config.options import matches, option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention, Report
from plastibench.nn.blocks import fraction_of, last_blocks
from plastibench.nn.branches import reinitializable
from plastibench.nn.dataflow import trace
from plastibench.nn.network import Network, as_batch
from plastibench.nn.optimizer_state import clear_state
from plastibench.nn.selectors import attention_of, selector
from plastibench.nn.units import has_units, tied_parameters, unit_count
from plastibench.utils.wording import plural

Part = Literal["all", "mlp", "mlp-qkv", "linear", "layernorm", "head", "last-k", "later"]


@register_intervention(
    "reset", "Reinitialize every parameter (Zhou et al. 2022); with --every, SR-SAC (D'Oro et al. 2023)"
)
@register_intervention("reset-mlp", "Reinitialize the MLP blocks (paper, Figure 2)", select="mlp")
@register_intervention(
    "reset-mlp-qkv", "Reinitialize the MLP blocks and QKV projections (paper, Figure 2)", select="mlp-qkv"
)
@register_intervention("reset-linear", "Reinitialize every fully connected layer (paper, Figure 2)", select="linear")
@register_intervention("reset-layernorm", "Reset every LayerNorm to γ=1, β=0", select="layernorm")
@register_intervention("reset-head", "Reinitialize the output layer (Lee et al. 2024)", select="head")
@register_intervention(
    "reset-last-k", "Reinitialize the last k blocks and the head (Nikishin et al. 2022)", select="last-k"
)
@register_intervention(
    "later-layer-forgetting",
    "Reinitialize the later half of the blocks and the head (Zhou et al. 2022)",
    select="later",
)
@dataclass
class Reset(Intervention):
    """Reinitialize the selected parameters with the network's own initialization, and reset their optimizer state.

    ``select`` is one of:

    - ``all``: every parameter and buffer, including class token and position embedding. For the actor of SAC, also the
      temperature.
    - ``mlp``: both layers of every MLP block. In a network without blocks: every Linear except the last.
    - ``mlp-qkv``: ``mlp`` plus the query, key and value projections.
    - ``linear``: every Linear, including the head but not the convolution of the patch embedding.
    - ``layernorm``: every LayerNorm.
    - ``head``: the last Linear, or every output layer if the network has several.
    - ``last-k``: the last ``k`` blocks and everything after them (final norm, head).
    - ``later``: the last ``fraction`` of the blocks and everything after them (later-layer
      forgetting). Zhou et al. 2022
      specify the first layer to reinitialize; in a ResNet with four stages it is the last stage, ``fraction=0.25``.

    ``match`` replaces ``select`` with a regular expression of parameter names.

    Frozen parameters are kept. If all parameters of a module are reinitialized, its buffers are as well: BatchNorm
    statistics of the old features do not fit the new ones. If one module contains several critics, the last layers of
    each are selected. A weight that is tied to another module, for example an output layer tied to an embedding, is
    reinitialized only by ``all``, ``last-k``, ``later`` and ``match``.

    With ``--every``, ``all`` is SR-SAC (D'Oro et al. 2023). ``--until`` corresponds to ``no_resets_after`` of SR-SPR
    and BBF.
    """

    kind = "reset"

    select: Part = option("all", "parameters to reinitialize")
    k: int = option(1, "for last-k: number of blocks", low=1)
    match: str = option("", "regular expression of parameter names, instead of select")
    fraction: float | None = option(
        None,
        "for later: fraction of the blocks, counted from the end (default: 0.5)",
        low=0,
        high=1,
        formerly="share",
    )

    @torch.no_grad()
    def intervene(self, network: Network, batch: TensorDictBase) -> Report:
        """Reinitialize the selected parameters.

        Raises:
            UserError: Nothing is selected, or a selected parameter cannot be reinitialized.
        """
        module = network.module
        chosen = self._chosen(network, as_batch(batch))
        if not chosen:
            raise UserError(f"reset: '{self.match or self.select}' matches no parameter of this network")
        if stuck := sorted(set(network.not_reinitializable()) & set(chosen)):
            raise UserError(
                f"reset: cannot reinitialize {stuck[0]}: unknown initialization; pass a builder as Network(…, fresh=…)"
            )
        fresh = network.fresh()
        parameters = dict(module.named_parameters())
        for name in chosen:
            parameters[name].copy_(fresh.get_parameter(name))
        whole = chosen == list(reinitializable(module))
        for prefix, child in module.named_modules():
            own = {f"{prefix}.{name}".lstrip(".") for name, _ in child.named_parameters(recurse=False)}
            if (own and own <= set(chosen)) or (whole and not own):
                for name, buffer in child.named_buffers(recurse=False):
                    buffer.copy_(fresh.get_submodule(prefix).get_buffer(name))
        if whole:
            for restart in network.restarts:
                restart()
        clear_state(network.optimizer, [parameters[name] for name in chosen])
        report = Report(parameters=sum(parameters[name].numel() for name in chosen))
        for prefix, child in module.named_modules():
            if has_units(child) and f"{prefix}.weight" in chosen:
                mask = torch.ones(unit_count(child), dtype=torch.bool, device=network.device)
                report.units[prefix] = mask
                report.note(prefix, revived=float(len(mask)), units=float(len(mask)))
        return report

    def _chosen(self, network: Network, batch: TensorDictBase) -> list[str]:
        """Return the names of the selected parameters, in order of registration."""
        module = network.module
        names = list(reinitializable(module))
        if self.match:
            return [name for name in names if matches(self.match, name)]
        if self.select == "all":
            return names
        outputs = [unit.name for unit in trace(network, batch) if unit.output]
        if self.select == "last-k":
            chosen, blocks = last_blocks(module, outputs, lambda count: self.k)
            if blocks and not chosen:
                raise UserError(f"reset: k is {self.k}, but the network has only {plural(blocks, 'block')}")
            return [name for name in chosen if name in names]
        if self.select == "later":
            chosen = last_blocks(module, outputs, fraction_of(0.5 if self.fraction is None else self.fraction))[0]
            return [name for name in chosen if name in names]
        attention = attention_of(network, batch) if self.select.startswith("mlp") else None
        selected, shared = selector(self.select, module, outputs, attention), tied_parameters(module)
        return [
            f"{prefix}.{name}"
            for prefix, child in module.named_modules()
            if selected(prefix, child)
            for name, parameter in child.named_parameters(recurse=False)
            if f"{prefix}.{name}" in names and parameter not in shared
        ]
