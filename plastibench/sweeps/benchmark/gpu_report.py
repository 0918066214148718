"""The files of ``bench gpu``: one JSON file with everything, and one Markdown table; both are replaced atomically."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from plastibench.config.errors import UserError
from plastibench.utils import atomic_io
from plastibench.utils.tables import markdown_table
from plastibench.utils.wording import plural

JSON_FILE, MARKDOWN_FILE = "bench-gpu.json", "bench-gpu.md"
_FORMAT = 1
_DONE = ("measured", "not supported")  # such rows are not measured again

Record = dict[str, Any]


class GpuReport:
    """The rows measured so far, in a folder.

    Attributes:
        folder: The folder.
        records: The record of each row, by name: ``status``, ``took`` (seconds), ``session`` and the measured values.
        sessions: Where and with what each call measured: command, commit, torch, hardware.
    """

    def __init__(self, folder: Path, session: Record, names: Sequence[str], rehearsal: bool) -> None:
        """Create the folder, or continue it.

        Args:
            folder: The folder.
            session: Where and with what this call measures.
            names: Names of the rows that are wanted.
            rehearsal: Whether the numbers mean nothing.

        Raises:
            UserError: The folder holds something else, or measurements of another device.
        """
        self.folder, self.names, self.rehearsal = folder, names, rehearsal
        self.records: dict[str, Record] = {}
        self.sessions: list[Record] = []
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / JSON_FILE).exists():
            self._load(session["hardware"])
        self.sessions.append(session)

    def is_done(self, name: str) -> bool:
        """Whether a row needs no further measurement."""
        return name in self.records and self.records[name]["status"] in _DONE

    def has_failed(self, name: str) -> bool:
        """Whether the latest measurement of a row failed."""
        return name in self.records and self.records[name]["status"] == "failed"

    def add(self, name: str, record: Record) -> None:
        """Record a row, and write both files."""
        self.records[name] = {**record, "session": len(self.sessions) - 1}
        self.write()

    @property
    def missing(self) -> list[str]:
        """Names of the rows that are still to be measured."""
        return [name for name in self.names if name not in self.records]

    def write(self) -> None:
        """Write both files."""
        content = {"format": _FORMAT, "rehearsal": self.rehearsal, "sessions": self.sessions, "rows": self.records}
        atomic_io.write_text(self.folder / JSON_FILE, json.dumps(content, indent=1) + "\n")
        atomic_io.write_text(self.folder / MARKDOWN_FILE, self.to_markdown() + "\n")

    def to_markdown(self) -> str:
        """A table per kind of row, and lists of what could not be measured."""
        last = self.sessions[-1]
        hardware = last["hardware"]
        lines = [
            f"# {hardware['device']}",
            f"{hardware['processor']}, {plural(hardware['cores'], 'core')}, torch {last['torch']}, "
            f"commit {last['commit']}",
        ]
        if self.rehearsal:
            lines.append("**A rehearsal with tiny networks: the numbers mean nothing.**")
        for kind, (title, header, cells) in _TABLES.items():
            rows = [[_label(name), *cells(record)] for name, record in self._measured(kind)]
            if rows:
                lines += [f"## {title}", markdown_table(["row", *header], rows)]
        for status in ("incomplete", "failed", "not supported"):
            reasons = {name: each["reason"] for name, each in self.records.items() if each["status"] == status}
            found = [f"- `{name}`: {reason}" for name, reason in reasons.items()]
            if found:
                lines += [f"## {status.capitalize()}", "\n".join(found)]
        if self.missing:
            lines += ["## Missing", "\n".join(f"- `{name}`" for name in self.missing)]
        return "\n\n".join(lines)

    def _measured(self, kind: str) -> list[tuple[str, Record]]:
        shown = ("measured", "incomplete")
        found = self.records.items()
        return [(name, each) for name, each in found if name.split()[0] == kind and each["status"] in shown]

    def _load(self, hardware: Record) -> None:
        path = self.folder / JSON_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']}")
            self.records, self.sessions = content["rows"], content["sessions"]
            device, rehearsal = self.sessions[-1]["hardware"]["device"], content["rehearsal"]
            self.to_markdown()
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise UserError(f"{path} cannot be read ({type(error).__name__}: {error}); name another --out") from error
        if rehearsal != self.rehearsal:
            kinds = {True: "a rehearsal", False: "real measurements"}
            raise UserError(f"{path} holds {kinds[rehearsal]}; name another --out")
        if device != hardware["device"]:
            raise UserError(f"{path} was measured on {device}, not on {hardware['device']}; name another --out")


def _label(name: str) -> str:
    return name.partition(" ")[2]


def _middle(values: Sequence[float] | None, scale: float = 1.0, digits: int = 3) -> str:
    if values is None:
        return "–"
    low, middle, high = (f"{scale * value:,.{digits}f}" for value in values)
    return f"{middle} ({low}–{high})"


def _update(record: Record) -> list[str]:
    seconds = record["plastibench"][1]
    return [
        _middle(record["plastibench"], 1e3, 2),
        f"{record['batch_size'] / seconds:,.0f}",
        f"{record['flops'] / seconds / 1e12:.2f}",
        _middle(record["ratio"]),
        _middle(record["reached"], 100, 1),
    ]


def _loader(record: Record) -> list[str]:
    times = [_middle(record[name], 1e3, 2) for name in ("plastibench", "loader")]
    return [*times, str(record["workers"]), _middle(record["loader_gain"], digits=2)]


def _stack(record: Record) -> list[str]:
    times = [_middle(record[name], 1e3, 2) for name in ("plastibench", "stacked")]
    return [record["by"], *times, _middle(record["stack_gain"], digits=2)]


def _rnr(record: Record) -> list[str]:
    return [f"{1e3 * record['seconds_each']:.1f}", f"{record['updates_each']:.1f}", f"{record['images']:,}"]


def _logits(record: Record) -> list[str]:
    relative = record["largest_difference"] / record["standard_deviation"]
    same = [f"{100 * record[name]:.2f}" for name in ("equal_predictions", "equal_units")]
    return [f"{record['largest_difference']:.2e}", f"{relative:.2e}", *same]


def _sync(record: Record) -> list[str]:
    return [str(record["updates"]), str(record["syncs"]), ", ".join(record["places"]) or "–"]


def _runs(record: Record) -> list[str]:
    cells = []
    for values in record["methods"].values():
        done = values["progress"] or 0.0
        cells.append(f"{100 * values['accuracy']:.1f} %" if "accuracy" in values else f"{100 * done:.0f} % done")
    text = ", ".join(f"{name} {cell}" for name, cell in zip(record["methods"], cells, strict=True))
    return [text or "–", f"{record['seconds']:.0f}"]


_TABLES: dict[str, tuple[str, list[str], Callable[[Record], list[str]]]] = {
    "update": (
        "Updates",
        ["ms", "samples/s", "TFLOP/s", "time, plain eager = 1", "matrix products, %"],
        _update,
    ),
    "loader": ("Against a loop with a DataLoader", ["ms", "DataLoader, ms", "workers", "times as fast"], _loader),
    "stack": ("Several networks together", ["by", "alone, ms", "each, ms", "times as fast"], _stack),
    "rnr": ("One RnR intervention", ["ms", "in updates", "images"], _rnr),
    "logits": (
        "Logits after RnR, CPU against device",
        ["largest difference", "relative to the deviation", "equal predictions, %", "equal units, %"],
        _logits,
    ),
    "sync": ("Waiting for the GPU during updates", ["updates", "syncs", "where"], _sync),
    "runs": ("Training: final accuracy", ["methods", "seconds"], _runs),
}
