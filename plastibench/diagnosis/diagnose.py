"""The health of a network, layer by layer: figures, a verdict, and why.

Each figure is judged beside that of a freshly initialised network of the same architecture on the same data: a share
of dormant units, or a low rank, says little by itself, for architectures begin with very different ones.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.diagnosis.loading import Subject
from plastibench.metrics import PLASTICITY, select
from plastibench.metrics.groups import measure_groups
from plastibench.metrics.plasticity import PlasticityReport, plasticity_report
from plastibench.metrics.probes import drawing_from
from plastibench.nn.attention import is_attention
from plastibench.nn.dataflow import trace
from plastibench.nn.network import Network, as_evaluated
from plastibench.nn.unit_statistics import pieces
from plastibench.nn.units import unit_count
from plastibench.utils.tables import text_table

Verdict = Literal["ok", "watch", "sick"]
USUAL = ("activity", "gradients", "ranks", "weights")  # groups that are measured unless told otherwise
_PARTS_OF_LOSS = ("gradient", "hessian", "curvature", "sam", "next-task")  # beginnings or parts of names


@dataclass(frozen=True)
class Rule:
    """When a figure of a layer is a symptom.

    Attributes:
        metric: Its name.
        kind: ``excess``: by how much a share exceeds the fresh network's; ``shrunk``: what is left of the fresh
            network's; ``grown``: how many times it is the fresh network's.
        watch: From where it is worth watching.
        sick: From where it is sick.
        symptom: What to call it.
        column: Its name in tables and pictures.
    """

    metric: str
    kind: Literal["excess", "shrunk", "grown"]
    watch: float
    sick: float
    symptom: str
    column: str

    def severity(self, value: float, fresh: float) -> float:
        """0: as in a fresh network or better; 1: sick; the boundary of ``watch`` lies between."""
        if not math.isfinite(value):
            return 1.0
        if self.kind == "excess":
            return min(1.0, max(0.0, (value - fresh) / self.sick))
        if fresh <= 0:
            return 0.0
        ratio = value / fresh
        if self.kind == "shrunk":
            return min(1.0, max(0.0, (1 - ratio) / (1 - self.sick)))
        return min(1.0, max(0.0, math.log(max(ratio, 1e-30)) / math.log(self.sick)))

    @property
    def watched(self) -> float:
        """The severity from which it is worth watching."""
        return self.severity(
            *{"excess": (self.watch, 0.0), "shrunk": (self.watch, 1.0), "grown": (self.watch, 1.0)}[self.kind]
        )

    def describe(self) -> str:
        """The thresholds in words."""
        if self.kind == "excess":
            return f"{self.metric}: {100 * self.watch:g} / {100 * self.sick:g} points above a fresh network's"
        if self.kind == "shrunk":
            return f"{self.metric}: at most {self.watch:g} / {self.sick:g} times a fresh network's"
        return f"{self.metric}: at least {self.watch:g} / {self.sick:g} times a fresh network's"


RULES = (
    Rule("dormant-ratio", "excess", 0.1, 0.3, "dormant units", "dormant %"),
    Rule("dead-unit-ratio", "excess", 0.1, 0.3, "dead units", "dead %"),
    Rule("low-gradient-ratio", "excess", 0.15, 0.4, "units with low gradient", "low grad %"),
    Rule("zero-gradient-ratio", "excess", 0.1, 0.3, "weights without gradient", "no grad %"),
    Rule("duplicate-ratio", "excess", 0.2, 0.5, "units that repeat others", "copies %"),
    Rule("collapsed-head-ratio", "excess", 0.25, 0.5, "collapsed attention heads", "collapsed %"),
    Rule("layer-rank-share", "shrunk", 0.5, 0.2, "low rank", "rank %"),
    Rule("spectral-norm", "grown", 5.0, 20.0, "large spectral norm", "spectral norm"),
)
# Of the whole network, as shares and gaps; watch and sick.
SICK_LAYERS = 0.25  # share of layers that makes the whole network sick
PROBE_GAP = 0.05, 0.2


@dataclass
class Layer:
    """One module, its figures beside a fresh network's, and what they mean."""

    name: str
    kind: str
    units: int
    figures: dict[str, float]
    fresh: dict[str, float]
    verdict: Verdict = "ok"
    reasons: list[str] = field(default_factory=list)


@dataclass
class Diagnosis:
    """All that was found about a network."""

    title: str
    data: str
    samples: int
    parameters: int
    verdict: Verdict
    reasons: list[str]
    notes: list[str]
    overall: dict[str, float]
    fresh: dict[str, float]
    layers: list[Layer]

    def as_json(self) -> dict[str, Any]:
        """The same in plain values; what is not finite becomes None."""
        found: dict[str, Any] = _finite(asdict(self))
        return {"schema": 1, **found, "thresholds": [asdict(rule) for rule in RULES]}


