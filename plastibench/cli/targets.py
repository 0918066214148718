"""The network that ``plastibench diagnose`` and ``plastibench apply`` load, and the data that it runs on."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plastibench.cli.arguments import add_paths, add_plugin, add_threads, integer
from plastibench.cli.parser import CommandParser
from plastibench.cli.run_names import find_run
from plastibench.cli.run_options import add_run_options
from plastibench.config.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from plastibench.diagnosis.loading import DiagnosisTarget


def add_target(parser: CommandParser) -> None:
    """Add the target, ``--weights``, ``--pretrained`` and ``--agent``."""
    group = parser.add_argument_group("network", "Set options of the agent with --agent.OPTION.")
    group.add_argument(
        "target",
        metavar="TARGET",
        help="a run's id or folder, timm:MODEL, a checkpoint file with --agent, a folder written by save_pretrained, "
        "or module:function in your own code that returns a model or (model, batch, loss_fn)",
    )
    group.add_argument("--weights", type=Path, metavar="FILE", help="weights of timm:MODEL or module:function")
    group.add_argument("--pretrained", action="store_true", help="download the pretrained weights of a timm model")
    group.add_argument("--agent", metavar="NAME", help="agent whose network the checkpoint file contains")


def add_data(parser: CommandParser, samples: str) -> None:
    """Add ``--data``, ``--samples`` and ``--image-size``; ``samples`` describes the default number of samples."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data",
        metavar="DATA",
        help="dataset name (digits, mnist, cifar10, …), noise, a folder of images, FILE.npz, or a text file with one "
        "sample per line (default: a run's own data; for other networks, noise)",
    )
    group.add_argument(
        "--samples", type=integer(2), default=0, metavar="N", help=f"number of samples (default: {samples})"
    )
    group.add_argument(
        "--image-size",
        type=integer(high=100_000),
        default=0,
        metavar="N",
        help="image height and width (default: the model's)",
    )


def add_execution(parser: CommandParser) -> None:
    """Add ``--device``, ``--threads``, ``--plugin`` and the paths."""
    add_run_options(parser, only=("device",))
    group = parser.add_argument_group("execution")
    add_threads(group, "CPU threads (default: all cores)")
    add_plugin(group)
    add_paths(parser)


def check_target(args: argparse.Namespace, agent_options: dict[str, Any]) -> None:
    """Report invalid arguments before torch is imported."""
    if args.pretrained and args.weights is not None:
        raise UserError("--pretrained and --weights cannot be combined")
    if agent_options and args.agent is None:
        raise UserError("--agent.OPTION needs --agent")


def load_targets(
    args: argparse.Namespace, agent_options: dict[str, Any], samples: int, *, limit: bool = False
) -> list[DiagnosisTarget]:
    """Load the networks that the arguments name, with their data.

    Args:
        args: The parsed arguments.
        agent_options: Options of the agent.
        samples: Number of samples by default, for networks that are not from a run.
        limit: Use fewer samples than the default for large networks.
    """
    from plastibench.diagnosis import foreign_models, loading
    from plastibench.utils.runtime import resolve_device

    device, path = resolve_device(args.device or "auto"), _path(args)
    shared: dict[str, Any] = {
        "samples": args.samples or samples,
        "image_size": args.image_size,
        "data_dir": args.data_dir,
        "limit": limit and not args.samples,
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
        f"{path}: not a run's folder, a checkpoint file, a folder of save_pretrained, timm:MODEL or module:function, "
        f"and no run in {args.runs_dir} has this id{hint}"
    )


def is_run(args: argparse.Namespace) -> bool:
    """Whether the target is a run, or its folder."""
    return not args.target.startswith("timm:") and _path(args).is_dir()


def _path(args: argparse.Namespace) -> Path:
    """The target as a path: as it is, or the folder of the run with this id."""
    path = Path(args.target)
    if not path.exists():
        with contextlib.suppress(UserError):
            return args.runs_dir / find_run(args.target, args.runs_dir)
    return path
