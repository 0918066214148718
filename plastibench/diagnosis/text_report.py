"""A diagnosis as text for the terminal."""

from __future__ import annotations

from plastibench.diagnosis.diagnose import Diagnosis, needs_labels
from plastibench.nn.coverage import Coverage
from plastibench.utils.tables import text_table
from plastibench.utils.wording import plural


def report(found: Diagnosis) -> str:
    """A table of layers, the reasons, the metrics of the network, notes, and the verdict."""
    lines = [
        found.title,
        f"on {plural(found.samples, 'sample')}: {found.data}",
        plural(found.parameters, "parameter"),
        "",
    ]
    if found.layers:
        lines += [_table(found), ""]
    reasons = [
        f"  {layer.name}: {layer.verdict}, {'; '.join(layer.reasons)}" for layer in found.layers if layer.reasons
    ]
    if reasons:
        lines += ["reasons:", *reasons, ""]
    if found.selected is not None:
        total = sum(count for _, count in found.selected)
        lines += [f"selected: {plural(len(found.selected), 'module')}, {plural(total, 'parameter')}"]
        lines += [*(f"  {name}  {count:,}" for name, count in found.selected), ""]
    if found.coverage is not None:
        lines += [_coverage(found.coverage), ""]
    width = max(map(len, found.overall), default=0)
    for name, value in found.overall.items():
        fresh = f"   (fresh {format_value(found.fresh[name])})" if name in found.fresh else ""
        mark = "  *" if needs_labels(name) else ""
        lines.append(f"{name:{width}}  {format_value(value)}{fresh}{mark}")
    if any(needs_labels(name) for name in found.overall):
        lines.append("* depends on the loss, and therefore on labels or targets")
    lines += ["", *(f"note: {note}" for note in found.notes)]
    why = f": {'; '.join(found.reasons)}" if found.reasons else ""
    lines.append(f"verdict: {found.verdict}{why}")
    return "\n".join(lines)


def _coverage(found: Coverage) -> str:
    """One line, plus a table of the modules that are not covered if they have more than a few parameters."""
    line = f"coverage: unit-level methods act on {100 * found.fraction:.1f} % of the parameters"
    missing = [group for group in found.missing() if group[3] >= 0.001 * found.parameters]
    if not missing:
        return line
    rows = [[kind, f"{count}", f"{size:,}", why] for kind, why, count, size in missing]
    return f"{line}\n{text_table(['not covered', 'modules', 'parameters', 'why'], rows)}"


def format_value(value: float) -> str:
    """A metric of the network."""
    return f"{value:.4g}"


def _table(found: Diagnosis) -> str:
    header = ["layer", "kind", "units", "rows", *(rule.column for rule in found.rules), "weight norm", "verdict"]
    rows = []
    for layer in found.layers:
        norm = layer.values.get("weight-norm")
        cells = [rule.format(layer.values.get(rule.metric)) for rule in found.rules]
        units = str(layer.units or "–")
        seen = f"{layer.rows:,}" if layer.rows else "–"
        rows.append(
            [layer.name, layer.kind, units, seen, *cells, "–" if norm is None else f"{norm:.3g}", layer.verdict]
        )
    return text_table(header, rows)