def diagnose(subject: Subject, metrics: Sequence[str] | None = None) -> Diagnosis:
    """Examine a network and a fresh one beside it; definitions are in :mod:`plastibench.metrics`.

    Args:
        subject: The network and its probe batch; left as they were.
        metrics: Names or groups; by default all but curvature and probes, which take minutes on large networks.
    """
    network, batch = subject.network, subject.batch
    parameters = sum(p.numel() for p in network.module.parameters())
    if reason := _broken(network, batch):
        return Diagnosis(
            *(subject.title, subject.data, len(batch), parameters, "sick"), [reason], subject.notes, {}, {}, []
        )
    names = select(metrics if metrics is not None else USUAL)
    found = _examine(network, batch, names, subject.initial)
    with drawing_from(network, torch.Generator().manual_seed(0)):
        newborn = Network(network.fresh(), None, network.loss, role=network.role, outputs=network.outputs)
    opened = _open_branches(newborn.module, network.module)
    compared = {rule.metric for rule in RULES} & set(names)
    fresh = _examine(newborn, batch, compared, None)
    layers = _layers(network, batch, found, fresh)
    verdict, reasons = _verdict(layers, found.overall)
    notes = [*subject.notes, *opened, *_caveats(network, batch, found, layers)]
    overall = dict(sorted(found.overall.items()))
    return Diagnosis(
        *(subject.title, subject.data, len(batch), parameters, verdict, reasons, notes),
        *(overall, dict(sorted(fresh.overall.items())), layers),
    )


@torch.no_grad()
def _broken(network: Network, batch: TensorDictBase) -> str:
    """What is not finite in a network that nothing more can be said about; else nothing."""
    state = network.module.state_dict()
    broken = [name for name, value in state.items() if not bool(torch.isfinite(value).all())]
    if broken:
        return f"{len(broken)} of its tensors hold values that are not finite: {_few(broken)}"
    with as_evaluated(network.module):
        finite = all(math.isfinite(float(network.loss(network.module, part))) for part in pieces(batch))
    return "" if finite else "its loss on these samples is not finite"


