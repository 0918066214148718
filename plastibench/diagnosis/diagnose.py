"""Diagnose a network: measure it and a fresh one on the same data, and give every layer a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.diagnosis.loading import DiagnosisTarget
from plastibench.diagnosis.rules import RULES, Rule, Verdict, judge_layer, judge_network, shorten
from plastibench.metrics import PLASTICITY, select
from plastibench.metrics.compute import compute_metrics
from plastibench.metrics.plasticity import PlasticityReport, plasticity_report
from plastibench.metrics.probes import use_generator
from plastibench.nn.attention import is_attention
from plastibench.nn.batches import chunks
from plastibench.nn.coverage import Coverage, coverage, modules_in_part
from plastibench.nn.dataflow import trace
from plastibench.nn.network import Network, as_evaluated
from plastibench.nn.parameters import saved_tensors
from plastibench.nn.units import unit_count
from plastibench.utils.wording import plural

DEFAULT_GROUPS = ("activity", "gradients", "ranks", "weights")  # curvature and probes take minutes on large networks
#: Without the gradients of single samples: for large networks, about as informative as the default and much faster.
QUICK_GROUPS = ("activity", "zero-gradient-ratio", "ranks", "weights")
_TRACED = 4  # samples that suffice to find the order of the layers
Progress = Callable[[str], None]
_FROM_LOSS = ("gradient", "hessian", "curvature", "sam", "next-task")  # parts of the names of metrics that use the loss


@dataclass
class Layer:
    """A module with its values, those of a fresh network, and the verdict."""

    name: str
    kind: str
    units: int
    values: Mapping[str, float]
    fresh: Mapping[str, float]
    verdict: Verdict = "ok"
    reasons: list[str] = field(default_factory=list)

    @classmethod
    def judged(cls, name: str, kind: str, units: int, found: PlasticityReport, fresh: PlasticityReport) -> Layer:
        """A layer with its verdict."""
        values, usual = found.layers.get(name, {}), fresh.layers.get(name, {})
        return cls(name, kind, units, values, usual, *judge_layer(values, usual, units))

    def severity(self, rule: Rule) -> float | None:
        """The severity of a value in [0, 1], or None if it cannot be compared."""
        if rule.metric not in self.values or rule.metric not in self.fresh:
            return None
        return rule.severity(self.values[rule.metric], self.fresh[rule.metric])


@dataclass
class Diagnosis:
    """The result of an examination.

    Attributes:
        title: What was examined.
        data: Where the samples come from.
        samples: Number of samples.
        parameters: Number of parameters.
        verdict: Verdict on the network.
        reasons: Why.
        notes: Caveats.
        overall: Metrics of the network.
        fresh: The same metrics of a fresh network, if one was compared.
        layers: The modules in the order in which they run.
        coverage: Which modules unit-level methods act on.
        selected: Names and parameter counts of the modules that ``selector`` selects.
    """

    title: str
    data: str
    samples: int
    parameters: int
    verdict: Verdict
    reasons: list[str]
    notes: list[str]
    overall: dict[str, float] = field(default_factory=dict)
    fresh: dict[str, float] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    coverage: Coverage | None = None
    selected: list[tuple[str, int]] | None = None

    @property
    def rules(self) -> list[Rule]:
        """The rules that apply to at least one layer."""
        return [rule for rule in RULES if any(rule.metric in layer.values for layer in self.layers)]

    def as_json(self) -> dict[str, Any]:
        """The content as plain values; values that are not finite become None."""
        found: dict[str, Any] = _finite(asdict(self))
        for layer in found["layers"]:
            layer["figures"] = layer.pop("values")  # the key of schema 1
        return {"schema": 1, **found, "thresholds": [asdict(rule) for rule in RULES]}


def diagnose(
    target: DiagnosisTarget,
    metrics: Sequence[str] | None = None,
    selector: str | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Examine a network and a fresh one; :mod:`plastibench.metrics` defines the metrics.

    Args:
        target: The network and its probe batch; neither is modified.
        metrics: Names of metrics or groups; default: :data:`DEFAULT_GROUPS`.
        selector: Part of the network whose modules are listed; one of :data:`plastibench.nn.selectors.PARTS`.
        progress: Receives a line about each step.
    """
    network, batch = target.network, target.batch
    parameters = sum(p.numel() for p in network.module.parameters())
    about = (target.title, target.data, len(batch), parameters)
    if reason := _not_finite(network, batch):
        return Diagnosis(*about, "sick", [reason], target.notes)
    names = select(metrics if metrics is not None else DEFAULT_GROUPS)
    found = _measure(network, batch, names, target.initial, progress and (lambda what: progress(f"network: {what}")))
    with use_generator(network, torch.Generator().manual_seed(0)):
        fresh_network = Network(network.fresh(), None, network.loss, role=network.role, outputs=network.outputs)
    opened = _open_branches(fresh_network.module, network.module)
    compared = {rule.metric for rule in RULES} & set(names)
    fresh = _measure(
        fresh_network, batch, compared, None, progress and (lambda what: progress(f"fresh network: {what}"))
    )
    layers = _layers(network, batch, found, fresh)
    verdict, reasons = judge_network({layer.name: layer.verdict for layer in layers}, found.overall)
    notes = [*target.notes, *opened, *_rank_caveat(network, batch, found, layers)]
    overall, usual = dict(sorted(found.overall.items())), dict(sorted(fresh.overall.items()))
    selected = None if selector is None else modules_in_part(network, batch, selector)
    covered = coverage(network, batch)
    return Diagnosis(*about, verdict, reasons, notes, overall, usual, layers, covered, selected)


