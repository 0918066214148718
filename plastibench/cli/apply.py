"""The command ``plastibench apply``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from plastibench.cli.arguments import add_paths, add_plugin, add_threads
from plastibench.cli.component_options import Tables, read_option_flags
from plastibench.cli.diagnose import TARGETS, load_targets
from plastibench.cli.parser import CommandParser
from plastibench.cli.plugins import import_plugins
from plastibench.cli.run_options import add_run_options
from plastibench.config import registry
from plastibench.config.errors import UserError

_SAMPLES = 512
_EXAMPLES = """\
examples:
  plastibench apply timm:vit_tiny_patch16_224 --weights old.safetensors --intervention fire --out new.safetensors
  plastibench apply model.pt --agent vit-tiny --data cifar100 --intervention rnr --out repaired.pt
  plastibench apply my_code.py:build --weights old.pt --intervention shrink-perturb-keep80 --out new.pt
  plastibench apply path/to/bert --data sentences.txt --intervention rnr --out path/to/new_bert"""


def configure(parser: CommandParser) -> None:
    """Add the arguments."""
    parser.components = ("agent", "intervention")
    parser.usage = "plastibench apply TARGET --intervention NAME --out FILE [options]"
    parser.epilog = _EXAMPLES
    what = parser.add_argument_group("what to do", "Set options with --intervention.OPTION and --agent.OPTION.")
    what.add_argument(
        "target",
        metavar="TARGET",
        help=TARGETS,
    )
    what.add_argument("--intervention", metavar="NAME", help="the method (plastibench list interventions)")
    what.add_argument(
        "--out", type=Path, metavar="FILE", help="where to write the weights: .safetensors, .pt, .pth; or a new folder"
    )
    what.add_argument("--pretrained", action="store_true", help="download the pretrained weights of a timm model")
    what.add_argument("--weights", type=Path, metavar="FILE", help="weights of timm:MODEL or module:function")
    what.add_argument("--agent", metavar="NAME", help="agent whose network a checkpoint file belongs to")
    what.add_argument("--role", metavar="NAME", help="network of the run, such as critic")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        metavar="DATA",
        help="the fine-tuning data: dataset name, folder of images, FILE.npz, text file with one sample per line, or "
        "noise (default: for a run its own data, otherwise noise)",
    )
    data.add_argument("--samples", type=int, default=0, metavar="N", help=f"number of samples (default: {_SAMPLES})")
    data.add_argument("--image-size", type=int, default=0, metavar="N", help="image height and width")
    add_run_options(parser, only=("device",))
    execution = parser.add_argument_group("execution")
    add_threads(execution, "CPU threads (default: all cores)")
    add_plugin(execution)
    add_paths(parser)


def execute(args: argparse.Namespace) -> int:
    """Load the network, apply the intervention, report what changed, and write the weights."""
    import_plugins(args.plugin)
    tables: Tables = {
        "agent": {} if args.agent is None else {"name": args.agent},
        "intervention": {"name": args.intervention or ""},
    }
    read_option_flags(args, tables)
    if not args.intervention:
        raise UserError("apply needs --intervention, for example --intervention fire")
    if args.out is None:
        raise UserError("apply needs --out, for example --out repaired.safetensors")
    registry.interventions[args.intervention]
    agent_options, options = (
        {name: value for name, value in tables[part].items() if name != "name"} for part in ("agent", "intervention")
    )
    if args.samples < 0 or args.samples == 1:
        raise UserError("--samples must be at least 2")

    import torch

    from plastibench.diagnosis.repair import SUFFIXES, check_output, repair, save_weights

    check_output(args.out)
    if args.threads > 0:
        torch.set_num_threads(args.threads)
    args.samples, args.thorough = args.samples or _SAMPLES, False
    targets = load_targets(args, agent_options)
    roles = {target.network.role: target for target in targets}
    if args.role is None and len(targets) > 1:
        raise UserError(f"the run has several networks; add --role, one of {', '.join(roles)}")
    if args.role is not None and args.role not in roles:
        raise UserError(f"the run has no network '{args.role}'; available: {', '.join(roles)}")
    target = targets[0] if args.role is None else roles[args.role]
    if not args.out.suffix and not hasattr(target.network.module, "save_pretrained"):
        raise UserError(f"--out {args.out}: use a name that ends in {', '.join(SUFFIXES)}")
    done = repair(target, args.intervention, options)
    print(done.as_text())
    if not done.changed:
        print(f"plastibench: {args.intervention} changed nothing, so {args.out} was not written", file=sys.stderr)
        return 1
    save_weights(target.network.module, args.out)
    print(f"  weights: {args.out}")
    return 0
