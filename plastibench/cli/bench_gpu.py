"""The command ``plastibench bench gpu``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from plastibench.cli.arguments import add_paths, integer
from plastibench.cli.parser import CommandParser
from plastibench.config.errors import UserError

_EPILOG = """\
Measures vit-tiny, vit-small and vit-nano in float32, tf32 and bfloat16: eager, compiled, and with
CUDA graphs; several networks together; RnR; the difference between the logits on CPU and GPU after
RnR; operations that wait for the GPU; a loop with a DataLoader; and, with the time left, cl-cifar100
with vit-tiny for none, reset and rnr (15 epochs per task). Images are random, except in these runs.

Writes bench-gpu.json and bench-gpu.md to FOLDER, and updates them after every row. The same
command with the same folder measures the rows that are missing."""


def configure(parser: CommandParser) -> None:
    """Add the arguments."""
    parser.usage = "plastibench bench gpu [--minutes X] [--out FOLDER] [options]"
    parser.epilog = _EPILOG
    group = parser.add_argument_group("measurement")
    group.add_argument("--minutes", type=_minutes, default=8.0, metavar="X", help="time budget (default: 8)")
    group.add_argument("--out", type=Path, default=Path("bench-gpu"), metavar="FOLDER", help="output folder")
    help = "cuda, cuda:1, …; cpu for a rehearsal (default: cuda)"
    group.add_argument("--device", default="cuda", metavar="NAME", help=help)
    group.add_argument("--updates", type=integer(), default=10, metavar="N", help="updates per measurement")
    group.add_argument("--rounds", type=integer(2), default=5, metavar="N", help="rounds per measurement")
    help = "measure only rows with this text in their names, such as 'update vit-tiny' or runs (default: all)"
    group.add_argument("--only", default="", metavar="TEXT", help=help)
    group.add_argument("--rehearse", action="store_true", help="tiny networks and data: a test of the command itself")
    add_paths(parser, runs=False)


def _minutes(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 < found <= 10_000:
        raise argparse.ArgumentTypeError(f"'{text[:20]}' is not a number of minutes above 0")
    return found


def execute(args: argparse.Namespace) -> int:
    """Measure, and say where the files are."""
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out {args.out} is not a folder")
    from plastibench.sweeps.benchmark.gpu_rows import Sizes
    from plastibench.sweeps.benchmark.gpu_session import measure_gpu, summary
    from plastibench.utils.runtime import resolve_device

    device = resolve_device(args.device)
    if device == "cpu" and not args.rehearse:
        raise UserError("bench gpu on a CPU takes hours; add --rehearse to test the command with tiny networks")
    sizes = Sizes(args.updates, args.rounds, args.rehearse, device)
    report = measure_gpu(
        args.out,
        sizes,
        args.minutes,
        args.data_dir,
        args.only,
        lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(summary(report))
    return 0
