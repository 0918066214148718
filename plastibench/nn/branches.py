"""Parallel branches of the last layers of a network, whose outputs are added and subtracted (plasticity injection)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from plastibench.nn.computed_weights import copied
from plastibench.nn.stages import Stage, position_in


class Branches(nn.Module):
    """One stage of f(x) + Σᵢ (gᵢ(x) - gᵢ⁰(x)): the module f, followed by each gᵢ and its frozen initial copy gᵢ⁰.

    A tail of several stages cannot be one module, because the network's ``forward`` runs code between them (a ViT pools
    tokens between its last norm and its head). The branches therefore pass through that code as one batch. The first
    stage runs all branches on its input and concatenates their outputs along the batch. Later stages give each branch
    its own part of the batch. The last stage adds up the outputs. The code in between must treat samples independently.
    """

    def __init__(self, module: nn.Module, forks: bool, merges: bool) -> None:
        """Create a stage with one branch.

        Args:
            module: The first branch, f.
            forks: This is the first stage: its input is not divided into branches yet.
            merges: This is the last stage: its output is the sum of the branches.
        """
        super().__init__()
        self.branches = nn.ModuleList([module])
        self.forks, self.merges = forks, merges

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [B or n·B, ...] to [B or n·B, ...], for n branches."""
        count = len(self.branches)
        parts = [inputs] * count if self.forks else inputs.chunk(count)
        outputs = [branch(part) for branch, part in zip(self.branches, parts, strict=True)]
        if not self.merges:
            return torch.cat(outputs)
        total = outputs[0]
        for new, start in zip(outputs[1::2], outputs[2::2], strict=True):
            total = total + (new - start)  # exactly 0 at first
        return total

    def grow(self, new: nn.Module) -> None:
        """Freeze all branches and add a new one and its frozen copy."""
        self.branches.requires_grad_(False)
        new.train(self.branches[0].training)
        self.branches.append(new.requires_grad_(True))
        self.branches.append(copied(new).requires_grad_(False))


def add_branch(module: nn.Module, stages: list[Stage], outputs: Sequence[str], draw: Callable[[], nn.Module]) -> None:
    """Freeze the stages and add a newly initialized branch minus its frozen copy; can be repeated.

    Args:
        module: Changed in place; its outputs stay the same.
        stages: The tail, from :mod:`plastibench.nn.stages`.
        outputs: Names of the output layers before the first call.
        draw: Builds a newly initialized module of the current architecture.
    """
    drawn = draw()
    merging = [any(position_in(stage, output) is not None for output in outputs) for stage in stages]
    for number, (stage, merges) in enumerate(zip(stages, merging, strict=True)):
        first = stage[0]
        current, new = module.get_submodule(first), drawn.get_submodule(first)
        if isinstance(current, Branches) and isinstance(new, Branches):
            current.grow(new.branches[0])
            continue
        forks = number == 0 if not merges else all(merging)
        branches = Branches(_as_one_module(module, stage), forks, merges).train(current.training)
        branches.grow(_as_one_module(drawn, stage))
        module.set_submodule(first, branches)
        for name in stage[1:]:
            module.set_submodule(name, nn.Identity())


def branched_outputs(stages: list[Stage], outputs: Sequence[str], count: int) -> tuple[str, ...]:
    """Names of the output layers in each of ``count`` branches.

    Args:
        stages: The tail.
        outputs: Names of the output layers before the first branch was added.
        count: Number of branches.
    """
    names = []
    for output in outputs:
        stage = next(stage for stage in stages if position_in(stage, output) is not None)
        position = position_in(stage, output)
        assert position is not None
        inner = ([str(position)] if len(stage) > 1 else []) + [output.removeprefix(stage[position]).lstrip(".")]
        names += [".".join([stage[0], "branches", str(number), *filter(None, inner)]) for number in range(count)]
    return tuple(names)


def merged_outputs(module: nn.Module, outputs: Sequence[str]) -> list[str]:
    """Names of the modules that return the network's outputs: output layers, or the :class:`Branches` that add them up.

    Args:
        module: The network.
        outputs: Names of its output layers, in all branches.
    """
    names = []
    for output in outputs:
        parents = [output.rsplit(".", count)[0] for count in range(output.count("."), 0, -1)]
        merging = [name for name in parents if getattr(module.get_submodule(name), "merges", False) is True]
        names.append(merging[0] if merging else output)
    return list(dict.fromkeys(names))


def names_in_branches(names: Iterable[str]) -> set[str]:
    """The names of parameters and buffers that belong to branches."""
    return {name for name in names if ".branches." in name}


def reinitializable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that a reset may reinitialize, by name, in registration order.

    These are all trainable parameters, and the frozen ones of branches: g and g⁰ cancel only if they are reinitialized
    together.
    """
    parameters = dict(module.named_parameters())
    inside = names_in_branches(parameters)
    return {name: parameter for name, parameter in parameters.items() if parameter.requires_grad or name in inside}


def _as_one_module(module: nn.Module, stage: Stage) -> nn.Module:
    if len(stage) == 1:
        return module.get_submodule(stage[0])
    return nn.Sequential(*(module.get_submodule(name) for name in stage))
