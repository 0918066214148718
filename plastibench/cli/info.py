"""The command ``plastibench info``."""

from __future__ import annotations

import argparse
import os

from plastibench.cli.arguments import add_paths
from plastibench.cli.parser import CommandParser


def configure(parser: CommandParser) -> None:
    """Add the arguments."""
    add_paths(parser)


def execute(args: argparse.Namespace) -> int:
    """Print versions, devices, datasets and the number of runs."""
    import torch

    from plastibench.utils import provenance

    print("versions")
    for name, version in provenance.versions().items():
        print(f"  {name:14}{version}")
    if provenance.commit():
        print(f"  {'commit':14}{provenance.commit()}")
    print("devices")
    processor = provenance.hardware("cpu")["processor"]
    print(f"  {'cpu':14}{processor}, {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    for index in range(torch.cuda.device_count()):
        print(f"  {f'cuda:{index}':14}{torch.cuda.get_device_name(index)}")
    print(f"data in {args.data_dir}")
    names = sorted(path.name for path in args.data_dir.iterdir()) if args.data_dir.is_dir() else []
    print(f"  {', '.join(names) or 'none (digits are built in)'}")
    runs = len(list(args.runs_dir.glob("**/result.json")))
    print(f"runs in {args.runs_dir}\n  {runs} finished")
    return 0
