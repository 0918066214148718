"""Generate the pages that follow from the code and from the reference results; ``conf.py`` calls this.

- ``methods/NAME.md`` and ``methods/_table.md``: a page per method, and the table of all names.
- ``reference/_names.md``: task streams, RL environments, agents and metrics.
- ``reference/cli.md``: the help of every command.
- ``reference/api/*.md``: a page per package.
- ``results/_*.md``: tables computed from ``runs/reference``.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from scipy import stats

import plastibench
from plastibench import Result, load_results
from plastibench.cli import main as command_line
from plastibench.cli.parser import CommandParser
from plastibench.config import registry
from plastibench.config.options import describe_type, flag_name, options_of
from plastibench.interventions.facts import facts
from plastibench.metrics import INTERVENTIONS, METRICS
from plastibench.results import metrics_csv

REFERENCE = Path(__file__).parent.parent / "runs" / "reference"
PLUS_MINUS = "± is the half-width of the 95 % confidence interval of the mean over seeds (Student's t)."
WHEN = {  # hook -> when it runs
    "prepare": "before training",
    "penalty": "in the loss of every update",
    "before_update": "before every optimizer step",
    "after_update": "after every optimizer step",
    "intervene": "at task boundaries, or every N updates",
    "evaluated": "in evaluation",
}
USE = {  # kind -> when to use a method of this kind
    "baseline": "Always: every comparison needs it.",
    "reset": "When a temporary drop in performance is acceptable, or the data to relearn from is at hand (a replay "
    "buffer, an accumulated dataset). Resets are simple and strong baselines.",
    "units": "When only part of the network has lost plasticity and the rest should keep what it has learned. Check "
    "first, with `plastibench diagnose`, that the criterion finds units in your architecture: those that use "
    "activations find few dormant units after a GELU.",
    "weights": "When single weights, rather than units, should be renewed without a visible drop.",
    "wrapper": "As a control, or to soften the drop of another method.",
    "optimizer": "When task boundaries are unknown: the method acts at every update.",
    "regularizer": "When plasticity loss should be prevented rather than repaired, and a hyperparameter can be tuned.",
    "averaging": "When evaluation is noisy, or as a teacher that retains what the trained network forgets.",
    "architecture": "When you can choose the architecture before training.",
}
PACKAGES = {  # package -> what is in it
    "config": "registries, typed options, run specs, errors",
    "nn": "inspect and edit modules: the network, dataflow, units, reinitialization, refitting",
    "interventions": "the interface, attaching, and one module per method",
    "metrics": "plasticity metrics as functions of a network and a batch",
    "results": "typed results, reading and writing, confidence intervals",
    "training": "trainers, the learner, replay buffers, runs with exact resume",
    "leaderboard": "comparable runs, ranks, and their presentation",
    "plotting": "plots of results",
    "diagnosis": "rules and reports on one network",
    "sweeps": "grids, engines, surveys, benchmarks",
    "integrations": "callbacks for other training libraries",
    "envs": "task streams and RL environments",
    "agents": "classifiers, DQN and SAC",
}


def write(folder: Path) -> None:
    """Write all generated pages below ``folder``; none of them is kept in git."""
    for page, text in {**methods(), **names(), **cli(), **api(), **results()}.items():
        (folder / page).parent.mkdir(exist_ok=True, parents=True)
        (folder / page).write_text(text.rstrip() + "\n", encoding="utf-8")


# Methods -----------------------------------------------------------------------------------------------------------


def methods() -> dict[str, str]:
    """A page per class of interventions, and a table of all names."""
    by_class: dict[type, list[registry.Entry]] = defaultdict(list)
    for entry in registry.interventions.builtin().values():
        by_class[entry.load()].append(entry)
    found, rows = {}, []
    for cls, entries in by_class.items():
        page = entries[0].name
        rows += [[f"[`{e.name}`]({page}.md)", entries[0].kind, e.summary] for e in entries]
        found[f"methods/{page}.md"] = "\n\n".join(method(cls, entries))
    toc = toctree(sorted(page.removeprefix("methods/") for page in found))
    return {**found, "methods/_table.md": f"{table(['name', 'kind', 'what it does (source)'], rows)}\n\n{toc}"}


def method(cls: type, entries: Sequence[registry.Entry]) -> list[str]:
    """The parts of a method's page."""
    name, known = entries[0].name, facts(entries[0])
    every = " --every 1000" if "intervene" in known.hooks else ""
    parts = [f"# {name}", f"{entries[0].summary}."]
    parts.append(
        f"```bash\nplastibench run cl-digits --agent vit-nano --intervention none,{name}\n```"
        if name != "none"
        else f"```bash\nplastibench run cl-digits --agent vit-nano --intervention {name}\n```"
    )
    acts = [WHEN[hook] for hook in known.hooks]
    parts.append(
        "\n".join(
            [
                f"- **Kind:** {known.kind}",
                f"- **Acts:** {'; '.join(acts) or 'never'}{' (`--every N`)' if every else ''}",
                f"- **Extra cost:** {known.cost if known.cost != '–' else 'negligible'}",
                f"- **Code:** {{py:class}}`{cls.__module__}.{cls.__qualname__}`",
            ]
        )
    )
    if len(entries) > 1:
        shown = [[f"`{e.name}`", e.summary, given(e) or "–"] for e in entries]
        parts += ["## Names", table(["name", "what it does", "options it sets"], shown)]
    use = USE.get(known.kind)
    if use:
        parts += ["## When to use it", use]
    lines = (inspect.getdoc(cls) or "").splitlines()
    parts += ["## Formula and source", rst("\n".join(map(without_substitutions, lines)))]
    options = option_rows(cls, "intervention")
    if options:
        parts += ["## Options", table(["flag", "default", "meaning (type)"], options)]
        parts.append("In Python the same options are keyword arguments, with `_` instead of `-`.")
    measured = [survey_rows(path, {e.name for e in entries}) for path in sorted((REFERENCE / "survey").glob("*.md"))]
    if any(measured):
        parts += ["## Measured", *filter(None, measured)]
        parts.append(
            "3 seeds; ± is the standard deviation over seeds in these two tables. "
            "[All methods, columns, commands and hardware](../results/survey.md)."
        )
    return parts