def definition(metric: str) -> str:
    """The definition of a metric, or an empty string."""
    from plastibench.metrics import METRICS

    return METRICS.get(metric, PLASTICITY.get(metric, ""))


def needs_labels(metric: str) -> bool:
    """Whether a metric is computed from the loss, and therefore from labels or targets."""
    return any(part in metric for part in _FROM_LOSS)


@torch.no_grad()
def _not_finite(network: Network, batch: TensorDictBase) -> str:
    """What is not finite in the network, or an empty string; such a network cannot be measured."""
    tensors = saved_tensors(network.module)
    broken = [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if broken:
        return f"{plural(len(broken), 'tensor is', 'tensors are')} not finite: {shorten(broken)}"
    with as_evaluated(network.module):
        finite = all(math.isfinite(float(network.loss(network.module, part))) for part in chunks(batch))
    return "" if finite else "its loss on these samples is not finite"


@torch.no_grad()
def _open_branches(fresh: nn.Module, network: nn.Module) -> list[str]:
    """Set normalization scales of the fresh network that are initialized to 0 to 1; return a note about it.

    ResNets start with such residual branches, through which no gradient flows; compared with them nothing would be a
    symptom. If the scales are still 0 in the network as well, it has not been trained, and nothing is changed.
    """
    norms = nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm
    scales = dict(network.named_parameters())
    closed = {
        f"{name}.weight".lstrip("."): module.weight
        for name, module in fresh.named_modules()
        if isinstance(module, norms) and isinstance(module.weight, Tensor) and not bool(module.weight.any())
    }
    if not any(bool(scales[name].any()) for name in closed):
        return []
    for scale in closed.values():
        scale.fill_(1)
    return [
        f"{plural(len(closed), 'normalization scale is', 'normalization scales are')} initialized to 0, but set to 1 "
        "in the fresh network, because no gradient flows through a scale of 0"
    ]


def _measure(
    network: Network,
    batch: TensorDictBase,
    names: Collection[str],
    initial: dict[str, torch.Tensor] | None,
    progress: Progress | None,
) -> PlasticityReport:
    if progress is not None:
        progress(", ".join(PLASTICITY))
    layers = trace(network, batch[:_TRACED])
    found = plasticity_report(network, batch, initial, layers)
    found.add(compute_metrics(network, batch, names, torch.Generator().manual_seed(0), initial, layers, progress))
    return found


def _layers(network: Network, batch: TensorDictBase, found: PlasticityReport, fresh: PlasticityReport) -> list[Layer]:
    """The modules in the order in which they run, each attention before its output projection."""
    layers: list[Layer] = []
    attention = {name for name, module in network.module.named_modules() if is_attention(module)}
    for unit in trace(network, batch[:_TRACED]):
        parent = unit.name.rpartition(".")[0]
        if unit.name.endswith(".proj") and parent in attention and parent in found.layers:
            layers.append(Layer.judged(parent, "Attention", 0, found, fresh))
        kind = type(unit.module).__name__ + (", outputs" if unit.output else "")
        layers.append(Layer.judged(unit.name, kind, unit_count(unit.module), found, fresh))
    return layers


def _rank_caveat(
    network: Network, batch: TensorDictBase, found: PlasticityReport, layers: Sequence[Layer]
) -> list[str]:
    head = next((layer for layer in layers if layer.kind.endswith("outputs")), None)
    width = network.module.get_submodule(head.name).weight[0].numel() if head is not None else 0  # type: ignore[index]
    if len(batch) >= 2 * width or "effective-rank" not in found.overall:
        return []
    return [
        f"the head's input has {plural(width, 'feature')}, so its ranks are limited by the "
        f"{plural(len(batch), 'sample')}; use --samples {2 * width}"
    ]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
