"""The options that say where runs are executed: on this machine, on a Ray cluster, or on a Slurm cluster."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from plastibench.cli.arguments import integer
from plastibench.cli.parser import CommandParser
from plastibench.cli.specs import resolve_devices
from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.utils.torchrun import launched_processes
from plastibench.utils.wording import plural

if TYPE_CHECKING:
    from plastibench.sweeps.engine import Engine
    from plastibench.sweeps.jobs import RunArguments
    from plastibench.sweeps.slurm_engine import SlurmEngine

ENGINES = ("local", "ray", "slurm")
_ABOUT = (
    "Ray and Slurm need plastibench on each machine, and --runs-dir and --data-dir\non storage that all machines share."
)
_NEEDS = {  # option -> the engines that have it
    "cpus": ("ray", "slurm"),
    "gpus": ("ray", "slurm"),
    "memory": ("ray", "slurm"),
    "address": ("ray",),
    "partition": ("slurm",),
    "time": ("slurm",),
    "slurm": ("slurm",),
    "submit_only": ("slurm",),
}
_MINUTES = 60  # default time limit of a Slurm job


def add_engine(parser: CommandParser) -> None:
    """Add ``--engine``, ``--fail-fast`` and the options of the engines."""
    group = parser.add_argument_group("engine", _ABOUT)
    group.add_argument(
        "--engine",
        choices=ENGINES,
        default="local",
        help="local: processes on this machine; ray: tasks on a running or a new local Ray cluster (needs the extra "
        "ray); slurm: job arrays (needs the extra slurm)",
    )
    group.add_argument(
        "--stack",
        choices=("auto", "off"),
        default="auto",
        help="local: auto updates the small networks (mlp, dqn-mlp) of several runs in one batched pass if there are "
        "at least four runs per process; faster, with bit-identical results (default: auto)",
    )
    group.add_argument(
        "--fail-fast", action="store_true", help="stop all runs when one fails (default: the other runs continue)"
    )
    group.add_argument("--cpus", type=integer(), metavar="N", help="ray, slurm: CPU cores per run (default: 1)")
    help = "ray, slurm: GPUs per run; with Ray, a fraction below 1 lets runs share a GPU (default: 0)"
    group.add_argument("--gpus", type=_amount, metavar="X", help=help)
    group.add_argument("--memory", type=_amount, metavar="GB", help="ray, slurm: memory per run")
    help = "ray: address of a running cluster, HOST:PORT or auto (default: start a local one)"
    group.add_argument("--address", metavar="ADDRESS", help=help)
    group.add_argument("--partition", metavar="NAME", help="slurm: partition (default: the cluster's default)")
    group.add_argument(
        "--time",
        type=_minutes,
        metavar="TIME",
        help="slurm: time limit of a job, in minutes, H:MM:SS or D-HH:MM:SS; a run that exceeds it saves a "
        f"checkpoint and is requeued (default: {_MINUTES})",
    )
    group.add_argument(
        "--slurm",
        type=_key_value,
        action="append",
        metavar="KEY=VALUE",
        help="slurm: another option of sbatch, such as account=lab or qos=low; may be repeated; cluster=local runs "
        "the jobs on this machine, as a test",
    )
    help = "slurm: exit after submitting the jobs (to follow them: plastibench runs status, or sweep --status)"
    group.add_argument("--submit-only", action="store_true", help=help)


def check_engine(args: argparse.Namespace) -> None:
    """Check that the options belong to the engine and are compatible, before anything is imported or written.

    Raises:
        UserError: They do not.
    """
    if args.engine != "local" and launched_processes() > 1:
        raise UserError(f"--engine {args.engine} starts its own processes; run the command without torchrun")
    for option, engines in _NEEDS.items():
        if getattr(args, option) not in (None, False) and args.engine not in engines:
            flag = f"--{option.replace('_', '-')}"
            raise UserError(f"{flag} needs --engine {' or '.join(engines)}, but the engine is {args.engine}")
    if args.engine == "slurm" and args.gpus and args.gpus != int(args.gpus):
        raise UserError(f"--gpus {args.gpus:g}: Slurm assigns whole GPUs; only --engine ray can share one")
    if args.engine == "ray" and (args.gpus or 0) > 1 and args.gpus != int(args.gpus):
        raise UserError(f"--gpus {args.gpus:g}: above 1, Ray assigns whole GPUs only")
    if args.submit_only and args.fail_fast:
        raise UserError("--submit-only and --fail-fast cannot be combined: nothing would be running to see a failure")
    if args.engine != "local" and args.dry_run:
        raise UserError(f"--dry-run estimates the cost on this machine; drop --engine {args.engine}")


def resolve_devices_for(args: argparse.Namespace, specs: Sequence[RunSpec]) -> list[RunSpec]:
    """Resolve the device ``auto``: this machine's device, or on a cluster ``cuda`` with ``--gpus`` and ``cpu`` without.

    Raises:
        UserError: The device is not available, or does not fit ``--gpus``.
    """
    if args.engine == "local":
        return resolve_devices(specs)
    auto = "cuda" if args.gpus else "cpu"
    found = [
        dataclasses.replace(spec, run=dataclasses.replace(spec.run, device=auto)) if spec.run.device == "auto" else spec
        for spec in specs
    ]
    on_gpu = [spec for spec in found if spec.run.device.startswith("cuda")]
    if on_gpu and not args.gpus:
        raise UserError(f"the device of {on_gpu[0].id} is {on_gpu[0].run.device}; add --gpus N, the GPUs per run")
    if args.gpus and not on_gpu:
        raise UserError("--gpus has no effect, because all runs use the CPU; remove it or choose --device cuda")
    return found


def make_engine(args: argparse.Namespace, slots: Callable[[], int]) -> Engine:
    """Make the engine that the arguments name.

    Args:
        args: Arguments of engine, execution and paths.
        slots: Computes the number of parallel runs of the local engine.

    Raises:
        UserError: Its library or its cluster is missing.
    """
    if args.engine == "local":
        from plastibench.sweeps.local_engine import LocalEngine

        return LocalEngine(slots(), args.runs_dir, _arguments(args), stack=args.stack == "auto")
    _warn_about_locks(args)
    if args.engine == "slurm":
        return make_slurm_engine(args)
    from plastibench.sweeps.ray_engine import RayEngine

    return RayEngine(
        args.runs_dir,
        _arguments(args),
        jobs=args.jobs,
        cpus=args.cpus or 1,
        gpus=args.gpus or 0.0,
        memory=args.memory or 0.0,
        address=args.address or "",
    )


def make_slurm_engine(args: argparse.Namespace) -> SlurmEngine:
    """Make the engine for Slurm; see :func:`make_engine`."""
    from plastibench.sweeps.slurm_engine import SlurmEngine

    options: dict[str, Any] = dict(args.slurm or [])
    if args.partition:
        options["partition"] = args.partition
    cluster = options.pop("cluster", "slurm")
    if cluster not in ("slurm", "local"):
        raise UserError(f"--slurm cluster={cluster}: expected slurm or local")
    return SlurmEngine(
        args.runs_dir,
        _arguments(args),
        jobs=args.jobs,
        cpus=args.cpus or 1,
        gpus=int(args.gpus or 0),
        memory=args.memory or 0.0,
        minutes=args.time or _MINUTES,
        options=options,
        cluster=cluster,
    )


def _arguments(args: argparse.Namespace) -> RunArguments:
    from plastibench.sweeps.jobs import RunArguments

    extra = ["--log", ",".join(args.log)] if args.log else []
    extra += ["--videos", str(args.videos)] if args.videos else []
    return RunArguments(args.data_dir, args.plugin, args.threads, extra)


def submit(args: argparse.Namespace, specs: Sequence[RunSpec]) -> int:
    """Submit runs to Slurm, say how to follow them, and return the exit status."""
    from plastibench.results.run_folder import run_folder
    from plastibench.results.tags import add_tags
    from plastibench.sweeps.jobs import prepare

    _warn_about_locks(args)
    engine = make_slurm_engine(args)
    jobs = prepare(specs, args.runs_dir, args.force)
    ids = engine.submit(jobs)
    add_tags([run_folder(spec, args.runs_dir) for spec in specs], args.tag)
    arrays = ", ".join(dict.fromkeys(name.partition("_")[0] for name in ids))
    complete = sum(job.state == "complete" for job in jobs)
    already = len(jobs) - len(ids) - complete
    parts = [f"submitted {len(ids)} of {plural(len(jobs), 'run')}" + (f" as Slurm job {arrays}" if ids else "")]
    parts += [f"{count} {what}" for count, what in ((complete, "complete"), (already, "already queued")) if count]
    print("; ".join(parts))
    flag = f"--runs-dir {args.runs_dir}"
    print(f"progress: plastibench runs status {flag}; for a sweep, also repeat the command with --status")
    return 0


def _warn_about_locks(args: argparse.Namespace) -> None:
    from plastibench.utils.folder_lock import lock_warning

    if warning := lock_warning(args.runs_dir):
        print(f"plastibench: {warning}; do not start the same run twice", file=sys.stderr)


def _amount(text: str) -> float:
    """Parse a positive number."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive number")
    return value


def _minutes(text: str) -> int:
    """Parse a time limit: minutes, ``H:MM:SS`` or ``D-HH:MM:SS``; seconds are rounded up."""
    if text.isdecimal() and int(text):
        return int(text)
    if match := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        if total := (days * 24 + hours) * 60 + minutes + (seconds > 0):
            return total
    raise argparse.ArgumentTypeError(f"'{text}' is not a time: expected minutes, H:MM:SS or D-HH:MM:SS")


def _key_value(text: str) -> tuple[str, str | bool]:
    """Parse ``KEY=VALUE``, or ``KEY`` for a flag."""
    key, equals, value = text.lstrip("-").partition("=")
    if not re.fullmatch(r"[a-z][a-z-]*", key) or (equals and not value) or "\n" in text:
        raise argparse.ArgumentTypeError(f"'{text}': expected KEY=VALUE with an option of sbatch, such as qos=low")
    return key, value if equals else True
