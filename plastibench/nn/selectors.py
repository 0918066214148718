"""Select submodules by role (``mlp``, ``attention``, ``layernorm``, …) or by a regular expression."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from torch import nn

from plastibench.config.errors import UserError
from plastibench.config.options import matches
from plastibench.nn.units import modules_with_units

_MLP = r"\.mlp\.fc[12]$"
_SEQUENCES = nn.Sequential | nn.ModuleList
_ATTENTION = r"attn|attention"
_NO_ATTENTION = r"norm|drop|scale|(^|_)ln(_|$)"  # attn_norm, attention_layernorm
_QKV = r"\.(qkv|[qkv]|[qkv]_(proj|lin)|qkv_proj|query|key|value|query_key_value|c_attn|q_attn|Wqkv|kv)$"


def selector(part: str, module: nn.Module, outputs: Collection[str]) -> Callable[[str, nn.Module], bool]:
    """A function of (name, submodule) that tells whether the submodule belongs to a part of the network.

    - ``mlp``: all weight matrices of the MLP blocks. In a network without MLP blocks: every Linear but output layers.
    - ``mlp-qkv``: these and the projections to queries, keys and values.
    - ``attention``: all projections of the attention blocks.
    - ``linear``: every Linear.
    - ``layernorm``: every LayerNorm.
    - ``head``: the output layers.

    A transformer block is a member of a sequence that has a child with attention in its name. Its MLP is every weight
    matrix of the block outside of that child. This covers timm, torchvision, ``nn.TransformerEncoderLayer`` and
    transformers. MLP blocks of other networks (MLP-Mixer, ConvNeXt) are recognized by timm's names.

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
    """Whether this is a Linear, or equivalent under another name (transformers' ``Conv1D``)."""
    weight = getattr(child, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.ndim == 2 and not isinstance(child, nn.Embedding)
