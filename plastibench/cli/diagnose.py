"""The command ``plastibench diagnose``."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plastibench.cli.arguments import add_paths, add_plugin, add_threads, check_output_file
from plastibench.cli.component_options import Tables, read_option_flags
from plastibench.cli.parser import CommandParser
from plastibench.cli.plugins import import_plugins
from plastibench.cli.run_names import find_run
from plastibench.cli.run_options import add_run_options
from plastibench.config.errors import UserError, did_you_mean
from plastibench.diagnosis.rules import thresholds_text
from plastibench.metrics import select

PARTS = ("mlp", "mlp-qkv", "attention", "linear", "layernorm", "head")  # of plastibench.nn.selectors

if TYPE_CHECKING:
    from plastibench.diagnosis.loading import DiagnosisTarget

_LARGE = 1_000_000  # number of parameters above which progress is shown
_IMAGE_SUFFIXES = (".png", ".svg", ".pdf")
TARGETS = (
    "a run's id or folder, timm:MODEL, a checkpoint file with --agent, a folder written by save_pretrained, or "
    "module:function of your own code, which returns a model or (model, batch, loss_fn)"
)
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
    what = parser.add_argument_group("what to examine", "Set options of the agent with --agent.OPTION.")
    what.add_argument(
        "target",
        metavar="TARGET",
        help=TARGETS,
    )
    what.add_argument("--weights", type=Path, metavar="FILE", help="weights of timm:MODEL or module:function")
    what.add_argument("--pretrained", action="store_true", help="download the pretrained weights of a timm model")
    what.add_argument("--agent", metavar="NAME", help="agent whose network a checkpoint file belongs to")
    data = parser.add_argument_group("data and metrics")
    data.add_argument(
        "--data",
        metavar="DATA",
        help="dataset name (digits, mnist, cifar10, …), noise, a folder of images, or FILE.npz "
        "(default: for a run its own data, otherwise noise)",
    )
    data.add_argument(
        "--samples",
        type=int,
        default=0,
        metavar="N",
        help="number of samples (default: 512 for a run, otherwise 32, or 64 with --thorough)",
    )
    data.add_argument(
        "--image-size", type=int, default=0, metavar="N", help="image height and width (default: the model's)"
    )
    data.add_argument(
        "--metrics",
        metavar="NAMES",
        help="metrics or groups of metrics, such as ranks,weights, or all (default: all but the slow groups; for "
        "networks that are not from a run, also without per-sample gradients)",
    )
    data.add_argument(
        "--thorough",
        action="store_true",
        help="timm models and checkpoint files: use more samples and per-sample gradients (takes minutes)",
    )
    structure = parser.add_argument_group("structure")
    structure.add_argument(
        "--outputs",
        metavar="NAMES",
        help="output layers, separated by commas (default: every layer that the loss reads directly)",
    )
    structure.add_argument(
        "--selector", metavar="PART", help=f"list the modules in this part of the network: {', '.join(PARTS)}"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained HTML report")
    output.add_argument("--png", type=Path, metavar="FILE", help="plot layers by metrics (.png, .svg or .pdf)")
    output.add_argument("--json", type=Path, metavar="FILE", help="write all values as JSON")
    add_run_options(parser, only=("device",))
    execution = parser.add_argument_group("execution")
    add_threads(execution, "CPU threads (default: all cores)")
    add_plugin(execution)
    add_paths(parser)


def execute(args: argparse.Namespace) -> int:
    """Examine the networks of the target, and print and write the reports."""
    import_plugins(args.plugin)
    tables: Tables = {"agent": {} if args.agent is None else {"name": args.agent}}
    read_option_flags(args, tables)
    agent_options = {name: value for name, value in tables["agent"].items() if name != "name"}
    metrics = None if args.metrics is None else [name.strip() for name in args.metrics.split(",") if name.strip()]
    _check(args, agent_options, metrics)

    import torch

    from plastibench.diagnosis.diagnose import QUICK_GROUPS, diagnose
    from plastibench.diagnosis.text_report import report

    if args.threads > 0:
        torch.set_num_threads(args.threads)
    targets = load_targets(args, agent_options)
    if args.outputs is not None:
        from plastibench.diagnosis.loading import name_outputs

        for target in targets:
            name_outputs(target, [name.strip() for name in args.outputs.split(",") if name.strip()])
    found = []
    for target in targets:
        chosen = QUICK_GROUPS if metrics is None and not args.thorough and not _is_run(args) else metrics
        large = sum(p.numel() for p in target.network.module.parameters()) > _LARGE
        found.append(diagnose(target, chosen, args.selector, _say if large else None))
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


def _check(args: argparse.Namespace, agent_options: dict[str, Any], metrics: list[str] | None) -> None:
    """Report invalid arguments before torch is imported."""
    select(metrics or ())
    if args.selector is not None and args.selector not in PARTS:
        raise UserError(f"--selector {args.selector}: not a part of a network; use {', '.join(PARTS)}")
    if args.samples < 0 or args.samples == 1:
        raise UserError("--samples must be at least 2")
    if args.image_size < 0:
        raise UserError("--image-size must be at least 1")
    for path in (args.json, args.png, args.html):
        check_output_file(path)
    if args.png is not None and args.png.suffix not in _IMAGE_SUFFIXES:
        raise UserError(f"cannot plot to '{args.png.name}'; use a name that ends in .png, .svg or .pdf")
    if args.pretrained and args.weights is not None:
        raise UserError("--pretrained and --weights cannot be combined")
    if agent_options and args.agent is None:
        raise UserError("--agent.OPTION needs --agent")


def load_targets(args: argparse.Namespace, agent_options: dict[str, Any]) -> list[DiagnosisTarget]:
    """The networks that the arguments name, with their data; also for ``plastibench apply``."""
    from plastibench.diagnosis import foreign_models, loading
    from plastibench.utils.runtime import resolve_device

    device, path = resolve_device(args.device or "auto"), _path(args)
    shared: dict[str, Any] = {
        "samples": args.samples or (loading.THOROUGH_SAMPLES if args.thorough else loading.DEFAULT_SAMPLES),
        "image_size": args.image_size,
        "data_dir": args.data_dir,
    }
    data = args.data or "noise"
    if args.target.startswith("timm:"):
        if args.agent is not None:
            raise UserError("--agent needs a checkpoint file; timm:MODEL already names the network")
        name = args.target.removeprefix("timm:")
        return [loading.timm_model(name, data, device, weights=args.weights, pretrained=args.pretrained, **shared)]
    if args.pretrained:
        raise UserError("--pretrained needs timm:MODEL")
    if ":" in args.target and not path.exists():
        return [foreign_models.own_model(args.target, data, device, weights=args.weights, **shared)]
    if args.weights is not None:
        raise UserError(
            "--weights needs timm:MODEL or module:function; otherwise pass the checkpoint file itself, with --agent"
        )
    if (path / "config.json").is_file():
        return [foreign_models.huggingface_model(path, data, device, **shared)]
    if path.is_dir():
        if args.agent is not None or args.image_size:
            raise UserError(f"{path} is a run's folder, which defines agent and image size; drop --agent, --image-size")
        return loading.networks_of_run(path, args.data, device, samples=args.samples, data_dir=args.data_dir)
    if path.is_file():
        if args.agent is None:
            raise UserError(f"{path}: unknown network; add --agent NAME, or use timm:MODEL --weights {path}")
        return [loading.agent_model(args.agent, agent_options, data, device, weights=path, **shared)]
    known = [found.parent.name for found in args.runs_dir.glob("*/spec.toml")]
    hint = did_you_mean(args.target, known)
    raise UserError(
        f"{path}: not a run's folder, a checkpoint file, timm:MODEL or module:function, and no run in "
        f"{args.runs_dir}{hint}"
    )


def _path(args: argparse.Namespace) -> Path:
    """The target as a path: as it is, or the folder of the run with this id."""
    path = Path(args.target)
    if not path.exists():
        with contextlib.suppress(UserError):
            return args.runs_dir / find_run(args.target, args.runs_dir)
    return path


def _is_run(args: argparse.Namespace) -> bool:
    return not args.target.startswith("timm:") and _path(args).is_dir()


def _say(line: str) -> None:
    print(f"plastibench: {line}", file=sys.stderr)
