"""The last stages of a network, as lists of modules that can be replaced by branches."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from plastibench.config.errors import UserError
from plastibench.nn.blocks import block_names
from plastibench.nn.units import output_layers
from plastibench.utils.wording import plural

Stage = list[str]  # qualified names of consecutive members of one sequence, or of a single module


def head_stages(module: nn.Module, outputs: Sequence[str]) -> list[Stage]:
    """A stage for each output layer."""
    return [[name] for name in output_layers(module, outputs)]


def tail_stages(module: nn.Module, outputs: Sequence[str], k: int) -> list[Stage]:
    """The last stages of a network, in registration order.

    - In a network with an ``encoder``: everything after it.
    - In a network with blocks: the last k blocks and everything after them.
    - Otherwise: the last k hidden layers and the output layer.

    Raises:
        UserError: There is no such tail.
    """
    if isinstance(getattr(module, "encoder", None), nn.Module):
        tail = [name for name, _ in module.named_parameters() if not name.startswith("encoder.")]
    else:
        heads = output_layers(module, outputs)
        blocks = [name for name in block_names(module) if name not in heads]
        if len(heads) > 1 and len({name.rpartition(".")[0] for name in blocks}) > 1:
            raise UserError(
                f"{type(module).__name__} has separate layers for each of its outputs ({', '.join(heads)}), not one "
                "sequence of last layers; use part=head"
            )
        tail = _last(module, k, blocks)
    if not tail:
        raise UserError(f"{type(module).__name__} has no sequence of blocks or layers; use part=head")
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


def position_in(stage: Stage, output: str) -> int | None:
    """Index of the member of the stage that is or contains the output layer; None if there is none."""
    found = [number for number, name in enumerate(stage) if f"{output}.".startswith(f"{name}.")]
    return found[0] if found else None


def _last(module: nn.Module, k: int, blocks: list[str]) -> list[str]:
    """Parameters of the last k blocks, and of everything registered after them."""
    if k > len(blocks) > 0:
        raise UserError(f"k is {k}, but the network has {plural(len(blocks), 'block')}")
    names = [name for name, _ in module.named_parameters()]
    starts = [index for index, name in enumerate(names) if blocks and name.startswith(f"{blocks[-k]}.")]
    return names[starts[0] :] if starts else []


def _owners(module: nn.Module, prefix: str, names: set[str]) -> list[str]:
    """The largest proper submodules that can be called and own nothing but the named parameters."""
    own = {f"{prefix}.{name}".lstrip(".") for name, _ in module.named_parameters()}
    if not own & names:
        return []
    if prefix and own <= names and not isinstance(module, nn.ModuleList | nn.ModuleDict):
        return [prefix]
    children = [(f"{prefix}.{name}".lstrip("."), child) for name, child in module.named_children()]
    return [owner for name, child in children for owner in _owners(child, name, names)]
