"""A layer as observed in a forward pass: whether it is activated, and which layers read its units."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass
class TracedLayer:
    """A module with units, as observed in a forward pass.

    Attributes:
        name: Qualified name.
        module: The module.
        activated: A nonlinearity acts directly on its output.
        residual: Its output is added to, or concatenated into, a stream that other layers write to as well.
        output: Its output is an output of the network.
        columns: The layers whose input is this layer's output, directly or through activations, dropout, pooling,
            scaling or reshapes. For each of them, the unit that each of its input columns holds. [in]
        outgoing: Same as ``columns``, for the layers whose weights multiply these units. A LayerNorm only scales
            units, so it is replaced by its own readers.
        batch_norms: BatchNorm modules whose features are the units of this layer.
        tied: Its weight is shared with another module.
        batch_axis: The axis of its input and output that grows with the batch: 1 in a sequence-first transformer.
    """

    name: str
    module: nn.Module
    activated: bool = False
    residual: bool = False
    output: bool = False
    columns: dict[str, Tensor] = field(default_factory=dict)
    outgoing: dict[str, Tensor] = field(default_factory=dict)
    batch_norms: list[str] = field(default_factory=list)
    tied: bool = False
    batch_axis: int = 0

    @property
    def readers(self) -> list[str]:
        """Names of the layers that read its units."""
        return list(self.columns)

    @property
    def trained(self) -> bool:
        """Whether its weight is trained and not shared: neither frozen (by plasticity injection) nor tied."""
        weight = self.module.weight
        return isinstance(weight, Tensor) and weight.requires_grad and not self.tied

    @property
    def hidden(self) -> bool:
        """Whether its units are classical hidden neurons: activated and read by known layers only (a ViT's fc1)."""
        return self.activated and bool(self.outgoing) and not self.residual


def set_outgoing(layers: list[TracedLayer]) -> None:
    """Set ``outgoing`` of each layer from the ``columns`` of all layers.

    It stays empty if the weight of a reader cannot be changed (it is tied, or it is frozen and the layer's own weight
    is not), or if the readers of a LayerNorm in between are unknown.

    Args:
        layers: In execution order.
    """
    by_name = {layer.name: layer for layer in layers}
    for layer in reversed(layers):
        norms = {name for name in layer.columns if _is_layer_norm(by_name.get(name))}
        known = [by_name[name] for name in layer.columns if name in by_name]
        if any(reader.tied or (layer.trained and not reader.trained) for reader in known):
            continue
        layer.outgoing = {name: columns for name, columns in layer.columns.items() if name not in norms}
        for name in norms:
            norm = by_name[name]
            if norm.residual or not norm.outgoing:
                layer.outgoing = {}
                break
            for reader, columns in [*norm.outgoing.items()]:  # a norm may read itself
                layer.outgoing[reader] = layer.columns[name][columns.to(layer.columns[name].device)]


def _is_layer_norm(layer: TracedLayer | None) -> bool:
    return layer is not None and isinstance(layer.module, nn.LayerNorm)
