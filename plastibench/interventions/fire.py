"""FIRE: replace weight matrices with the nearest scaled isometry (isaac7778/FIRE, ICLR 2026)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.config.errors import UserError
from plastibench.config.options import matches, option
from plastibench.config.registry import register_intervention
from plastibench.interventions.base import Intervention, Report
from plastibench.nn.dataflow import trace
from plastibench.nn.network import Network, as_batch
from plastibench.nn.optimizer_state import reset_state

_JOINT = r"(^|\.)(qkv\.weight|in_proj_weight)$"
_QUERY_KEY = r"(^|\.)(to_|w)?(q|k|query|key)(_?proj)?\.weight$"
_VALUE = r"(^|\.)(to_|w)?(v|value)(_?proj)?\.weight$"
_NAMED = ("qk", "qkv", "linear", "all")


@register_intervention("fire")
@dataclass
class Fire(Intervention):
    """Replace weight matrices with the nearest scaled isometry (isaac7778/FIRE, ICLR 2026).

    ``W ← sqrt(d_out/d_in)/k² · NewtonSchulz(W/||W||_F)`` makes the rows or columns of W orthogonal and needs no data.
    The Newton-Schulz iteration ``X ← 1.5·X - 0.5·X·Xᵀ·X`` drives the singular values to 1 and keeps the singular
    vectors. Ten iterations come close to the polar factor of W, except for singular values far below the largest, as in
    the source. A k×k convolution is projected separately at each kernel position; query, key and value of a joint
    projection are projected as three matrices. The optimizer state of projected weights is reset.

    ``select`` is one of:

    - ``auto``: ``qk`` in networks with attention, otherwise ``all``, as in the source.
    - ``qk``: query and key projections.
    - ``qkv``: query, key and value projections.
    - ``linear``: every Linear except the output layers. (The source includes these if there is no attention.)
    - ``all``: ``linear`` plus every Conv2d.
    - a regular expression of module names; it may select output layers.
    """

    kind = "reset"

    select: str = option(
        "auto", "weights to project: auto, qk, qkv, linear, all, or a regular expression of module names"
    )
    iterations: int = option(10, "number of Newton-Schulz iterations", low=1)

    @torch.no_grad()
    def intervene(self, network: Network, batch: TensorDictBase) -> Report:
        """Project the selected weights in place.

        Raises:
            UserError: Nothing is selected.
        """
        chosen = self._chosen(network, as_batch(batch))
        if not chosen:
            raise UserError(
                f"fire: select '{self.select}' matches no weight of this network; try all, or the name of a module"
            )
        report = Report()
        for name, (weight, parts) in chosen.items():
            rows = torch.zeros(3 if parts else 1, len(weight) // (3 if parts else 1), dtype=torch.bool)
            for index in parts or (0,):
                piece = weight.chunk(len(rows))[index]
                piece.copy_(projected(piece, self.iterations))
                rows[index] = True
                report.parameters += piece.numel()
            mask = rows.flatten().to(weight.device).reshape(-1, *[1] * (weight.ndim - 1))
            reset_state(network.optimizer, weight, mask)
            report.note(name.removesuffix(".weight"), norm=float(weight.norm()))
        return report

    def _chosen(self, network: Network, batch: TensorDictBase) -> dict[str, tuple[nn.Parameter, tuple[int, ...]]]:
        """Return the selected weights by name and, for a joint projection, which of its three parts are selected."""
        weights = _weights(network.module)
        attention = any(re.search(f"{_JOINT}|{_QUERY_KEY}", name) for name in weights)
        select = self.select if self.select != "auto" else "qk" if attention else "all"
        if select not in _NAMED:
            return {
                name: (weight, (0, 1, 2) if re.search(_JOINT, name) else ())
                for name, weight in weights.items()
                if matches(select, name.removesuffix(".weight"))
            }
        outputs: set[str] = set()
        if select in ("linear", "all"):  # query and key projections are found by name, without a pass over data
            outputs = {f"{unit.name}.weight" for unit in trace(network, batch) if unit.output}
        chosen: dict[str, tuple[nn.Parameter, tuple[int, ...]]] = {}
        for name, weight in weights.items():
            if re.search(_JOINT, name):
                chosen[name] = weight, (0, 1) if select == "qk" else (0, 1, 2)
            elif select in ("qk", "qkv"):
                if re.search(_QUERY_KEY, name) or (select == "qkv" and re.search(_VALUE, name)):
                    chosen[name] = weight, ()
            elif name not in outputs and (weight.ndim == 2 or select == "all"):
                chosen[name] = weight, ()
        return chosen


def projected(weight: Tensor, iterations: int) -> Tensor:
    """Project a matrix [out, in], or each position of a kernel [out, in, k, k], to a scaled near-isometry."""
    matrices = weight.flatten(2).permute(2, 0, 1) if weight.ndim > 2 else weight[None]  # [k·k, out, in]
    outputs, inputs = weight.shape[:2]
    wide = matrices.mT if inputs > outputs else matrices
    x = wide / wide.norm(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
    for _ in range(iterations):
        x = 1.5 * x - 0.5 * x @ (x.mT @ x)
    x = (x.mT if inputs > outputs else x) * (math.sqrt(outputs / inputs) / len(matrices))
    return x.permute(1, 2, 0).reshape(weight.shape)


def _weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained weights of every Linear and Conv2d and the joint projections of PyTorch's attention."""
    owners = dict(module.named_modules())
    found = {}
    for name, parameter in module.named_parameters():
        prefix, _, key = name.rpartition(".")
        weighted = key == "weight" and isinstance(owners[prefix], nn.Linear | nn.Conv2d)
        if parameter.requires_grad and (weighted or key == "in_proj_weight"):
            found[name] = parameter
    return found
