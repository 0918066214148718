"""Diagnose a network: measure it and a fresh one on the same data, and give every layer a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from plastibench.diagnosis.loading import DiagnosisTarget
from plastibench.diagnosis.rules import RULES, Rule, Verdict, judge_layer, judge_network, shorten
from plastibench.metrics import MEASUREMENTS, PLASTICITY, select
from plastibench.metrics.activation_sums import SAMPLED_ROWS
from plastibench.metrics.compute import compute_metrics
from plastibench.metrics.observation import Observation, observe
from plastibench.metrics.plasticity import PlasticityReport, plasticity_report
from plastibench.metrics.probes import use_generator
from plastibench.nn.attention import is_attention
from plastibench.nn.coverage import Coverage, coverage, modules_in_part
from plastibench.nn.dataflow import trace, trace_with_reasons
from plastibench.nn.network import Network
from plastibench.nn.parameters import saved_tensors
from plastibench.nn.row_sample import RowSample
from plastibench.nn.traced_layer import TracedLayer
from plastibench.nn.units import unit_count
from plastibench.utils.wording import plural

DEFAULT_GROUPS = ("activity", "gradients", "ranks", "weights")  # curvature and probes take minutes on large networks
#: Without the gradients of single samples: for large networks, about as informative as the default and much faster.
QUICK_GROUPS = ("activity", "zero-gradient-ratio", "ranks", "weights")
QUICK_ROWS = 4096  # rows of each layer that a quick examination uses
_TRACED = 2  # samples that suffice to find the layers and what reads them
_FEWEST_ROWS = 16  # with fewer rows, some of many pairs of units correlate by chance
_SLOW = tuple(  # of the default metrics, those of single samples
    name for name in select(DEFAULT_GROUPS) if name not in select((*QUICK_GROUPS, "tiny-gradient-ratio"))
)
Progress = Callable[[str], None]
_FROM_LOSS = ("gradient", "hessian", "curvature", "sam", "next-task")  # parts of the names of metrics that use the loss


@dataclass
class Layer:
    """A module with its values, those of a fresh network, and the verdict.

    ``rows`` is the number of samples, tokens or positions behind the statistics of its units; 0 if there are none.
    """

    name: str
    kind: str
    units: int
    rows: int
    values: Mapping[str, float]
    fresh: Mapping[str, float]
    verdict: Verdict = "ok"
    reasons: list[str] = field(default_factory=list)

    @classmethod
    def judged(
        cls, name: str, kind: str, units: int, rows: int, found: PlasticityReport, fresh: PlasticityReport
    ) -> Layer:
        """A layer with its verdict."""
        values, usual = found.layers.get(name, {}), fresh.layers.get(name, {})
        return cls(name, kind, units, rows, values, usual, *judge_layer(values, usual, units))

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
    sampled_rows: int | None = None,
) -> Diagnosis:
    """Examine a network and a fresh one; :mod:`plastibench.metrics` defines the metrics.

    Each network runs forward and backward once over the batch; most metrics are computed from this pass.

    Args:
        target: The network and its probe batch; neither is modified.
        metrics: Names of metrics or groups; default: :data:`DEFAULT_GROUPS`.
        selector: Part of the network whose modules are listed; one of :data:`plastibench.nn.selectors.PARTS`.
        progress: Receives a line about each step.
        sampled_rows: Number of random rows of each layer to use, for a quick examination; default: all.
    """
    say = progress or _silent
    network, batch = target.network, target.batch
    parameters = sum(p.numel() for p in network.module.parameters())
    about = (target.title, target.data, len(batch), parameters)
    if reason := _not_finite(network):
        return Diagnosis(*about, "sick", [reason], target.notes)
    names = select(metrics if metrics is not None else DEFAULT_GROUPS)
    say("network: tracing its layers")
    traced = trace_with_reasons(network, batch, _TRACED)
    found, observed = _measure("network", network, traced[0], batch, names, target.initial, say, sampled_rows)
    if not observed.finite:
        return Diagnosis(*about, "sick", ["its loss on these samples is not finite"], target.notes)
    say("fresh network: initializing")
    with use_generator(network, torch.Generator().manual_seed(0)):
        fresh_network = Network(network.fresh(), None, network.loss, role=network.role, outputs=network.outputs)
    opened = _open_branches(fresh_network.module, network.module)
    compared = {rule.metric for rule in RULES} & set(names)
    layers_of_fresh = _same_layers(traced[0], fresh_network, batch)
    fresh, _ = _measure("fresh network", fresh_network, layers_of_fresh, batch, compared, None, say, sampled_rows)
    chance = _drop_chance_duplicates(found, fresh, observed.rows) if sampled_rows is not None else []
    layers = _layers(network, traced[0], observed.rows, found, fresh)
    verdict, reasons = judge_network({layer.name: layer.verdict for layer in layers}, found.overall)
    sampled = [] if sampled_rows is None else _sampling_notes(names, sampled_rows, observed.rows)
    notes = [*target.notes, *opened, *sampled, *chance, *_rank_caveat(network, batch, found, layers)]
    overall, usual = dict(sorted(found.overall.items())), dict(sorted(fresh.overall.items()))
    say("coverage of unit-level methods")
    selected = None if selector is None else modules_in_part(network, batch, selector, traced)
    covered = coverage(network, batch, traced)
    return Diagnosis(*about, verdict, reasons, notes, overall, usual, layers, covered, selected)


def definition(metric: str) -> str:
    """The definition of a metric, or an empty string."""
    from plastibench.metrics import METRICS

    return METRICS.get(metric, PLASTICITY.get(metric, ""))


def needs_labels(metric: str) -> bool:
    """Whether a metric is computed from the loss, and therefore from labels or targets."""
    return any(part in metric for part in _FROM_LOSS)


@torch.no_grad()
def _not_finite(network: Network) -> str:
    """Which tensors of the network are not finite, or an empty string; such a network cannot be measured."""
    tensors = saved_tensors(network.module)
    broken = [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if not broken:
        return ""
    return f"{plural(len(broken), 'tensor is', 'tensors are')} not finite: {shorten(broken)}"


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
    what: str,
    network: Network,
    layers: Sequence[TracedLayer],
    batch: TensorDictBase,
    names: Collection[str],
    initial: dict[str, torch.Tensor] | None,
    say: Progress,
    sampled_rows: int | None,
) -> tuple[PlasticityReport, Observation]:
    say(f"{what}: forward and backward pass over {plural(len(batch), 'sample')}")
    needed = {each.needs for each in MEASUREMENTS if not each.definitions.keys().isdisjoint(names)}
    observed = observe(network, batch, layers, needed, None if sampled_rows is None else RowSample(sampled_rows))
    if not observed.finite:
        return PlasticityReport(), observed
    ran = [layer for layer in layers if observed.rows.get(layer.name, 1)]
    say(f"{what}: {', '.join(PLASTICITY)}")
    found = plasticity_report(network, batch, initial, ran, observed)
    generator = torch.Generator().manual_seed(0)
    progress = partial(_say_about, say, what)
    found.add(compute_metrics(network, batch, names, generator, initial, ran, progress, observed))
    return found, observed


def _silent(line: str) -> None:
    """Show no progress."""


def _say_about(say: Progress, what: str, names: str) -> None:
    say(f"{what}: {names}")


def _same_layers(layers: Sequence[TracedLayer], fresh: Network, batch: TensorDictBase) -> list[TracedLayer]:
    """The layers of a fresh network: those of the network, unless its modules have other names or shapes."""
    modules = dict(fresh.module.named_modules())
    found = [replace(layer, module=modules[layer.name]) for layer in layers if layer.name in modules]
    shapes = [(layer.module.weight.shape, each.module.weight.shape) for layer, each in zip(layers, found, strict=False)]
    same = len(found) == len(layers) and all(one == other for one, other in shapes)
    return found if same else trace(fresh, batch)


def _drop_chance_duplicates(found: PlasticityReport, fresh: PlasticityReport, rows: Mapping[str, int]) -> list[str]:
    """Remove ``duplicate-ratio`` of layers with too few rows, and of the network if there are any; return a note."""
    few = [name for name, values in found.layers.items() if "duplicate-ratio" in values and rows[name] < _FEWEST_ROWS]
    for report in (found, fresh) if few else ():
        report.overall.pop("duplicate-ratio", None)
        for name in few:
            report.layers.get(name, {}).pop("duplicate-ratio", None)
    if not few:
        return []
    return [
        f"duplicate-ratio is left out for {plural(len(few), 'layer')} with fewer than {_FEWEST_ROWS} rows "
        f"({shorten(few)}); use --samples {_FEWEST_ROWS}"
    ]


def _sampling_notes(names: Collection[str], sampled_rows: int, rows: Mapping[str, int]) -> list[str]:
    """What a quick examination samples and leaves out."""
    notes = []
    if any(count > SAMPLED_ROWS for count in rows.values()):
        notes.append(
            f"up to {sampled_rows:,} random rows (samples, tokens or positions) of each layer are used, and of these "
            f"{SAMPLED_ROWS:,} for layer-rank-fraction and duplicate-ratio; --thorough uses more"
        )
    if missing := [name for name in _SLOW if name not in names]:
        notes.append(f"not computed: {', '.join(missing)}; --thorough computes them")
    return notes


def _layers(
    network: Network,
    traced: Sequence[TracedLayer],
    rows: Mapping[str, int],
    found: PlasticityReport,
    fresh: PlasticityReport,
) -> list[Layer]:
    """The modules in the order in which they run, each attention before its output projection."""
    layers: list[Layer] = []
    attention = {name for name, module in network.module.named_modules() if is_attention(module)}
    for unit in traced:
        parent, count = unit.name.rpartition(".")[0], rows.get(unit.name, 0)
        if unit.name.endswith(".proj") and parent in attention and parent in found.layers:
            layers.append(Layer.judged(parent, "Attention", 0, count, found, fresh))
        kind = type(unit.module).__name__ + (", outputs" if unit.output else "")
        layers.append(Layer.judged(unit.name, kind, unit_count(unit.module), count, found, fresh))
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
