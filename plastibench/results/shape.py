"""What every reader of results relies on: a file that was damaged or made by hand is left out before it does harm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_LARGEST = 1e15  # no figure of a run is larger, and pictures bear no more
_FIGURE, _MAYBE = "a figure", "a figure or null"
_PARTS = {"env": dict, "agent": dict, "intervention": dict}
_SHAPE: dict[str, Any] = {
    **dict.fromkeys(("id", "group", "env", "agent", "intervention"), str),
    **dict.fromkeys(("seed", "every"), int),
    "changed": _PARTS,
    "options": _PARTS,
    "cost": {"seconds": _FIGURE, "intervention-seconds": _FIGURE},
    "origin": {
        "commit": (str, type(None)),
        "versions": {"torch": str},
        "hardware": {"processor": str, "device": str},
        "threads": int,
        "precision": str,
    },
    "interventions": list,
    "plasticity": list,
}
_SCENARIO = {"version": (int, type(None)), "data": (str, type(None))}
_FINAL = {"tasks": "final-accuracy", "returns": "final-return"}
_EACH: dict[str, dict[str, Any]] = {
    "tasks": {"task": int, "end": _FIGURE, "drop": _MAYBE},
    "returns": {"task": int, "steps": int, "value": _FIGURE},
    "events": {"steps": int, "drop": _MAYBE},
    "plasticity": {"task": int, "phase": str, "role": str},
}


def mistake(result: Mapping[str, Any]) -> str:
    """What first is not as it must be, as ``cost.seconds is missing``; empty where all is well."""
    found = _mismatch(result, _SHAPE, "")
    for name in ("summary", "cost"):
        values = result.get(name)
        if not isinstance(values, dict):
            return found or f"{name} is {_told(values)}"
        found = found or _mismatch(values, dict.fromkeys(values, _MAYBE), f"{name}.")
    for name in ("schedule", "run", "scenario"):
        if name in result and not isinstance(result[name], dict):
            found = found or f"{name} is {_told(result[name])}"
    if isinstance(result.get("scenario"), dict):
        found = found or _mismatch(result["scenario"], _SCENARIO, "scenario.")
    kinds = [name for name in _FINAL if name in result]
    if len(kinds) != 1 or not result[kinds[0]]:
        return found or "it holds neither tasks nor returns"
    if kinds == ["returns"] and "events" not in result:
        found = found or "events are missing"
    if result["summary"].get(_FINAL[kinds[0]]) is None:
        found = found or f"summary.{_FINAL[kinds[0]]} is missing"
    for name, shape in _EACH.items():
        rows = result.get(name, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            return found or f"{name} is no list of objects"
        for number, row in enumerate(rows):
            found = found or _mismatch(row, shape, f"{name}[{number}].")
            if name == "plasticity" and not found:
                figures = {key: value for key, value in row.items() if key not in shape}
                found = next((f"{name}[{number}].{k} is {_told(v)}" for k, v in figures.items() if not _numeric(v)), "")
    return found


def _mismatch(value: Mapping[str, Any], shape: Mapping[str, Any], path: str) -> str:
    for key, wanted in shape.items():
        there = value.get(key)
        if isinstance(wanted, dict):
            inner = _mismatch(there, wanted, f"{path}{key}.") if isinstance(there, dict) else f"{path}{key} is missing"
            if inner:
                return inner
        elif not _fits(there, wanted):
            return f"{path}{key} is {'missing' if there is None else _told(there)}"
    return ""


def _fits(value: Any, wanted: Any) -> bool:
    if wanted in (_FIGURE, _MAYBE):
        if value is None:
            return bool(wanted == _MAYBE)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and math.isfinite(value) and abs(value) < _LARGEST
    return isinstance(value, wanted) and not (wanted is int and isinstance(value, bool))


def _numeric(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _told(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
