"""The command ``plastibench info``."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections import Counter

from plastibench.cli.arguments import add_paths, add_plugin
from plastibench.cli.component_options import option_help
from plastibench.cli.parser import CommandParser
from plastibench.cli.plugins import import_plugins
from plastibench.config.errors import UserError, did_you_mean
from plastibench.config.registry import REGISTRIES
from plastibench.utils.wording import plural

_EXAMPLES = """\
examples:
  plastibench info
  plastibench info rnr vit-nano"""


def configure(parser: CommandParser) -> None:
    """Add the arguments."""
    parser.usage = "plastibench info [NAME ...] [options]"
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="show the options of this env, agent or intervention instead"
    )
    add_plugin(parser.add_argument_group("execution"))
    add_paths(parser)


def execute(args: argparse.Namespace) -> int:
    """Print the options of the given names, or versions, devices, datasets and the number of runs by state."""
    import_plugins(args.plugin)
    if args.names:
        print("\n\n".join(_options_of(name) for name in args.names))
        return 0
    import torch

    from plastibench.envs.datasets.cache import CACHE
    from plastibench.sweeps.run_folders import STATES, find_runs
    from plastibench.utils import provenance

    print("versions")
    for name, version in provenance.versions().items():
        print(f"  {name:14}{version}")
    if provenance.commit():
        print(f"  {'commit':14}{provenance.commit()}")
    print("devices")
    processor = provenance.hardware("cpu")["processor"]
    print(
        f"  {'cpu':14}{processor}, {plural(os.cpu_count() or 1, 'core')}, {plural(torch.get_num_threads(), 'thread')}"
    )
    for index in range(torch.cuda.device_count()):
        print(f"  {f'cuda:{index}':14}{torch.cuda.get_device_name(index)}")
    print(f"datasets in folder {args.data_dir}")
    names = sorted(path.name for path in args.data_dir.iterdir()) if args.data_dir.is_dir() else []
    print(f"  {', '.join(name for name in names if name != CACHE) or 'none (digits are built in)'}")
    if CACHE in names:
        entries = sorted(path for path in (args.data_dir / CACHE).iterdir() if not path.name.startswith("."))
        size = sum(file.stat().st_size for entry in entries for file in entry.rglob("*") if file.is_file())
        cached = ", ".join(entry.name for entry in entries) or "empty"
        print(f"  cache of decoded images: {cached} ({size / 1e6:,.0f} MB in {CACHE})")
    print(f"runs in folder {args.runs_dir}")
    count = Counter(run.state for run in find_runs(args.runs_dir)) if args.runs_dir.is_dir() else Counter()
    shown = [f"{count[state]} {state}" for state in STATES if count[state] and state != "complete"]
    print("  " + ", ".join([f"{count['complete']} finished", *shown]))
    return 0


def _options_of(name: str) -> str:
    """The options of a registered name of any kind."""
    found = []
    for part in REGISTRIES:
        with contextlib.suppress(UserError):  # no such name
            found.append(option_help(part, name))
    if not found:
        names = [each for known in REGISTRIES.values() for each in known]
        raise UserError(f"unknown name '{name}'{did_you_mean(name, names)} (all names: plastibench list)")
    return "\n\n".join(found)
