"""Select submodules by role (``mlp``, ``attention``, ``layernorm``, …) or by a regular expression."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection

from tensordict import TensorDictBase
from torch import nn

from plastibench.config.errors import UserError
from plastibench.config.options import matches
from plastibench.nn.loss_graph import Attention, find_attention
from plastibench.nn.network import Network
from plastibench.nn.units import modules_with_units

_SAMPLES = 2

_MLP = r"\.mlp\.fc[12]$"
_SEQUENCES = nn.Sequential | nn.ModuleList
_ATTENTION = r"attn|attention"
_NO_ATTENTION = r"norm|drop|scale|(^|_)ln(_|$)"  # attn_norm, attention_layernorm
_QKV = r"\.(qkv|qk|[qkv]|[qkv]_(proj|lin)|qkv_proj|query|key|value|query_key_value|c_attn|q_attn|Wqkv|kv)$"


PARTS = ("mlp", "mlp-qkv", "attention", "linear", "layernorm", "head")


def selector(
    part: str, module: nn.Module, outputs: Collection[str], attention: Attention | None = None
) -> Callable[[str, nn.Module], bool]:
    """Return a function of (name, submodule) that decides whether the submodule belongs to a part of the network.

    - ``mlp``: all weight matrices of the MLP blocks, including experts and their router. In a network without MLP
      blocks: every Linear except output layers.
    - ``mlp-qkv``: ``mlp`` plus the query, key and value projections.
    - ``attention``: all projections of the attention blocks.
    - ``linear``: every Linear.
    - ``layernorm``: every LayerNorm.
    - ``head``: the output layers.

    The layers that feed an attention operation are its query, key and value projections; the layer that reads its
    result is the output projection. A transformer block is the smallest member of a sequence that contains these layers
    and others. Its MLP consists of all other weight matrices. Where no attention operation is known (talking heads,
    gated attention), names are used: a transformer block is a member of a sequence that has a child with attention in
    its name, and its MLP consists of all weight matrices outside this child. MLP blocks of other networks (MLP-Mixer,
    ConvNeXt) are recognized by timm's names.

    Args:
        part: One of the above.
        module: The network.
        outputs: Names of its output layers.
        attention: What :func:`attention_of` found in a forward pass.
    """
    matrices = [name for name, child in module.named_modules() if _is_matrix(child)]
    observed = attention if attention is not None and attention.inputs else Attention()
    attending, blocks = _observed(module, matrices, observed)
    by_name = _unobserved(module, observed)
    attending |= {name for name in matrices if _below(name, by_name)}
    blocks |= {name.rpartition(".")[0] for name in by_name}
    packed = {name for name, child in module.named_modules() if isinstance(child, nn.MultiheadAttention)}
    attending |= {name for name in matrices if _below(name, packed)}
    mlp = {name for name in matrices if _below(name, blocks) or re.search(_MLP, name)} - attending - set(outputs)
    if not mlp:
        linear = {name for name, child in module.named_modules() if isinstance(child, nn.Linear)}
        mlp = (linear - attending).difference(outputs)
    qkv = (observed.inputs & set(matrices)) | packed
    qkv |= {name for name in attending if _below(name, by_name) and re.search(_QKV, name)}
    parts: dict[str, Callable[[str, nn.Module], bool]] = {
        "mlp": lambda name, child: name in mlp,
        "mlp-qkv": lambda name, child: name in mlp | qkv,
        "attention": lambda name, child: name in attending,
        "linear": lambda name, child: isinstance(child, nn.Linear),
        "layernorm": lambda name, child: isinstance(child, nn.LayerNorm),
        "head": lambda name, child: name in outputs,
    }
    return parts[part]


def attention_of(network: Network, batch: TensorDictBase) -> Attention:
    """Find the attention operations of a network and their projections with the first samples of a batch."""
    matrices = {
        child: name for child, name in modules_with_units(network.module).items() if not isinstance(child, nn.LayerNorm)
    }
    return find_attention(network, batch[:_SAMPLES], matrices)


def _observed(module: nn.Module, matrices: list[str], attention: Attention) -> tuple[set[str], set[str]]:
    """Return the attention matrices and the names of the blocks that contain them."""
    members = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, child in module.named_modules()
        if isinstance(child, _SEQUENCES)
        for name, _ in child.named_children()
    }
    attending, blocks = set(), set[str]()
    for operation in attention.operations:
        own = operation & set(matrices)
        homes = [member for member in members if all(_below(name, [member]) for name in operation)]
        together = _common(operation)
        inside = {name for name in matrices if together and _below(name, [together])}
        for home in sorted(homes, key=len, reverse=True):  # innermost first
            others = {name for name in matrices if _below(name, [home])} - own
            if others - (inside if together != home else set()):
                blocks.add(home)
                attending |= own | (inside if together.startswith(f"{home}.") else set())
                break
        else:
            attending |= own
    return attending, blocks


def _unobserved(module: nn.Module, attention: Attention) -> list[str]:
    """Names of the attention children of blocks in which no attention operation was observed."""
    seen = {name for operation in attention.operations for name in operation}
    return [child for child in _attention(module) if not any(_below(name, [child]) for name in seen)]


def _common(names: Collection[str]) -> str:
    """Return the innermost module that contains all of these modules."""
    levels = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return ".".join(level[0] for level in itertools.takewhile(lambda level: len(set(level)) == 1, levels))


def _below(name: str, parents: Collection[str]) -> bool:
    return name.startswith(tuple(f"{parent}." for parent in parents))


def require_match(expression: str, module: nn.Module, option: str) -> None:
    """Check, before training starts, that a regular expression matches some layers with units.

    Args:
        expression: A regular expression from a user.
        module: The network.
        option: The name of the option, for the error message: ``modules``.

    Raises:
        UserError: The expression is invalid or matches nothing.
    """
    names = list(modules_with_units(module).values())
    try:
        found = any(matches(expression, name) for name in names)
    except UserError as error:
        raise UserError(f"{option}: {error}") from error
    if not found:
        layers = ", ".join(names[:6])
        raise UserError(f"{option}='{expression}' matches no layer of this network (layers: {layers}, …)")


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
    """Whether this is a Linear, the same under another name (``Conv1D``), or a stack of them (Mixtral's experts)."""
    if isinstance(child, nn.Embedding | nn.MultiheadAttention | nn.RNNBase | nn.modules.conv._ConvNd):
        return False
    weight = getattr(child, "weight", None)
    if isinstance(weight, nn.Parameter):
        return weight.ndim == 2
    own = [parameter for parameter in child.parameters(recurse=False) if parameter.ndim > 1]
    # [heads, 1, 1] is one scale per head, not a stack of matrices.
    return bool(own) and all(p.ndim == 3 and len(p) > 1 and min(p.shape[1:]) > 1 for p in own)
