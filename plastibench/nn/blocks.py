"""Blocks of a network by depth: the last ones before each output, and the layers at its inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

from torch import nn

_SEQUENCES = nn.Sequential | nn.ModuleList


def block_names(module: nn.Module) -> list[str]:
    """Names of the blocks of a network in registration order, as :func:`last_blocks` defines them."""
    return _blocks(module, (), [name for name, _ in module.named_parameters()])


def last_blocks(module: nn.Module, outputs: Sequence[str], count: Callable[[int], int]) -> tuple[list[str], int]:
    """Parameters of the last blocks before each output, and of everything registered after these blocks.

    Blocks are the members of the outermost sequences of composite modules (the blocks of a ViT, or of all stages of a
    ResNet). In a network without such sequences, they are the layers with parameters in its outermost sequences.
    Members of a container that lead to different outputs, such as the critics of an ensemble, are not a sequence.

    Args:
        module: The network.
        outputs: Names of its output layers.
        count: Maps the number of blocks before an output to the number of last blocks to select.

    Returns:
        Names in registration order, and the smallest number of blocks before any output. No names if there are fewer
        blocks than ``count`` asks for.
    """
    names = [name for name, _ in module.named_parameters()]
    chosen: set[str] = set()
    shortest = len(names)
    for output in outputs:
        forks = [_fork(output, other) for other in outputs if other != output]
        own = [name for name in names if not any(name.startswith(f"{rival}.") for _, rival in forks)]
        blocks = _blocks(module, {container for container, _ in forks}, own)
        shortest, k = min(shortest, len(blocks)), count(len(blocks))
        if not 0 < k <= len(blocks):
            return [], shortest
        first = next(index for index, name in enumerate(own) if name.startswith(f"{blocks[-k]}."))
        chosen |= set(own[first:])
    return [name for name in names if name in chosen], shortest


def fraction_of(fraction: float) -> Callable[[int], int]:
    """A ``count`` for :func:`last_blocks`: a fraction of the blocks, rounded up."""
    return lambda count: math.ceil(fraction * count - 1e-9)


def input_layers(executed: Sequence[str], outputs: Sequence[str]) -> set[str]:
    """The layers at the inputs of a network: the one that runs first, or the first one of each critic of an ensemble.

    Args:
        executed: Names of layers in execution order.
        outputs: Names of the output layers.
    """
    branches = {_fork(output, other)[1] for output in outputs for other in outputs if other != output}
    if not any(executed[0].startswith(f"{branch}.") for branch in branches):
        return {executed[0]}
    return {next(name for name in executed if name.startswith(f"{branch}.")) for branch in branches}


def _fork(output: str, other: str) -> tuple[str, str]:
    """The container in which the paths to two outputs separate, and its member on the path to the other one."""
    parts, others = output.split("."), other.split(".")
    same = next(index for index, (a, b) in enumerate(zip(parts, others, strict=False)) if a != b)
    return ".".join(others[:same]), ".".join(others[: same + 1])


def _blocks(module: nn.Module, forks: Collection[str], own: list[str]) -> list[str]:
    """Names of the blocks that hold some of the parameters ``own``, in registration order."""
    sequences = {}
    for prefix, child in module.named_modules():
        if isinstance(child, _SEQUENCES) and prefix not in forks:
            members = [f"{prefix}.{name}".lstrip(".") for name, _ in child.named_children()]
            if len(members) == 1 and isinstance(module.get_submodule(members[0]), _SEQUENCES):
                continue  # a list with one sequence, as an ensemble of one critic
            sequences[prefix] = [m for m in members if any(name.startswith(f"{m}.") for name in own)]
    composite = {
        prefix: members
        for prefix, members in sequences.items()
        if members and all(next(module.get_submodule(member).children(), None) is not None for member in members)
    }
    chosen = composite or sequences
    outermost = [p for p in chosen if not any(p != q and (not q or p.startswith(f"{q}.")) for q in chosen)]
    return [member for prefix in outermost for member in chosen[prefix]]
