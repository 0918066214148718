"""Rules of a diagnosis: which values are symptoms, and the verdicts that follow.

Each value is compared with that of a freshly initialized network of the same architecture on the same data, because
architectures start from very different values: a fraction of dormant units or a low rank says little by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from plastibench.utils.wording import plural

Verdict = Literal["ok", "watch", "sick"]


@dataclass(frozen=True)
class Rule:
    """Thresholds beyond which a layer's value is a symptom.

    Attributes:
        metric: Name of the metric.
        kind: How the value is compared with the fresh network's: ``excess``, a fraction by its difference; ``shrunk``
            and ``grown`` by the ratio.
        watch: Threshold of the verdict "watch".
        sick: Threshold of the verdict "sick".
        symptom: Description in reports.
        column: Heading in tables and plots.
    """

    metric: str
    kind: Literal["excess", "shrunk", "grown"]
    watch: float
    sick: float
    symptom: str
    column: str

    def severity(self, value: float, fresh: float) -> float:
        """Severity in [0, 1]: 0 is a fresh network's value or better, 1 is sick."""
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
    def watch_severity(self) -> float:
        """The severity from which the verdict is "watch"."""
        return self.severity(self.watch, 0.0 if self.kind == "excess" else 1.0)

    def format(self, value: float | None) -> str:
        """A value as tables and plots show it: fractions in percent."""
        if value is None:
            return "–"
        if not math.isfinite(value):
            return "nan"
        return f"{value:.3g}" if self.kind == "grown" else f"{100 * value:.0f}"

    def describe(self) -> str:
        """The thresholds in words."""
        if self.kind == "excess":
            return f"{self.metric}: {100 * self.watch:g} / {100 * self.sick:g} percentage points above fresh"
        if self.kind == "shrunk":
            return f"{self.metric}: at most {self.watch:g} / {self.sick:g} times fresh"
        return f"{self.metric}: at least {self.watch:g} / {self.sick:g} times fresh"


RULES = (
    Rule("dormant-ratio", "excess", 0.1, 0.3, "dormant units", "dormant %"),
    Rule("dead-unit-ratio", "excess", 0.1, 0.3, "dead units", "dead %"),
    Rule("low-gradient-ratio", "excess", 0.15, 0.4, "units with low gradient", "low grad %"),
    Rule("zero-gradient-ratio", "excess", 0.1, 0.3, "weights with zero gradient", "zero grad %"),
    Rule("duplicate-ratio", "excess", 0.2, 0.5, "duplicate units", "duplicate %"),
    Rule("collapsed-head-ratio", "excess", 0.25, 0.5, "collapsed attention heads", "collapsed %"),
    Rule("layer-rank-fraction", "shrunk", 0.5, 0.2, "low rank", "rank %"),
    Rule("spectral-norm", "grown", 5.0, 20.0, "large spectral norm", "spectral norm"),
)
SICK_LAYERS = 0.25  # fraction of sick layers that makes the network sick
PROBE = "plasticity-probe-fresh-gap"
PROBE_GAP = 0.05, 0.2  # watch and sick


def judge_layer(values: Mapping[str, float], fresh: Mapping[str, float], units: int) -> tuple[Verdict, list[str]]:
    """The verdict on a layer, with a reason for each symptom.

    Args:
        values: Metric to value.
        fresh: The same of a fresh network.
        units: Number of units over which fractions are computed; 0 if unknown.
    """
    verdict: Verdict = "ok"
    reasons = []
    for rule in RULES:
        if rule.metric not in values or rule.metric not in fresh:
            continue
        value, usual = values[rule.metric], fresh[rule.metric]
        severity = rule.severity(value, usual)
        if severity >= rule.watch_severity - 1e-9 and not (rule.kind == "excess" and by_chance(value, usual, units)):
            verdict = "sick" if severity >= 1 - 1e-9 or verdict == "sick" else "watch"
            reasons.append(f"{rule.symptom} {_with_unit(rule, value)} (fresh {_with_unit(rule, usual)})")
    return verdict, reasons


def judge_network(layers: Mapping[str, Verdict], overall: Mapping[str, float]) -> tuple[Verdict, list[str]]:
    """The verdict on a network, with its reasons.

    Args:
        layers: Name of each layer to its verdict.
        overall: Metrics of the network.
    """
    sick = [name for name, verdict in layers.items() if verdict == "sick"]
    watched = [name for name, verdict in layers.items() if verdict == "watch"]
    reasons = []
    if sick:
        reasons.append(f"{len(sick)} of {plural(len(layers), 'layer')} sick: {shorten(sick)}")
    if watched:
        reasons.append(f'{len(watched)} of {plural(len(layers), "layer")} "watch": {shorten(watched)}')
    gap = overall.get(PROBE, 0.0)
    if not gap < PROBE_GAP[0]:
        reasons.append(f"fits random targets worse than a fresh network (squared error {gap:+.3f})")
    if len(sick) >= SICK_LAYERS * max(1, len(layers)) or not gap < PROBE_GAP[1]:
        return "sick", reasons
    return ("watch" if reasons else "ok"), reasons


def by_chance(value: float, fresh: float, units: int) -> bool:
    """Whether two fractions of this many units differ by at most two standard errors."""
    pooled = (value + fresh) / 2
    return units > 0 and value - fresh <= 2 * math.sqrt(2 * pooled * (1 - pooled) / units)


def thresholds_text() -> str:
    """All thresholds, for ``--help`` and reports."""
    lines = ["thresholds of a layer (watch / sick), compared with a freshly initialized network:"]
    lines += [f"  {rule.describe()}" for rule in RULES]
    lines.append("  Differences in percentage points must also exceed two standard errors.")
    lines.append("thresholds of the network:")
    lines.append(f'  watch: at least one layer is "watch" or "sick", or {PROBE} >= {PROBE_GAP[0]:g}')
    lines.append(f'  sick: at least {100 * SICK_LAYERS:g} % of the layers are "sick", or {PROBE} >= {PROBE_GAP[1]:g}')
    lines.append("These are rules of thumb, not statistical tests.")
    return "\n".join(lines)


def shorten(names: Sequence[str]) -> str:
    """The first four names."""
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")


def _with_unit(rule: Rule, value: float) -> str:
    return f"{value:.3g}" if rule.kind == "grown" else f"{100 * value:.0f} %"