@torch.no_grad()
def _open_branches(fresh: nn.Module, network: nn.Module) -> list[str]:
    """Set scales that begin at 0 to 1, and say so: ResNets begin with closed branches, to which no gradient comes.

    Beside these nothing could be a symptom. A network that has not opened any of them is one that begins, and is left.
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
    return [f"{len(closed)} scales that begin at 0 are 1 in the fresh network, for no gradient passes through a 0"]


def _examine(
    network: Network, batch: TensorDictBase, names: Collection[str], initial: dict[str, torch.Tensor] | None
) -> PlasticityReport:
    units = trace(network, batch)
    found = plasticity_report(network, batch, initial, units)
    found.add(measure_groups(network, batch, names, torch.Generator().manual_seed(0), initial, units))
    return found


def _layers(network: Network, batch: TensorDictBase, found: PlasticityReport, fresh: PlasticityReport) -> list[Layer]:
    """The modules in the order in which they run, attention before the projection that it feeds."""
    layers: list[Layer] = []
    attention = {name for name, module in network.module.named_modules() if is_attention(module)}
    for unit in trace(network, batch):
        parent = unit.name.rpartition(".")[0]
        if unit.name.endswith(".proj") and parent in attention and parent in found.layers:
            layers.append(_layer(parent, "Attention", 0, found, fresh))
        kind = type(unit.module).__name__ + (", outputs" if unit.output else "")
        layers.append(_layer(unit.name, kind, unit_count(unit.module), found, fresh))
    return layers


def _layer(name: str, kind: str, units: int, found: PlasticityReport, fresh: PlasticityReport) -> Layer:
    layer = Layer(name, kind, units, found.layers.get(name, {}), fresh.layers.get(name, {}))
    for rule in RULES:
        if rule.metric not in layer.figures or rule.metric not in layer.fresh:
            continue
        value, usual = layer.figures[rule.metric], layer.fresh[rule.metric]
        severity = rule.severity(value, usual)
        if severity >= rule.watched - 1e-9 and not (rule.kind == "excess" and by_chance(value, usual, units)):
            layer.verdict = "sick" if severity >= 1 - 1e-9 or layer.verdict == "sick" else "watch"
            layer.reasons.append(f"{rule.symptom} {_shown(rule, value)} (fresh {_shown(rule, usual)})")
    return layer


def by_chance(value: float, fresh: float, units: int) -> bool:
    """Whether two shares of so many units differ by no more than two standard errors, as few units often do."""
    pooled = (value + fresh) / 2
    return units > 0 and value - fresh <= 2 * math.sqrt(2 * pooled * (1 - pooled) / units)


def _shown(rule: Rule, value: float) -> str:
    return f"{value:.3g}" if rule.kind == "grown" else f"{100 * value:.0f} %"


def _verdict(layers: Sequence[Layer], overall: dict[str, float]) -> tuple[Verdict, list[str]]:
    sick = [layer.name for layer in layers if layer.verdict == "sick"]
    watched = [layer.name for layer in layers if layer.verdict == "watch"]
    reasons = []
    if sick:
        reasons.append(f"{len(sick)} of {len(layers)} layers are sick: {_few(sick)}")
    if watched:
        reasons.append(f"{len(watched)} of {len(layers)} layers to watch: {_few(watched)}")
    gap = overall.get("plasticity-probe-redrawn-gap", 0.0)
    if not gap < PROBE_GAP[0]:
        reasons.append(f"fits random targets worse than a fresh network (squared error {gap:+.3f})")
    if len(sick) >= SICK_LAYERS * max(1, len(layers)) or not gap < PROBE_GAP[1]:
        return "sick", reasons
    return ("watch" if reasons else "ok"), reasons


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")


def _caveats(network: Network, batch: TensorDictBase, found: PlasticityReport, layers: Sequence[Layer]) -> list[str]:
    notes = []
    head = next((layer for layer in layers if layer.kind.endswith("outputs")), None)
    width = network.module.get_submodule(head.name).weight[0].numel() if head is not None else 0  # type: ignore[index]
    if len(batch) < 2 * width and "effective-rank" in found.overall:
        notes.append(
            f"{len(batch)} samples are few for ranks of the head's input, which has {width} features: "
            f"these ranks are bounded by the samples (--samples {2 * width})"
        )
    return notes


def needs_labels(metric: str) -> bool:
    """Whether a metric is computed from the loss, and thereby from labels."""
    return any(part in metric for part in _PARTS_OF_LOSS)


def help_text() -> str:
    """The thresholds, for ``--help``."""
    lines = ["A layer is to watch / sick from these thresholds on:"]
    lines += [f"  {rule.describe()}" for rule in RULES]
    lines.append("Shares must also differ by more than two standard errors of so many units.")
    lines.append(f"The network is sick if {100 * SICK_LAYERS:g} % of its layers are, or if")
    lines.append(f"plasticity-probe-redrawn-gap is at least {PROBE_GAP[1]:g} (watch: {PROBE_GAP[0]:g}, or any layer).")
    lines.append("They are rules of thumb, not tests.")
    return "\n".join(lines)


def report(found: Diagnosis) -> str:
    """The diagnosis as text for a terminal."""
    rules = [rule for rule in RULES if any(rule.metric in layer.figures for layer in found.layers)]
    header = ["layer", "kind", "units", *(rule.column for rule in rules), "weight norm", "verdict"]
    rows = [
        [
            *(layer.name, layer.kind, str(layer.units or "–")),
            *(cell(rule, layer) for rule in rules),
            _number(layer.figures.get("weight-norm")),
            layer.verdict,
        ]
        for layer in found.layers
    ]
    lines = [found.title, f"on {found.samples} samples: {found.data}", f"{found.parameters:,} parameters", ""]
    if rows:
        lines += [text_table(header, rows), ""]
    why = [f"  {layer.name}: {layer.verdict}, {'; '.join(layer.reasons)}" for layer in found.layers if layer.reasons]
    if why:
        lines += ["why:", *why, ""]
    width = max(map(len, found.overall), default=0)
    for name, value in found.overall.items():
        fresh = f"   (fresh {value_text(found.fresh[name])})" if name in found.fresh else ""
        loss = "  *" if needs_labels(name) else ""
        lines.append(f"{name:{width}}  {value_text(value)}{fresh}{loss}")
    if any(needs_labels(name) for name in found.overall):
        lines.append("* computed from the loss, and so from labels or targets")
    lines += ["", *(f"note: {note}" for note in found.notes)]
    reasons = f": {'; '.join(found.reasons)}" if found.reasons else ""
    lines.append(f"verdict: {found.verdict}{reasons}")
    return "\n".join(lines)


def cell(rule: Rule, layer: Layer) -> str:
    """A figure of a layer as tables and pictures show it."""
    value = layer.figures.get(rule.metric)
    if value is None or not math.isfinite(value):
        return "–" if value is None else "nan"
    return _number(value) if rule.kind == "grown" else f"{100 * value:.0f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def value_text(value: float) -> str:
    """A figure of the whole network."""
    return f"{value:.4g}"


def definition(metric: str) -> str:
    """What a metric is, for those who read a report."""
    from plastibench.metrics import METRICS

    return METRICS.get(metric, PLASTICITY.get(metric, ""))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
