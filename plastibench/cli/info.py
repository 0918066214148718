"""The command ``plastibench info``."""

from __future__ import annotations

import argparse
import os
from collections import Counter

from plastibench.cli.arguments import add_paths
from plastibench.cli.parser import CommandParser
from plastibench.utils.wording import plural


def configure(parser: CommandParser) -> None:
    """Add the arguments."""
    add_paths(parser)


def execute(args: argparse.Namespace) -> int:
    """Print versions, devices, datasets and the number of runs by state."""
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
