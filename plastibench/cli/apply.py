"""The command ``plastibench apply``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from plastibench.cli.component_options import Tables, read_option_flags
from plastibench.cli.parser import CommandParser
from plastibench.cli.plugins import import_plugins
from plastibench.cli.targets import add_data, add_execution, add_target, check_target, load_targets
from plastibench.config import registry
from plastibench.config.errors import UserError, did_you_mean, raise_all

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
    add_target(parser)
    what = parser.add_argument_group("what to do", "Set options of the intervention with --intervention.OPTION.")
    what.add_argument("--intervention", metavar="NAME", help="the method (plastibench list interventions)")
    what.add_argument(
        "--out", type=Path, metavar="FILE", help="where to write the weights: .safetensors, .pt, .pth; or a new folder"
    )
    what.add_argument("--role", metavar="NAME", help="network of the run, such as critic")
    add_data(parser, str(_SAMPLES))
    add_execution(parser)


def execute(args: argparse.Namespace) -> int:
    """Load the network, apply the intervention, report what changed, and write the weights."""
    import_plugins(args.plugin)
    tables: Tables = {
        "agent": {} if args.agent is None else {"name": args.agent},
        "intervention": {"name": args.intervention or ""},
    }
    read_option_flags(args, tables)
    examples = {"intervention": "fire", "out": "repaired.safetensors"}
    raise_all(f"apply needs --{n}, for example --{n} {e}" for n, e in examples.items() if not getattr(args, n))
    registry.interventions[args.intervention]
    agent_options, options = (
        {name: value for name, value in tables[part].items() if name != "name"} for part in ("agent", "intervention")
    )
    check_target(args, agent_options)

    import torch

    from plastibench.diagnosis.repair import SUFFIXES, check_output, repair, save_weights

    check_output(args.out)
    if args.threads > 0:
        torch.set_num_threads(args.threads)
    targets = load_targets(args, agent_options, _SAMPLES)
    roles = {target.network.role: target for target in targets}
    if args.role is None and len(targets) > 1:
        raise UserError(f"the run has several networks; add --role with one of {', '.join(roles)}")
    if args.role is not None and args.role not in roles:
        raise UserError(
            f"the run has no network '{args.role}'{did_you_mean(args.role, roles)} (available: {', '.join(roles)})"
        )
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
