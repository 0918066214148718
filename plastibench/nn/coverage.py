"""Report which modules of a network are covered by unit-level methods, and why the others are not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tensordict import TensorDictBase
from torch import nn

from plastibench.nn.dataflow import Traced, trace_with_reasons
from plastibench.nn.least_squares import fit_for
from plastibench.nn.network import Network
from plastibench.nn.parameters import NORMS
from plastibench.nn.selectors import attention_of, selector
from plastibench.nn.units import has_units
from plastibench.utils.wording import plural

_SHOWN_PARTS = ("mlp", "attention", "head")
_LARGE = 0.05  # uncovered fraction of the parameters above which a note is printed
_GATES = (nn.RNNBase, nn.RNNCellBase)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class ModuleCoverage:
    """One module that owns parameters.

    Attributes:
        name: Qualified name; empty for the network itself.
        kind: Its class.
        parameters: Number of its own parameters; shared ones count for the first owner.
        covered_by: What acts on its units: ``revive`` (reinitialize any units), ``redo`` (reinitialize hidden units and
            zero their outgoing weights), ``refit`` (recouple). Methods that act on entire tensors act on every module.
        why_not: Why ``covered_by`` lacks a method; empty if there is nothing to report.
        parts: The parts that contain it: ``mlp``, ``attention``, ``head``.
    """

    name: str
    kind: str
    parameters: int
    covered_by: tuple[str, ...] = ()
    why_not: str = ""
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Coverage:
    """All modules of a network that own parameters, in order of registration."""

    modules: tuple[ModuleCoverage, ...]

    @property
    def parameters(self) -> int:
        """Number of parameters of the network."""
        return sum(module.parameters for module in self.modules)

    @property
    def fraction(self) -> float:
        """Fraction of the parameters that unit-level methods act on."""
        covered = sum(module.parameters for module in self.modules if module.covered_by)
        return covered / max(self.parameters, 1)

    def missing(self) -> list[tuple[str, str, int, int]]:
        """Groups of modules that are not covered, largest first: kind, reason, number of modules and of parameters."""
        groups: dict[tuple[str, str], list[int]] = {}
        for module in self.modules:
            if not module.covered_by:
                groups.setdefault((module.kind, module.why_not), []).append(module.parameters)
        found = [(kind, why, len(sizes), sum(sizes)) for (kind, why), sizes in groups.items()]
        return sorted(found, key=lambda group: -group[3])

    def summary(self) -> str:
        """One line: the covered fraction, and the largest groups that are not covered."""
        text = f"unit-level methods cover {100 * self.fraction:.1f} % of {plural(self.parameters, 'parameter')}"
        groups = [group for group in self.missing() if group[3]]
        named = [
            f"{kind} {100 * size / self.parameters:.1f} % ({why})"
            for kind, why, _, size in groups[:3]
            if size >= 0.001 * self.parameters
        ]
        return f"{text}; not covered: {', '.join(named)}" if named else text


def coverage(network: Network, batch: TensorDictBase, traced: Traced | None = None) -> Coverage:
    """Report what unit-level methods act on, observed in a forward pass.

    Args:
        network: The network; unchanged.
        batch: A batch that its loss accepts; its first samples are used.
        traced: Result of :func:`plastibench.nn.dataflow.trace_with_reasons`, if known.
    """
    layers, reasons = traced or trace_with_reasons(network, batch)
    by_name = {layer.name: layer for layer in layers}
    norms = {name: layer for layer in layers for name in layer.batch_norms}
    unknown = set(network.not_reinitializable())
    outputs = [layer.name for layer in layers if layer.output]
    attention = attention_of(network, batch)
    chosen = {part: selector(part, network.module, outputs, attention) for part in _SHOWN_PARTS}
    found = []
    for name, module, count in _owners(network.module):
        by, why = [], reasons.get(name) or _no_units(name, module)
        if name in by_name:
            layer, why = by_name[name], ""
            if f"{name}.weight" in unknown:
                why = "no initialization is known: pass a builder as fresh"
            elif not layer.trained:
                why = "tied to another module" if layer.tied else "frozen"
            elif layer.output:
                why = "output layer: refitted, but never reinitialized"
            else:
                by = ["revive", "redo"] if layer.hidden else ["revive"]
                if layer.readers and not (layer.activated or layer.residual or isinstance(module, nn.LayerNorm)):
                    why = "no activation was seen between this layer and its reader, so its units are not hidden"
            if layer.trained and layer is not layers[0]:
                if fit_for(module) is None:
                    why = why or "grouped convolution or unusual padding: no closed form for refitting"
                else:
                    by.append("refit")
        elif name in norms and norms[name].hidden:
            by, why = ["redo"], ""
        parts = tuple(part for part, contains in chosen.items() if contains(name, module))
        found.append(ModuleCoverage(name, type(module).__name__, count, tuple(by), why, parts))
    return Coverage(tuple(found))


def expected_coverage(module: nn.Module) -> Coverage:
    """Estimate the coverage without a batch, from the classes of the modules only; this is an upper bound.

    Args:
        module: The network.
    """
    packed = {name for name, child in module.named_modules() if isinstance(child, nn.MultiheadAttention)}
    found = []
    for name, child, count in _owners(module):
        computed = has_units(child) and not isinstance(child.weight, nn.Parameter)
        inside = any(name.startswith(f"{parent}.") for parent in packed)
        frozen = not any(parameter.requires_grad for parameter in child.parameters(recurse=False))
        by = ("revive", "refit") if has_units(child) and not inside and not computed and not frozen else ()
        why = "" if by else "part of nn.MultiheadAttention" if inside else _no_units(name, child)
        why = "frozen" if frozen else why
        found.append(ModuleCoverage(name, type(child).__name__, count, by, why))
    return Coverage(tuple(found))


def warning(module: nn.Module) -> str:
    """Return a note if a large fraction of the parameters cannot be covered; otherwise an empty string."""
    expected = expected_coverage(module)
    return expected.summary() if expected.fraction < 1 - _LARGE else ""


def modules_in_part(
    network: Network, batch: TensorDictBase, part: str, traced: Traced | None = None
) -> list[tuple[str, int]]:
    """Return the names and parameter counts of the modules in a part of the network.

    Args:
        network: The network.
        batch: A batch that its loss accepts.
        part: A name of :data:`plastibench.nn.selectors.PARTS`.
        traced: Result of :func:`plastibench.nn.dataflow.trace_with_reasons`, if known.
    """
    layers, _ = traced or trace_with_reasons(network, batch)
    outputs = [layer.name for layer in layers if layer.output]
    chosen = selector(part, network.module, outputs, attention_of(network, batch))
    return [(name, count) for name, child, count in _owners(network.module) if chosen(name, child)]


def _owners(module: nn.Module) -> Iterable[tuple[str, nn.Module, int]]:
    """Return every module that owns parameters with their number; a shared parameter counts for its first owner."""
    seen: set[nn.Parameter] = set()
    for name, child in module.named_modules():
        own = [parameter for parameter in child.parameters(recurse=False) if not _is_lazy(parameter)]
        if own:
            yield name, child, sum(parameter.numel() for parameter in own if parameter not in seen)
            seen.update(own)


def _is_lazy(parameter: nn.Parameter) -> bool:
    return isinstance(parameter, nn.parameter.UninitializedParameter)


def _no_units(name: str, module: nn.Module) -> str:
    """Explain why a module of this class has no units."""
    if isinstance(module, nn.MultiheadAttention):
        return "packed weights of queries, keys and values"
    if isinstance(module, _GATES):
        return "recurrent: a unit has one row for each gate"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "rows are tokens, not units"
    if isinstance(module, NORMS) or type(module).__name__.lower().endswith(("norm", "norm2d")):
        return "norm without units"
    if isinstance(module, _TRANSPOSED):
        return "transposed convolution"
    if "parametrizations" in name.split(".") or (has_units(module) and not isinstance(module.weight, nn.Parameter)):
        return "weight is computed from other parameters"
    if any(parameter.ndim == 3 and len(parameter) > 1 for parameter in module.parameters(recurse=False)):
        return "several matrices in one parameter"
    if next(module.children(), None) is not None:
        return "parameters without a layer"
    return "class without units"