def survey_rows(path: Path, wanted: set[str]) -> str:
    """The rows of these names in a survey, and that of ``none``; empty if the survey has none of them."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    named = [(found[1], line) for line in lines[2:] if (found := re.match(r"\| `([^ `]+)", line))]
    if not any(name in wanted for name, _ in named):
        return ""
    return "\n".join([f"### {path.stem}", "", *lines[:2], *(line for name, line in named if name in wanted | {"none"})])


def given(entry: registry.Entry) -> str:
    """The options that a name sets."""
    return ", ".join(f"`{flag_name(name)} = {value}`" for name, value in entry.defaults.items())


def option_rows(cls: type, part: str) -> list[list[str]]:
    """Flag, default, and meaning with type of every option of a class."""
    rows = []
    for name, field in options_of(cls).items():
        kind = describe_type(cls, name).replace(",", ", ")
        meaning = f"{field.metadata.get('help', '')} *({kind})*"
        rows.append([f"`--{part}.{flag_name(name)}`", f"`{field.default}`", meaning])
    return rows


# Names -------------------------------------------------------------------------------------------------------------


def names() -> dict[str, str]:
    """Environments and agents with their options, and metrics with their definitions."""
    parts = []
    for title, part, known in (("Environments", "env", registry.envs), ("Agents", "agent", registry.agents)):
        entries = known.builtin().values()
        parts += [f"## {title}", table(["name", "what it is"], [[f"`{e.name}`", e.summary] for e in entries])]
        by_class: dict[type, list[str]] = defaultdict(list)
        for entry in entries:
            by_class[entry.load()].append(entry.name)
        for cls, called in by_class.items():
            rows = option_rows(cls, part)
            if rows:
                parts.append(f"### Options of {listed(called)}")
                parts.append(table(["flag", "default of the class", "meaning (type)"], rows))
    parts += ["## Metrics", defined("name", METRICS)]
    parts += ["## metrics.csv", "Each run's folder holds its values over time in `metrics.csv`, one value per line."]
    parts += [defined("column", metrics_csv.COLUMNS), "The phases:", defined("phase", metrics_csv.PHASES)]
    parts += ["Names of plasticity metrics and interventions begin with their group:"]
    parts += [defined("beginning", metrics_csv.PREFIXES), "What interventions report:", defined("name", INTERVENTIONS)]
    return {"reference/_names.md": "\n\n".join(parts)}


def defined(heading: str, meanings: Mapping[str, str]) -> str:
    """A table of names and what they mean."""
    return table([heading, "definition"], [[f"`{name}`", text] for name, text in meanings.items()])


def listed(called: Sequence[str], most: int = 3) -> str:
    """A few names, and how many more there are."""
    more = f" and {len(called) - most} more" if len(called) > most else ""
    return ", ".join(called[:most]) + more


# Command line and API ----------------------------------------------------------------------------------------------


def cli() -> dict[str, str]:
    """The help of every command, from its parser."""
    os.environ["COLUMNS"] = "84"
    parts = ["# Command line"]
    parts.append(
        "`plastibench COMMAND --help` prints what follows. Options of an environment, agent or intervention, such as "
        "`--agent.lr`, are on the pages of [methods](../methods/index.md) and [names](names.md). The exit status is 0 "
        "for success, 1 if a run failed, 2 for invalid input, 130 if stopped on request."
    )
    for name, summary in command_line.COMMANDS.items():
        module = importlib.import_module(f"plastibench.cli.{'list_' if name == 'list' else name}")
        parser = CommandParser(prog=f"plastibench {name}", description=f"{summary[0].upper()}{summary[1:]}.")
        module.configure(parser)
        parts += [f"## {name}", f"```text\n{parser.format_help().rstrip()}\n```"]
        for part in parser.parts.values():
            parts += [f"### {part.prog.partition(' ')[2]}", f"```text\n{part.format_help().rstrip()}\n```"]
    return {"reference/cli.md": "\n\n".join(parts)}


def api() -> dict[str, str]:
    """A page for the names of ``plastibench`` itself, and one per package with all its modules."""
    found = {"reference/api/plastibench.md": "\n\n".join(["# plastibench", *top_level()])}
    for name, summary in PACKAGES.items():
        package = importlib.import_module(f"plastibench.{name}")
        parts = [f"# plastibench.{name}", f"{summary[0].upper()}{summary[1:]}."]
        parts += [automodule(package.__name__)]
        parts += [f"## {module}\n\n{automodule(f'plastibench.{name}.{module}')}" for module in modules(package)]
        found[f"reference/api/{name}.md"] = "\n\n".join(parts)
    pages = [page.removeprefix("reference/api/") for page in found]
    rows = [["[plastibench](plastibench.md)", "the names that most users need"]]
    rows += [[f"[plastibench.{name}]({name}.md)", summary] for name, summary in PACKAGES.items()]
    found["reference/api/index.md"] = "\n\n".join(["# Python API", table(["module", "contents"], rows), toctree(pages)])
    return found


def top_level() -> list[str]:
    """The public names of ``plastibench``."""
    parts = ["```python\nimport plastibench as pb\n```"]
    for name in plastibench.__all__:
        value = getattr(plastibench, name)
        if isinstance(value, type):
            parts.append(rst(f".. autoclass:: plastibench.{name}\n   :members:\n   :no-index:"))
        elif callable(value):
            kind = "autofunction" if hasattr(value, "__code__") else "autodata"
            parts.append(rst(f".. {kind}:: plastibench.{name}\n   :no-index:"))
    return parts


def modules(package: ModuleType) -> list[str]:
    """Names of the modules and subpackages of a package."""
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def automodule(name: str) -> str:
    """A directive that documents the members that a module defines."""
    return rst(f".. automodule:: {name}\n   :members:")


# Results -----------------------------------------------------------------------------------------------------------


def results() -> dict[str, str]:
    """Tables of results, computed from the files."""
    digits = load_results(REFERENCE / "digits")
    small = load_results(REFERENCE / "cifar100-small")
    rl = load_results(REFERENCE / "off-policy")
    figures = load_results(REFERENCE / "figures")
    return {
        "results/_cl_digits.md": accuracies(r for r in digits if r.env == "cl-digits"),
        "results/_relabel_digits.md": accuracies(r for r in digits if r.env == "relabel-digits"),
        "results/_figures_cl_digits.md": accuracies(r for r in figures if r.env == "cl-digits"),
        "results/_figures_relabel_digits.md": accuracies(r for r in figures if r.env == "relabel-digits"),
        "results/_cifar100_small.md": accuracies(small),
        "results/_rl_agents.md": final_returns(r for r in rl if r.env != "rl-bandit-digits"),
        "results/_bandit.md": bandit(r for r in rl if r.env == "rl-bandit-digits"),
    }


def accuracies(found: Iterable[Result]) -> str:
    """Final accuracy, gain over none and drop of each intervention, best first."""
    runs = by_method(found)
    base = {result.seed: result.final for result in runs["none"]}
    rows = []
    for name, results in sorted(runs.items(), key=lambda item: -np.mean([r.final for r in item[1]])):
        gains = [result.final - base[result.seed] for result in results if result.seed in base]
        revived = [row.revived_fraction for result in results for row in result.interventions]
        row = [f"`{name}`", str(len(results)), interval([r.final for r in results])]
        row += ["–" if name == "none" else interval(gains, sign=True)]
        row += [interval([r.summary.mean_drop or 0.0 for r in results])]
        rows.append([*row, f"{100 * np.mean([r for r in revived if r is not None]):.0f}" if any(revived) else "0"])
    head = ["intervention", "seeds", "final accuracy, %", "gain over `none`, p.p.", "drop, p.p.", "revived units, %"]
    return f"{table(head, rows, right=5)}\n\n{PLUS_MINUS} The gain is paired by seed; p.p.: percentage points."


def final_returns(found: Iterable[Result]) -> str:
    """Final return of each agent."""
    by_agent: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in found:
        by_agent[result.env, result.agent].append(result)
    rows = [
        [f"`{env}`", f"`{agent}`", str(len(runs)), interval([r.final for r in runs], scale=1, digits=2)]
        for (env, agent), runs in by_agent.items()
    ]
    return f"{table(['environment', 'agent', 'seeds', 'final return'], rows, right=2)}\n\n{PLUS_MINUS}"


def bandit(found: Iterable[Result]) -> str:
    """Return at the end of tasks of the contextual bandit."""
    rows = []
    for name, runs in by_method(found).items():
        ends = [task_ends(result) for result in runs]
        cells = [interval([end[task - 1] for end in ends], scale=1, digits=2) for task in (1, 4, 5, 10)]
        late = interval([float(np.mean(end[5:])) for end in ends], scale=1, digits=2)
        low = interval([last_metric(result, "low-gradient-ratio") for result in runs], digits=0)
        rows.append([f"`{name}`", str(len(runs)), *cells, late, low])
    head = [
        "intervention",
        "seeds",
        *(f"task {t}" for t in (1, 4, 5, 10)),
        "mean of tasks 6–10",
        "low-gradient units, %",
    ]
    return f"{table(head, rows, right=7)}\n\n{PLUS_MINUS}"


def task_ends(result: Result) -> list[float]:
    """Return at the last evaluation of each task."""
    return list({task: value for task, _, value in result.evaluations()}.values())


def last_metric(result: Result, name: str) -> float:
    """The last value of a plasticity metric."""
    return [float(record.metrics[name] or 0.0) for record in result.plasticity if name in record.metrics][-1]


def by_method(found: Iterable[Result]) -> dict[str, list[Result]]:
    """Results by intervention and changed options."""
    runs: dict[str, list[Result]] = defaultdict(list)
    for result in found:
        changed = [f"{key}={value}" for key, value in result.changed.intervention.items()]
        runs[" ".join([result.intervention, *changed])].append(result)
    return runs


def interval(values: Sequence[float], *, scale: float = 100, digits: int = 1, sign: bool = False) -> str:
    """Mean ± half-width of the 95 % confidence interval."""
    found = scale * np.asarray(values, float)
    mean = f"{found.mean():{'+' if sign else ''}.{digits}f}"
    if len(found) < 2:
        return mean
    half = stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found))
    return f"{mean}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{half:.{digits}f}"


# Markdown ----------------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: int = 0) -> str:
    """A Markdown table whose last ``right`` columns are aligned to the right."""
    rule = [":--"] * (len(head) - right) + ["--:"] * right
    lines = [head, rule, *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def without_substitutions(line: str) -> str:
    """Escape ``|h|`` outside literals: docstrings write absolute values where reStructuredText has substitutions."""
    parts = re.split("(``.*?``)", line)
    return "".join(part if part.startswith("``") else part.replace("|", r"\|") for part in parts)


def rst(text: str) -> str:
    """A directive that only reStructuredText has."""
    return f"```{{eval-rst}}\n{text}\n```"


def toctree(pages: Iterable[str]) -> str:
    """A hidden table of contents."""
    return "\n".join(["```{toctree}", ":hidden:", ":maxdepth: 1", "", *pages, "```"])
