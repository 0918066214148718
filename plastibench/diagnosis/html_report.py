"""A diagnosis as a self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plastibench.diagnosis.diagnose import Diagnosis, Layer, definition, needs_labels
from plastibench.diagnosis.heat_map import MARKS
from plastibench.diagnosis.rules import Rule, thresholds_text
from plastibench.diagnosis.text_report import format_value
from plastibench.utils.atomic_io import write_text
from plastibench.utils.pages import load_template

_TEMPLATE = "diagnosis.html.j2"


def write_page(found: Sequence[Diagnosis], path: Path) -> None:
    """Write the page: for each network its verdict, a table of layers coloured by severity, and its metrics."""
    template = load_template("plastibench.diagnosis", _TEMPLATE)
    networks = [_network(each) for each in found]
    write_text(path, template.render(networks=networks, marks=MARKS, thresholds=thresholds_text()) + "\n")


def _network(found: Diagnosis) -> dict[str, Any]:
    """The values that the template shows for one network."""
    return {
        "found": found,
        "columns": [{"heading": rule.column, "definition": definition(rule.metric)} for rule in found.rules],
        "rows": [{"layer": each, "cells": [_cell(rule, each) for rule in found.rules]} for each in found.layers],
        "metrics": [
            {
                "name": name,
                "value": format_value(value),
                "fresh": format_value(found.fresh[name]) if name in found.fresh else "",
                "needs_labels": needs_labels(name),
                "definition": definition(name),
            }
            for name, value in found.overall.items()
        ],
    }


def _cell(rule: Rule, layer: Layer) -> dict[str, Any]:
    """Text, severity in percent or None, and the fresh network's value."""
    severity = layer.severity(rule)
    return {
        "text": rule.format(layer.values.get(rule.metric)),
        "severity": None if severity is None else round(100 * severity),
        "fresh": rule.format(layer.fresh.get(rule.metric)),
    }
