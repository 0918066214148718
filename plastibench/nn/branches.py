"""Copies of the last layers of a network that run side by side, and whose outputs are added and subtracted."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from plastibench.config.errors import UserError
from plastibench.nn.selectors import blocks
from plastibench.nn.units import has_units

Stage = list[str]  # consecutive modules of one sequence, or a single module, by qualified name


class Branches(nn.Module):
    """One stage of f(x) + Σᵢ gᵢ(x) - gᵢ⁰(x): the same module 1 + 2·i times, f first, then each g and its frozen start.

    A tail of several stages must not be one module: the network's own ``forward`` runs code between them (a ViT pools
    tokens between its last norm and its head). So branches travel through that code as one batch: the first stage runs
    all branches on its input and concatenates their outputs along the batch, later stages give each branch its own
    share of the batch, and the last adds up. The code between must treat samples independently.
    """

    def __init__(self, module: nn.Module, forks: bool, merges: bool) -> None:
        """Args: the first branch; whether its input is not divided yet; whether its output is the sum of branches."""
        super().__init__()
        self.branches = nn.ModuleList([module])
        self.forks, self.merges = forks, merges

    def forward(self, inputs: Tensor) -> Tensor:
        """[B or n·B, ...] to [B or n·B, ...], for n branches."""
        count = len(self.branches)
        shares = [inputs] * count if self.forks else inputs.chunk(count)
        outputs = [branch(share) for branch, share in zip(self.branches, shares, strict=True)]
        if not self.merges:
            return torch.cat(outputs)
        total = outputs[0]
        for new, start in zip(outputs[1::2], outputs[2::2], strict=True):
            total = total + (new - start)  # exactly nothing at first
        return total

    def grow(self, new: nn.Module) -> None:
        """Freeze all branches and add a new one and its frozen copy."""
        self.branches.requires_grad_(False)
        new.train(self.branches[0].training)
        self.branches.append(new.requires_grad_(True))
        self.branches.append(copy.deepcopy(new).requires_grad_(False))


def head_stages(module: nn.Module, outputs: Sequence[str]) -> list[Stage]:
    """The output layers alone."""
    return [[name] for name in outputs_of(module, outputs)]


def tail_stages(module: nn.Module, outputs: Sequence[str], k: int) -> list[Stage]:
    """The last stages of a network, in registration order.

    - A network with an ``encoder``: all that follows it.
    - With blocks: the last k blocks and all that follows them.
    - Otherwise: the last k hidden layers and the output layer.

    Raises:
        UserError: There is no such tail.
    """
    if isinstance(getattr(module, "encoder", None), nn.Module):
        tail = [name for name, _ in module.named_parameters() if not name.startswith("encoder.")]
    else:
        heads = outputs_of(module, outputs)
        tail = _last(module, k, [name for name in blocks(module) if name not in heads])
    if not tail:
        raise UserError(f"{type(module).__name__} has no sequence of blocks or layers; take part=head")
    stages: list[Stage] = []
    for name in _owners(module, "", set(tail)):
        parent = name.rpartition(".")[0]
        sequence = module.get_submodule(parent)
        if stages and parent == stages[-1][-1].rpartition(".")[0] and isinstance(sequence, nn.Sequential):
            siblings = [f"{parent}.{child}".lstrip(".") for child, _ in sequence.named_children()]
            stages[-1] += siblings[siblings.index(stages[-1][-1]) + 1 : siblings.index(name) + 1]
        else:
            stages.append([name])
    return stages


def outputs_of(module: nn.Module, outputs: Sequence[str]) -> tuple[str, ...]:
    """Names of the output layers: those given, or the layer that is registered last."""
    return tuple(outputs) or tuple(name for name, child in module.named_modules() if has_units(child))[-1:]


def branch(module: nn.Module, stages: list[Stage], outputs: Sequence[str], draw: Callable[[], nn.Module]) -> None:
    """Freeze the stages and put a newly drawn branch, minus itself, beside them; a second time beside all of that.

    Args:
        module: Changed in place; its outputs stay what they are.
        stages: The tail.
        outputs: Names of the output layers before the first call.
        draw: Builds a newly initialised module of the architecture that the module has now.
    """
    drawn = draw()
    merging = [any(_position(stage, output) is not None for output in outputs) for stage in stages]
    for number, (stage, merges) in enumerate(zip(stages, merging, strict=True)):
        first = stage[0]
        place, new = module.get_submodule(first), drawn.get_submodule(first)
        if isinstance(place, Branches) and isinstance(new, Branches):
            place.grow(new.branches[0])
            continue
        forks = number == 0 if not merges else all(merging)
        branches = Branches(_together(module, stage), forks, merges).train(place.training)
        branches.grow(_together(drawn, stage))
        module.set_submodule(first, branches)
        for name in stage[1:]:
            module.set_submodule(name, nn.Identity())


def branched_outputs(stages: list[Stage], outputs: Sequence[str], count: int) -> tuple[str, ...]:
    """Names of the output layers in all of ``count`` branches.

    Args:
        stages: The tail.
        outputs: Their names before the first branching.
        count: Branches.
    """
    names = []
    for output in outputs:
        stage = next(stage for stage in stages if _position(stage, output) is not None)
        position = _position(stage, output)
        assert position is not None
        inner = ([str(position)] if len(stage) > 1 else []) + [output.removeprefix(stage[position]).lstrip(".")]
        names += [".".join([stage[0], "branches", str(number), *filter(None, inner)]) for number in range(count)]
    return tuple(names)


def branched(names: Iterable[str]) -> set[str]:
    """Those names of parameters and buffers that belong to branches."""
    return {name for name in names if ".branches." in name}


def renewable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that a reset may draw anew, by name, in order of registration: those that are trained.

    And those of branches, frozen ones too: g and g⁰ cancel only if they are drawn together.
    """
    parameters = dict(module.named_parameters())
    inside = branched(parameters)
    return {name: parameter for name, parameter in parameters.items() if parameter.requires_grad or name in inside}


