"""Resets: re-draw the whole network or named parts of it (paper, Fig. 2; Nikishin et al. 2022; Zhou et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from tensordict import TensorDictBase

from plastibench.config.errors import UserError
from plastibench.config.options import matches, option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention, Report
from plastibench.nn.branches import renewable
from plastibench.nn.dataflow import trace
from plastibench.nn.network import Network, as_batch
from plastibench.nn.optimizer_state import forget_all
from plastibench.nn.selectors import from_block, selector, share_of
from plastibench.nn.units import has_units, tied, unit_count

Part = Literal["all", "mlp", "mlp-qkv", "linear", "layernorm", "head", "last-k", "later"]


@register_intervention(
    "reset", "Reinitialize every parameter (Zhou et al. 2022); with --every, SR-SAC (D'Oro et al. 2023)"
)
@register_intervention("reset-mlp", "Reinitialize the MLP blocks (paper, Fig. 2)", select="mlp")
@register_intervention(
    "reset-mlp-qkv", "Reinitialize the MLP blocks and QKV projections (paper, Fig. 2)", select="mlp-qkv"
)
@register_intervention("reset-linear", "Reinitialize every fully connected layer (paper, Fig. 2)", select="linear")
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
    """Re-draw the selected parameters from the network's own initialisation; their optimizer state starts anew.

    Frozen parameters stay. Of a module that loses all of its parameters the buffers start anew, too (BatchNorm's
    statistics: those of features that are gone would drown the new ones).

    - ``all``: every parameter and buffer, class token and position embedding included; with the actor of SAC also the
      temperature.
    - ``mlp``: both layers of every MLP block. In a network without blocks: every Linear but the last.
    - ``mlp-qkv``: these and the projections to queries, keys and values.
    - ``linear``: every Linear, the head included, the convolution of the patch embedding not.
    - ``layernorm``: every LayerNorm.
    - ``head``: the last Linear, or every output layer of a network that has several.
    - ``last-k``: the last ``k`` blocks and all that follows them (final norm, head).
    - ``later``: likewise the last ``share`` of the blocks (later-layer forgetting; Zhou et al. 2022 name the first
      layer to go, in a ResNet of four stages the last stage: ``share=0.25``).
    - ``match``: parameters whose names match the regular expression, instead of ``select``.

    With ``--every``, ``all`` is SR-SAC (D'Oro et al. 2023); ``--until`` is the ``no_resets_after`` of SR-SPR and BBF.
    Of several critics in one module each loses its own last layers. A weight that is tied to another module's (an
    output layer's to an embedding) is drawn anew with ``all``, ``last-k``, ``later`` and ``match`` only.
    """

    kind = "reset"

    select: Part = option("all", "which parameters to re-draw")
    k: int = option(1, "for last-k: how many blocks", low=1)
    match: str = option("", "instead of select: a regular expression of parameter names")
    share: float | None = option(None, "for later: share of the blocks, from the end; none: 0.5", low=0, high=1)

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
        if stuck := sorted(set(network.not_reinitializable()) & set(chosen)):
            raise UserError(f"reset: nothing says how {stuck[0]} was initialised; give Network(…, fresh=…) a builder")
        fresh = network.fresh()
        parameters = dict(module.named_parameters())
        for name in chosen:
            parameters[name].copy_(fresh.get_parameter(name))
        whole = chosen == list(renewable(module))
        for prefix, child in module.named_modules():
            own = {f"{prefix}.{name}".lstrip(".") for name, _ in child.named_parameters(recurse=False)}
            if (own and own <= set(chosen)) or (whole and not own):
                for name, buffer in child.named_buffers(recurse=False):
                    buffer.copy_(fresh.get_submodule(prefix).get_buffer(name))
        if whole:
            for restart in network.restarts:
                restart()
        forget_all(network.optimizer, [parameters[name] for name in chosen])
        report = Report(parameters=sum(parameters[name].numel() for name in chosen))
        for prefix, child in module.named_modules():
            if has_units(child) and f"{prefix}.weight" in chosen:
                mask = torch.ones(unit_count(child), dtype=torch.bool, device=network.device)
                report.units[prefix] = mask
                report.note(prefix, revived=float(len(mask)), units=float(len(mask)))
        return report

    def _chosen(self, network: Network, batch: TensorDictBase) -> list[str]:
        """Names, in order of registration."""
        module = network.module
        names = list(renewable(module))
        if self.match:
            return [name for name in names if matches(self.match, name)]
        if self.select == "all":
            return names
        outputs = [unit.name for unit in trace(network, batch) if unit.output]
        if self.select == "last-k":
            chosen, blocks = from_block(module, outputs, lambda count: self.k)
            if blocks and not chosen:
                raise UserError(f"reset: k is {self.k}, but the network has {blocks} blocks")
            return [name for name in chosen if name in names]
        if self.select == "later":
            chosen = from_block(module, outputs, share_of(0.5 if self.share is None else self.share))[0]
            return [name for name in chosen if name in names]
        selected, shared = selector(self.select, module, outputs), tied(module)
        return [
            f"{prefix}.{name}"
            for prefix, child in module.named_modules()
            if selected(prefix, child)
            for name, parameter in child.named_parameters(recurse=False)
            if f"{prefix}.{name}" in names and parameter not in shared
        ]
