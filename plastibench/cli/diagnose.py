"""The command ``plastibench diagnose``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from plastibench.cli.arguments import check_output_file
from plastibench.cli.component_options import Tables, read_option_flags
from plastibench.cli.parser import CommandParser
from plastibench.cli.plugins import import_plugins
from plastibench.cli.targets import add_data, add_execution, add_target, check_target, is_run, load_targets
from plastibench.config.errors import UserError
from plastibench.diagnosis.rules import thresholds_text
from plastibench.metrics import select

PARTS = ("mlp", "mlp-qkv", "attention", "linear", "layernorm", "head")  # the parts of plastibench.nn.selectors

_LARGE = 1_000_000  # number of parameters above which progress is shown
_IMAGE_SUFFIXES = (".png", ".svg", ".pdf")
_EXAMPLES = """\
examples:
  plastibench diagnose ID --html diagnosis.html
  plastibench diagnose timm:vit_tiny_patch16_224 --pretrained --data path/to/images
  plastibench diagnose timm:vit_tiny_patch16_224 --weights model.safetensors --data path/to/images
  plastibench diagnose model.pt --agent vit-tiny --data cifar100 --metrics all"""


def configure(parser: CommandParser) -> None:
    """Add the arguments."""
    parser.components = ("agent",)
    parser.usage = "plastibench diagnose TARGET [options]"
    parser.epilog = f"{thresholds_text()}\n\n{_EXAMPLES}"
    add_target(parser)
    add_data(parser, "512 for a run, 64 with --thorough, otherwise 32, or fewer if a pass of the network is expensive")
    metrics = parser.add_argument_group("metrics")
    metrics.add_argument(
        "--metrics",
        metavar="NAMES",
        help="metrics or groups of metrics, such as ranks,weights, or all (default: all except the slow groups; for "
        "networks that are not from a run, also without per-sample gradients)",
    )
    metrics.add_argument(
        "--thorough",
        action="store_true",
        help="networks that are not from a run: use 64 samples, all tokens and positions, and per-sample gradients "
        "(takes minutes); the default uses fewer samples and random positions, and its report says how many",
    )
    structure = parser.add_argument_group("structure")
    structure.add_argument(
        "--outputs",
        metavar="NAMES",
        help="output layers, separated by commas (default: every layer whose output the loss reads directly)",
    )
    structure.add_argument(
        "--selector",
        choices=PARTS,
        metavar="PART",
        help=f"list the modules in this part of the network: {', '.join(PARTS)}",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained HTML report")
    output.add_argument("--png", type=Path, metavar="FILE", help="heat map of layers by metrics (.png, .svg or .pdf)")
    output.add_argument("--json", type=Path, metavar="FILE", help="write all values as JSON")
    add_execution(parser)


def execute(args: argparse.Namespace) -> int:
    """Examine the networks of the target, and print and write the reports."""
    import_plugins(args.plugin)
    tables: Tables = {"agent": {} if args.agent is None else {"name": args.agent}}
    read_option_flags(args, tables)
    agent_options = {name: value for name, value in tables["agent"].items() if name != "name"}
    metrics = None if args.metrics is None else [name.strip() for name in args.metrics.split(",") if name.strip()]
    check_target(args, agent_options)
    _check(args, metrics)

    import torch

    from plastibench.diagnosis.diagnose import QUICK_GROUPS, QUICK_ROWS, diagnose
    from plastibench.diagnosis.loading import DEFAULT_SAMPLES, THOROUGH_SAMPLES, name_outputs
    from plastibench.diagnosis.text_report import report

    if args.threads > 0:
        torch.set_num_threads(args.threads)
    quick = not args.thorough and not is_run(args)
    samples = THOROUGH_SAMPLES if args.thorough else DEFAULT_SAMPLES
    targets = load_targets(args, agent_options, samples, limit=quick)
    if args.outputs is not None:
        for target in targets:
            name_outputs(target, [name.strip() for name in args.outputs.split(",") if name.strip()])
    found = []
    for target in targets:
        chosen = QUICK_GROUPS if metrics is None and quick else metrics
        large = sum(p.numel() for p in target.network.module.parameters()) > _LARGE
        found.append(diagnose(target, chosen, args.selector, _say if large else None, QUICK_ROWS if quick else None))
    print("\n\n".join(report(each) for each in found))
    if args.json is not None:
        from plastibench.utils.atomic_io import write_text

        content = [each.as_json() for each in found]
        text = json.dumps(content[0] if len(content) == 1 else content, indent=1, allow_nan=False)
        write_text(args.json, f"{text}\n")
    if args.png is not None:
        from plastibench.diagnosis.heat_map import draw

        draw(found, args.png)
    if args.html is not None:
        from plastibench.diagnosis.html_report import write_page

        write_page(found, args.html)
    for path in (args.json, args.png, args.html):
        if path is not None:
            print(path)
    return 0


def _check(args: argparse.Namespace, metrics: list[str] | None) -> None:
    """Report invalid arguments before torch is imported."""
    select(metrics or ())
    for path in (args.json, args.png, args.html):
        check_output_file(path)
    if args.png is not None and args.png.suffix not in _IMAGE_SUFFIXES:
        raise UserError(f"cannot plot to '{args.png.name}'; use a name that ends in .png, .svg or .pdf")


def _say(line: str) -> None:
    print(f"plastibench: {line}", file=sys.stderr)
