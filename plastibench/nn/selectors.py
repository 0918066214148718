"""Parts of a network by the names that papers give them: MLP blocks, attention, norms, and all from a depth onwards."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Sequence

from torch import nn

_MLP = r"\.mlp\.fc[12]$"
_SEQUENCES = nn.Sequential | nn.ModuleList
_ATTENTION = r"attn|attention"
_NO_ATTENTION = r"norm|drop|scale|(^|_)ln(_|$)"  # attn_norm, attention_layernorm
_QKV = r"\.(qkv|[qkv]|[qkv]_(proj|lin)|qkv_proj|query|key|value|query_key_value|c_attn|q_attn|Wqkv|kv)$"


def selector(part: str, module: nn.Module, outputs: Collection[str]) -> Callable[[str, nn.Module], bool]:
    """Whether a submodule, given by name and as such, belongs to a part of a network.

    - ``mlp``: all matrices of the MLP blocks. In a network without such blocks: every Linear that is no output layer.
    - ``mlp-qkv``: these and the projections to queries, keys and values.
    - ``attention``: all projections of attention blocks.
    - ``linear``: every Linear.
    - ``layernorm``: every LayerNorm.
    - ``head``: the output layers.

    A block of a transformer is a member of a sequence that has an attention child (by its name); its MLP is whatever
    multiplies by a matrix in the block and not in that child. So timm, torchvision, ``nn.TransformerEncoderLayer`` and
    transformers are all known. Beside that, MLP blocks are known by timm's names (of a Mixer, of a ConvNeXt).

    Args:
        part: One of the above.
        module: The network.
        outputs: Names of its output layers.
    """
    attention = _attention(module)
    matrices = [(name, child) for name, child in module.named_modules() if _is_matrix(child)]
    homes = tuple(f"{name.rpartition('.')[0]}." for name in attention)
    attending = {name for name, _ in matrices if name.startswith(tuple(f"{home}." for home in attention))}
    mlp = {name for name, _ in matrices if name.startswith(homes) or re.search(_MLP, name)} - attending
    if not mlp:
        mlp = {name for name, child in matrices if isinstance(child, nn.Linear) and name not in outputs} - attending
    qkv = {name for name in attending if re.search(_QKV, name)}
    parts: dict[str, Callable[[str, nn.Module], bool]] = {
        "mlp": lambda name, child: name in mlp,
        "mlp-qkv": lambda name, child: name in mlp | qkv or isinstance(child, nn.MultiheadAttention),
        "attention": lambda name, child: name in attending,
        "linear": lambda name, child: isinstance(child, nn.Linear),
        "layernorm": lambda name, child: isinstance(child, nn.LayerNorm),
        "head": lambda name, child: name in outputs,
    }
    return parts[part]


def _attention(module: nn.Module) -> list[str]:
    """Names of the attention children of the blocks."""
    blocks = {id(block) for child in module.modules() if isinstance(child, _SEQUENCES) for block in child.children()}
    return [
        f"{prefix}.{name}"
        for prefix, block in module.named_modules()
        if id(block) in blocks
        for name, _ in block.named_children()
        if re.search(_ATTENTION, name) and not re.search(_NO_ATTENTION, name)
    ]


def _is_matrix(child: nn.Module) -> bool:
    """A Linear, or a module that is one under another name (transformers' ``Conv1D``)."""
    weight = getattr(child, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.ndim == 2 and not isinstance(child, nn.Embedding)


def blocks(module: nn.Module) -> list[str]:
    """Names of a network's blocks, in registration order, as :func:`from_block` knows them."""
    return _blocks(module, (), [name for name, _ in module.named_parameters()])


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
