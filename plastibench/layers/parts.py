"""Parts of a network by the names that papers give them: MLP blocks, attention, norms, and all from a depth onwards."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Sequence

from torch import nn

_MLP = r"\.mlp\.fc[12]$"
_SEQUENCES = nn.Sequential | nn.ModuleList
_ATTENTION = r"(^|\.)(self_)?attn(\.|$)"


def selector(part: str, module: nn.Module, outputs: Collection[str]) -> Callable[[str, nn.Module], bool]:
    """Whether a submodule, given by name and as such, belongs to a part of a network.

    - ``mlp``: both layers of every MLP block. In a network without blocks: every Linear that is no output layer.
    - ``mlp-qkv``: these and the joint query-key-value projections.
    - ``attention``: all projections of attention blocks.
    - ``linear``: every Linear.
    - ``layernorm``: every LayerNorm.
    - ``head``: the output layers.

    Args:
        part: One of the above.
        module: The network.
        outputs: Names of its output layers.
    """
    blocks = any(re.search(_MLP, name) for name, _ in module.named_modules())

    def in_mlp(name: str, child: nn.Module) -> bool:
        if blocks:
            return re.search(_MLP, name) is not None
        return isinstance(child, nn.Linear) and name not in outputs

    parts: dict[str, Callable[[str, nn.Module], bool]] = {
        "mlp": in_mlp,
        "mlp-qkv": lambda name, child: name.endswith("qkv") or in_mlp(name, child),
        "attention": lambda name, child: re.search(_ATTENTION, name) is not None,
        "linear": lambda name, child: isinstance(child, nn.Linear),
        "layernorm": lambda name, child: isinstance(child, nn.LayerNorm),
        "head": lambda name, child: name in outputs,
    }
    return parts[part]


def from_block(module: nn.Module, outputs: Sequence[str], count: Callable[[int], int]) -> tuple[list[str], int]:
    """Parameters of the last blocks on the way to each output, and of all that is registered after them.

    Blocks are the members of the outermost sequences of composite modules (the blocks of a ViT, of all stages of a
    ResNet) or, in a network without such, the layers with parameters of its outermost sequences. Members of a container
    that lead to different outputs, as the critics of an ensemble, are no sequence: each is followed by itself.

    Args:
        module: The network.
        outputs: Names of its output layers.
        count: From the number of blocks on the way to an output to how many of them, from the end, are meant.

    Returns:
        Names in order of registration, and the smallest number of blocks on the way to any output. No names where
        there are fewer blocks than meant.
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


def beginnings(executed: Sequence[str], outputs: Sequence[str]) -> set[str]:
    """The modules on the network's inputs: the one that runs first, or the first of each critic of an ensemble.

    Args:
        executed: Names of modules in order of execution.
        outputs: Names of the output layers.
    """
    branches = {_fork(output, other)[1] for output in outputs for other in outputs if other != output}
    if not any(executed[0].startswith(f"{branch}.") for branch in branches):
        return {executed[0]}
    return {next(name for name in executed if name.startswith(f"{branch}.")) for branch in branches}


def share_of(share: float) -> Callable[[int], int]:
    """A share of the blocks, rounded up."""
    return lambda count: math.ceil(share * count - 1e-9)


def _fork(output: str, other: str) -> tuple[str, str]:
    """The container in which the ways to two outputs part, and its member that leads to the other one."""
    parts, others = output.split("."), other.split(".")
    same = next(index for index, (a, b) in enumerate(zip(parts, others, strict=False)) if a != b)
    return ".".join(others[:same]), ".".join(others[: same + 1])


def _blocks(module: nn.Module, forks: Collection[str], own: list[str]) -> list[str]:
    """Names of the blocks that hold some of the parameters ``own``, in order of registration."""
    sequences = {}
    for prefix, child in module.named_modules():
        if isinstance(child, _SEQUENCES) and prefix not in forks:
            members = [f"{prefix}.{name}".lstrip(".") for name, _ in child.named_children()]
            if len(members) == 1 and isinstance(module.get_submodule(members[0]), _SEQUENCES):
                continue  # a list of one, as an ensemble of one critic
            sequences[prefix] = [m for m in members if any(name.startswith(f"{m}.") for name in own)]
    composite = {
        prefix: members
        for prefix, members in sequences.items()
        if members and all(next(module.get_submodule(member).children(), None) is not None for member in members)
    }
    chosen = composite or sequences
    outermost = [p for p in chosen if not any(p != q and (not q or p.startswith(f"{q}.")) for q in chosen)]
    return [member for prefix in outermost for member in chosen[prefix]]
