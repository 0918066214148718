"""The blocks of a network, and what the last of them own."""

from __future__ import annotations

from torch import nn

from plastibench.errors import UserError


def blocks(module: nn.Module) -> list[str]:
    """Names of a network's blocks, in registration order.

    Blocks are the members of the outermost sequences of composite modules (the blocks of a ViT, of all stages of a
    ResNet) or, in a network without such, the layers with parameters of its outermost sequence.
    """
    sequences = {
        prefix: [
            f"{prefix}.{name}".lstrip(".")
            for name, member in child.named_children()
            if next(member.parameters(), None) is not None
        ]
        for prefix, child in module.named_modules()
        if isinstance(child, nn.Sequential | nn.ModuleList)
    }
    composite = {
        prefix: members
        for prefix, members in sequences.items()
        if members and all(next(module.get_submodule(member).children(), None) is not None for member in members)
    }
    chosen = composite or sequences
    outermost = [p for p in chosen if not any(p != q and (not q or p.startswith(f"{q}.")) for q in chosen)]
    return [member for prefix in outermost for member in chosen[prefix]]


def last_blocks(module: nn.Module, k: int, among: list[str] | None = None) -> list[str]:
    """Names of the parameters of the last k blocks, and of those registered after them; none where there is no block.

    Args:
        module: The network.
        k: How many blocks.
        among: The blocks that count; all by default.

    Raises:
        UserError: There are fewer than k.
    """
    names = [name for name, _ in module.named_parameters()]
    among = blocks(module) if among is None else among
    if not among:
        return []
    if k > len(among):
        raise UserError(f"k is {k}, but the network has {len(among)} blocks")
    first = next(index for index, name in enumerate(names) if name.startswith(f"{among[-k]}."))
    return names[first:]