def merged_outputs(module: nn.Module, outputs: Sequence[str]) -> list[str]:
    """Names of the modules that return the network's own outputs: of branches, the place where they are added up."""
    places = []
    for output in outputs:
        parents = [output.rsplit(".", count)[0] for count in range(output.count("."), 0, -1)]
        merging = [name for name in parents if getattr(module.get_submodule(name), "merges", False) is True]
        places.append(merging[0] if merging else output)
    return list(dict.fromkeys(places))


def _last(module: nn.Module, k: int, among: list[str]) -> list[str]:
    """Parameters of the last k of these blocks, and those registered after them."""
    if k > len(among) > 0:
        raise UserError(f"k is {k}, but the network has {len(among)} blocks")
    names = [name for name, _ in module.named_parameters()]
    starts = [index for index, name in enumerate(names) if among and name.startswith(f"{among[-k]}.")]
    return names[starts[0] :] if starts else []


def _owners(module: nn.Module, prefix: str, names: set[str]) -> list[str]:
    """The largest modules that can be called, are not the whole, and own nothing but the named parameters."""
    own = {f"{prefix}.{name}".lstrip(".") for name, _ in module.named_parameters()}
    if not own & names:
        return []
    if prefix and own <= names and not isinstance(module, nn.ModuleList | nn.ModuleDict):
        return [prefix]
    children = [(f"{prefix}.{name}".lstrip("."), child) for name, child in module.named_children()]
    return [owner for name, child in children for owner in _owners(child, name, names)]


def _position(stage: Stage, output: str) -> int | None:
    """Which member of the stage is or holds the output layer."""
    found = [number for number, name in enumerate(stage) if f"{output}.".startswith(f"{name}.")]
    return found[0] if found else None


def _together(module: nn.Module, stage: Stage) -> nn.Module:
    if len(stage) == 1:
        return module.get_submodule(stage[0])
    return nn.Sequential(*(module.get_submodule(name) for name in stage))
