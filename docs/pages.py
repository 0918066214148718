"""Writes the pages that follow from the code: one per method, the lists of names, the API. Called by conf.py."""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from plastibench.config import registry
from plastibench.config.options import describe_type, flag_name, options_of
from plastibench.interventions.base import Intervention
from plastibench.metrics import METRICS

ROOT = Path(__file__).parent.parent
SURVEYS = ROOT / "runs" / "reference" / "survey"
HOOKS = {
    "prepare": "before training",
    "penalty": "in the loss of every update",
    "before_update": "before every optimizer step",
    "after_update": "after every optimizer step",
    "intervene": "at task switches, or every so many updates",
    "evaluated": "in evaluation",
}
API = [
    "network",
    "attached",
    "interventions.base",
    "runner",
    "spec",
    "registry",
    "options",
    "memory",
    "replay",
    "results.result",
    "results.files",
    "results.table",
    "results.confidence",
    "leaderboard.standings",
    "leaderboard.rows",
    "leaderboard.contest",
    "figures",
]


def write(folder: Path) -> None:
    """Write all pages below ``folder``; none of them is kept in git."""
    for page, text in {**methods(), **lists(), **api(), "index.md": start(folder)}.items():
        (folder / page).parent.mkdir(exist_ok=True)
        (folder / page).write_text(text, encoding="utf-8")


def methods() -> dict[str, str]:
    """A page per class of interventions, with all names that it goes by."""
    names: dict[type, list[registry.Entry]] = defaultdict(list)
    for entry in registry.interventions.all().values():
        names[entry.load()].append(entry)
    found = {}
    index = ["# Methods", "", "| name | what it does | acts |", "| :-- | :-- | :-- |"]
    for cls, entries in names.items():
        page = f"{entries[0].name}.md"
        index += [f"| [`{e.name}`]({page}) | {cell(e.summary)} | {', '.join(acts(cls))} |" for e in entries]
        found[f"methods/{page}"] = "\n\n".join(method(cls, entries)) + "\n"
    return {**found, "methods/index.md": "\n".join([*index, *contents(found)]) + "\n"}


def method(cls: type, entries: list[registry.Entry]) -> list[str]:
    """What it is called, does, costs, and brought on digits."""
    parts = [f"# {entries[0].name}"]
    parts.append("\n".join(f"- `--intervention {entry.name}`: {entry.summary}{given(entry)}" for entry in entries))
    parts.append(f"Acts {'; '.join(acts(cls)) or 'not at all'}.")
    parts.append(rst(f".. autoclass:: {cls.__module__}.{cls.__qualname__}\n   :no-members:\n   :no-undoc-members:"))
    options = []
    for name, field in options_of(cls).items():
        columns = [f"`--intervention.{flag_name(name)}`", describe_type(cls, name), field.metadata.get("help", "")]
        options.append(f"| {' | '.join(map(cell, columns))} | `{field.default}` |")
    if options:
        parts.append(
            "\n".join(["## Options", "", "| flag | type | | default |", "| :-- | :-- | :-- | :-- |", *options])
        )
    rows = [measured(path, {entry.name for entry in entries}) for path in sorted(SURVEYS.glob("*.md"))]
    if any(rows):
        parts += ["## Measured", *filter(None, rows)]
        parts.append("All methods in one table: `runs/reference/survey`, with commands and hardware.")
    return parts


def measured(path: Path, names: set[str]) -> str:
    """The rows of these names in a table of all methods, and of `none` to compare with."""
    lines = path.read_text(encoding="utf-8").splitlines()
    table = [line for line in lines if line.startswith("|")]
    rows = [row for row in table[2:] if (found := re.match(r"\| `([^ `]+)", row)) and found[1] in names | {"none"}]
    mine = any(re.match(rf"\| `{re.escape(name)}[ `]", row) for row in rows for name in names)
    return "\n".join([f"### {path.stem}", "", *table[:2], *rows]) if mine else ""


def acts(cls: type) -> list[str]:
    """When a method does something, from the hooks that it gives a body."""
    return [when for hook, when in HOOKS.items() if getattr(cls, hook) is not getattr(Intervention, hook)]


def given(entry: registry.Entry) -> str:
    """The options that a name sets."""
    shown = ", ".join(f"`{flag_name(name)} {value}`" for name, value in entry.defaults.items())
    return f" ({shown})" if shown else ""


def cell(text: str) -> str:
    """Text that does not end a cell of a table."""
    return text.replace("|", r"\|")


def lists() -> dict[str, str]:
    """Names of everything else."""
    parts = ["# Scenarios, agents, metrics"]
    kinds = {"Scenarios": registry.envs, "Agents": registry.agents}
    for title, known in kinds.items():
        parts.append(f"## {title}\n\n| name | |\n| :-- | :-- |")
        parts[-1] += "".join(f"\n| `{name}` | {cell(entry.summary)} |" for name, entry in known.all().items())
    parts.append("## Metrics\n\n| name | definition |\n| :-- | :-- |")
    parts[-1] += "".join(f"\n| `{name}` | {cell(definition)} |" for name, definition in METRICS.items())
    return {"names.md": "\n\n".join(parts) + "\n"}


def api() -> dict[str, str]:
    """One page per module that users import from."""
    found = {}
    for name in API:
        module = f".. automodule:: plastibench.{name}\n   :members:"
        found[f"api/{name}.md"] = f"# plastibench.{name}\n\n{rst(module)}\n"
    return {**found, "api/index.md": "\n".join(["# API", *contents(found)]) + "\n"}


def start(folder: Path) -> str:
    """The README with its pictures beside it; links to files of the repository become plain names."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+\.png)\)", text):
        name = picture.replace("/", "-")
        shutil.copyfile(ROOT / picture, folder / name)
        text = text.replace(f"({picture})", f"({name})")
    text = re.sub(r"(?<!!)\[`?([^]`]+)`?\]\((?!https?:|#)[^)]+\)", r"`\1`", text)
    return text + "\n".join(["", *contents(["methods/index.md", "names.md", "api/index.md"])]) + "\n"


def rst(text: str) -> str:
    """A directive that only reStructuredText has."""
    return f"```{{eval-rst}}\n{text}\n```"


def contents(found: Iterable[str]) -> list[str]:
    """Pages for the table of contents."""
    names = [page.rpartition("/")[2] if "index" not in page else page for page in found]
    return ["", "```{toctree}", ":hidden:", ":maxdepth: 1", *names, "```"]
