"""Run short specs on this tree and on an older one, and compare the results bit by bit: a safety net for refactoring.

    git worktree add ../base COMMIT
    python tests/compare_with_base.py --base ../base [--only REGEX] [--jobs 2] [--keep DIR] [--tree DIR]

Each spec runs once per tree, through the command line. All tensors of ``final.pt`` are compared, and ``result.json``
without times, versions and ids. Results of the base are cached by its commit. The tables below list intended changes;
any other difference makes the exit status 1.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this tree, which reads results of all schemas
from plastibench.config.errors import UserError
from plastibench.results.result import Result

# Old name to new name, normalised as in `normalised`: {"mean drop": "drop"}. For keys of result.json and final.pt.
KEY_RENAMES: dict[str, str] = {}
# Old flag to new flag of the command line: {"--env.epochs": "--env.passes"}.
FLAG_RENAMES: dict[str, str] = {
    "--env.switches": "--env.tasks",
    "--intervention.percentile": "--intervention.quantile",
}
# Spec to the reason why its figures differ now: {"sac-weight-clipping": "weights are clipped before …"}.
EXPECTED_DIFFERENCES: dict[str, str] = {
    "sac-reset": "SAC's densities and critics belong to actions scaled to [-1, 1]; Pendulum's reach from -2 to 2",
    "sac-weight-clipping": "after_update of the critic runs right after the critic's step, no longer after the actor's",
}
# Normalised keys that differ between any two runs; so do those that end with " seconds".
IGNORED_KEYS = {"seconds", "time", "times", "command", "commit", "versions", "hardware", "finished", "sessions", "code"}
IGNORED_AT_TOP = {"id", "group", "agent version"}  # the first two hold digests of all options, and their names

_TIMEOUT = 300.0  # seconds
_PACKAGES = ("torch", "torchvision", "timm", "gymnasium", "tensordict", "torchrl", "numpy", "scikit-learn", "minatar")


@dataclass(frozen=True)
class Spec:
    """A run.

    Attributes:
        name: Short and unique.
        command: What follows ``plastibench run``.
        stop_after: Optimizer steps after which the run is stopped by SIGTERM, and then continued; 0: never.
    """

    name: str
    command: str
    stop_after: int = 0


_DIGITS = "cl-digits --env.train-size 200 --env.stop-after 3 --env.epochs 3 --representative 64"
_PERMUTED = "permuted-digits --env.samples 60 --env.switches 3 --env.epochs 3 --representative 64"
_RELABEL = "relabel-digits --env.train-size 100 --env.switches 3 --env.epochs 3 --representative 64"
_INCREMENTAL = "incremental-digits --env.train-size 120 --env.epochs 2 --representative 64"
_WARM = "warm-digits --env.train-size 100 --env.epochs 4 --representative 64"
_MLP = "--agent mlp --agent.width 16 --agent.batch-size 16"
_VIT = "--agent vit-nano --agent.dim 16 --agent.depth 2 --agent.batch-size 16"

_STEPS = "--env.steps 300 --env.envs 4 --env.evaluate-every 100 --env.evaluation-episodes 2 --representative 64"
_CARTPOLE = f"rl-cartpole {_STEPS} --env.max-episode-steps 40"
_PENDULUM = f"rl-pendulum {_STEPS} --env.max-episode-steps 40"
_MINATAR = f"rl-minatar-breakout {_STEPS} --env.max-episode-steps 40"
_PERMUTED_MINATAR = f"rl-minatar-permuted {_STEPS} --env.max-episode-steps 40 --env.tasks 2"
_BANDIT = f"rl-bandit-digits {_STEPS} --env.evaluation-episodes 40 --env.images 40 --env.tasks 3"
_ACT = "--agent.learning-starts 40 --agent.buffer-size 200 --agent.batch-size 16 --agent.replay-ratio 0.5"
_DQN = f"--agent dqn-mlp --agent.hidden 16,16 --agent.target-every 10 {_ACT}"
_SAC = f"--agent sac-mlp --agent.hidden 16,16 {_ACT}"

SPECS = (
    Spec("reset", f"{_DIGITS} {_MLP} --intervention reset"),
    Spec("rnr-vit", f"{_DIGITS} {_VIT} --intervention rnr"),
    Spec(
        "rnr-per-layer",
        f"{_DIGITS} {_VIT} --intervention rnr --intervention.criterion regrama --intervention.tau 0.5 "
        "--intervention.scoring per-layer --intervention.split-qkv true",
    ),
    Spec(
        "rnr-local",
        f"{_RELABEL} {_MLP} --seed 1 --intervention rnr --intervention.criterion weight-norm "
        "--intervention.scoring per-layer --intervention.targets local --intervention.solver pinv "
        "--intervention.decay 0.7",
    ),
    Spec(
        "rnr-redo",
        f"{_DIGITS} {_MLP} --intervention rnr --intervention.criterion redo --intervention.tau 0.5 "
        "--intervention.modules hidden",
    ),
    Spec("recouple", f"{_DIGITS} {_VIT} --intervention recouple --intervention.inner-options tau=0.5"),
    Spec("recouple-all", f"{_DIGITS} {_MLP} --intervention recouple --intervention.inner shrink-perturb"),
    Spec(
        "continual-backprop",
        f"{_RELABEL} {_MLP} --intervention continual-backprop --intervention.rate 0.02 --intervention.maturity 5",
    ),
    Spec("upgd", f"{_DIGITS} {_MLP} --intervention upgd"),
    Spec("l2-init", f"{_DIGITS} {_VIT} --intervention l2-init --intervention.strength 0.01"),
    Spec("hare-tortoise", f"{_DIGITS} {_MLP} --intervention hare-tortoise --intervention.momentum 0.9"),
    Spec("plasticity-injection", f"{_DIGITS} {_VIT} --intervention plasticity-injection"),
    Spec("crelu", f"{_DIGITS} {_MLP} --intervention crelu"),
    Spec("l2-init+rnr", f"{_DIGITS} {_VIT} --intervention l2-init+rnr --intervention.l2-init.strength 0.01"),
    Spec(
        "self-normalized-resets",
        f"{_RELABEL} {_MLP} --agent.lr 0.03 --intervention self-normalized-resets --intervention.percentile 0.5 "
        "--intervention.retune 5 --intervention.check 2",
    ),
    Spec("permuted", f"{_PERMUTED} {_MLP} --intervention shrink-perturb --seed 1"),
    Spec("incremental", f"{_INCREMENTAL} {_MLP} --intervention redo --env.data new"),
    Spec("warm", f"{_WARM} {_VIT} --agent.dropout 0.1 --intervention reset-head"),
    Spec(
        "all-metrics",
        f"{_PERMUTED} {_VIT} --agent.depth 1 --agent.dim 8 --env.switches 2 --env.epochs 1 "
        "--intervention rnr-mlp --metrics all",
    ),
    Spec("every", f"{_RELABEL} {_MLP} --intervention rnr --every 10 --until 40"),
    Spec(
        "resnet",
        f"{_PERMUTED} --env.samples 30 --env.epochs 2 --env.switches 2 --agent resnet18 --agent.batch-size 15 "
        "--representative 32 --intervention rnr --intervention.refit layer1",
    ),
    Spec(
        "stopped",
        f"{_RELABEL} {_MLP} --intervention continual-backprop+rnr --intervention.continual-backprop.rate 0.02 "
        "--intervention.continual-backprop.maturity 5 --every 15",
        stop_after=32,
    ),
    Spec("dqn", f"{_CARTPOLE} {_DQN}"),
    Spec("dqn-atoms", f"{_CARTPOLE} {_DQN} --agent.atoms 11 --agent.dueling true --agent.n-step 3"),
    Spec("dqn-prioritized", f"{_CARTPOLE} {_DQN} --agent.prioritized true --metrics activity,weights"),
    Spec(
        "dqn-vit", f"{_MINATAR} --agent dqn-vit --agent.dim 16 --agent.hidden 16 {_ACT} --intervention rnr --every 50"
    ),
    Spec("dqn-tasks", f"{_BANDIT} {_DQN} --intervention redo --intervention.tau 0.5"),
    Spec("target-copy", f"{_CARTPOLE} {_DQN} --agent.target-policy copy --intervention reset-head --every 40"),
    Spec("target-same", f"{_CARTPOLE} {_DQN} --agent.target-policy same --intervention rnr --every 40"),
    Spec("dqn-offline", f"{_CARTPOLE} {_DQN} --intervention redo --every 50 --offline-updates 5"),
    Spec("dqn-ema", f"{_CARTPOLE} {_DQN} --intervention ema --intervention.momentum 0.9"),
    Spec("sac-reset", f"{_PENDULUM} {_SAC} --intervention reset --every 60"),
    Spec("sac-discrete", f"{_CARTPOLE} {_SAC} --intervention rnr --every 60 --roles critic"),
    Spec("sac-vit", f"{_PERMUTED_MINATAR} --env.steps 120 --agent sac-vit --agent.dim 16 --agent.hidden 16 {_ACT}"),
    Spec("sac-weight-clipping", f"{_PENDULUM} {_SAC} --intervention weight-clipping --intervention.kappa 0.7"),
    Spec("dqn-stopped", f"{_CARTPOLE} {_DQN} --intervention l2-init+rnr --every 40", stop_after=70),
)

# Counts optimizer steps, whatever makes them, and has the process ask itself to stop after so many.
_PLUGIN = """
import atexit, os, signal
from pathlib import Path

from torch.optim.optimizer import register_optimizer_step_post_hook

steps, last = 0, int(os.environ["STOP_AFTER"])


def count(*_):
    global steps
    steps += 1
    if steps == last:
        os.kill(os.getpid(), signal.SIGTERM)


def note():
    with Path("steps").open("a") as file:
        file.write(f"{steps}\\n")


register_optimizer_step_post_hook(count)
atexit.register(note)
"""


class Failed(Exception):
    """A run did not end as it should have; says why in one line."""


# Runs --------------------------------------------------------------------------------------------------------------


def run(tree: Path, spec: Spec, folder: Path, renamed: Mapping[str, str]) -> None:
    """Run a spec in an empty folder, which then holds its ``final.pt`` and ``result.json``.

    Raises:
        Failed: The run did.
    """
    words = ["run", *spec.command.split(), "--runs-dir", "runs", "--threads", "1", "--quiet"]
    if spec.stop_after:
        (folder / "plugin.py").write_text(_PLUGIN)
        words += ["--plugin", "plugin.py"]
    command = [sys.executable, "-m", "plastibench", *(renamed.get(word, word) for word in words)]
    if spec.stop_after:
        call(command, tree, folder, status=130, stop_after=spec.stop_after)
    call(command, tree, folder)
    results = list(folder.glob("runs/*/result.json"))
    if len(results) != 1:
        raise Failed(f"the command made {len(results)} files runs/*/result.json")
    for name in ("result.json", "final.pt"):
        if not (results[0].parent / name).exists():
            raise Failed(f"the run made no {name}")
        os.replace(results[0].parent / name, folder / name)


def call(command: Sequence[str], tree: Path, folder: Path, status: int = 0, stop_after: int = 0) -> str:
    """Run a command with the packages of a tree; return what it printed.

    Raises:
        Failed: It ended with another status.
    """
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment(tree) | {"STOP_AFTER": str(stop_after)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"no end after {_TIMEOUT:.0f} s") from None
    if done.returncode != status:
        said = done.stderr.strip().splitlines() or ["nothing on stderr"]
        raise Failed(f"{said[-1]} (exit status {done.returncode}{f' instead of {status}' if status else ''})")
    return done.stdout


def environment(tree: Path) -> dict[str, str]:
    """Variables of a process that imports from the tree, sees no GPU, and has one thread."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PLASTIBENCH_", "PYTHON"))}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**kept, **threads, "PYTHONPATH": str(tree), "CUDA_VISIBLE_DEVICES": ""}


def check_imports(tree: Path) -> None:
    """Check that the tree's own modules run, and not those of an installed package.

    Raises:
        Failed: A module is imported from elsewhere.
    """
    code = (
        "import sys, plastibench.__main__, plastibench.agents, plastibench.envs\n"
        "for name, module in list(sys.modules.items()):\n"
        "    if name.partition('.')[0] == 'plastibench' and getattr(module, '__file__', None): print(module.__file__)"
    )
    with tempfile.TemporaryDirectory() as folder:
        for file in call([sys.executable, "-c", code], tree, Path(folder)).splitlines():
            if not Path(file).resolve().is_relative_to(tree):
                raise Failed(f"{file} is imported, although it is not in {tree}")


def of_base(base: Path, commit: str, spec: Spec, cache: Path) -> Path:
    """The folder with what a spec comes to in the base tree, run where the cache does not have it.

    Raises:
        Failed: The run did.
    """
    place = cache / f"{spec.name}-{digest(spec)}"
    if commit and place.exists():
        return place
    with tempfile.TemporaryDirectory(dir=cache, prefix=f".{spec.name}-") as around:
        folder = Path(around) / "run"
        folder.mkdir()
        run(base, spec, folder, {})
        shutil.rmtree(place, ignore_errors=True)
        os.replace(folder, place)
    return place


def of_tree(tree: Path, spec: Spec, kept: Path) -> Path:
    """The folder with what a spec comes to in the working tree, always run anew.

    Raises:
        Failed: The run did.
    """
    folder = kept / spec.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run(tree, spec, folder, FLAG_RENAMES)
    return folder


def digest(spec: Spec) -> str:
    """Stands for all that the figures of the base depend on beside its commit."""
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    machine = [platform.python_version(), platform.machine(), torch.backends.cpu.get_cpu_capability()]
    content = json.dumps([spec.command, spec.stop_after, _PLUGIN, versions, machine])
    return hashlib.sha256(content.encode()).hexdigest()[:8]


def commit_of(tree: Path) -> str:
    """The commit that is checked out in a tree; empty where there is none, or files differ from it."""
    if not (tree / ".git").exists():
        return ""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(tree), *words], capture_output=True, text=True, check=True).stdout

    return "" if git("status", "--porcelain").strip() else git("rev-parse", "HEAD").strip()


# Comparison --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """Where two outcomes differ, and what stands there in the base and in the working tree."""

    path: str
    old: Any
    new: Any

    def __str__(self) -> str:
        old, new = (_short(value) for value in (self.old, self.new))
        return f"{self.path}: {old} became {new}"


def differences(old: Path, new: Path) -> Iterator[Difference]:
    """All that differs between the outcomes in two folders, what matters most first."""
    before, after = (_result(folder / "result.json") for folder in (old, new))
    yield from different_values(normalised(before, KEY_RENAMES), normalised(after), "result.json")
    yield from different_tensors(tensors_of(old / "final.pt", KEY_RENAMES), tensors_of(new / "final.pt"))
    if (old / "steps").exists():
        taken = [(folder / "steps").read_text().split() for folder in (old, new)]
        yield from different_values(taken[0], taken[1], "optimizer steps")


def _result(path: Path) -> Any:
    """The content of a result, in the current schema if this tree can read it."""
    content = json.loads(path.read_text(encoding="utf-8"))
    try:
        return Result.from_dict(content).to_dict()
    except UserError:
        return content


def normalised(value: Any, renamed: Mapping[str, str] | None = None, top: bool = True) -> Any:
    """A part of a result with plain keys, without those that differ between any two runs.

    Raises:
        Failed: Two keys become the same.
    """
    if isinstance(value, list):
        return [normalised(each, renamed, top=False) for each in value]
    if not isinstance(value, dict):
        return value
    ignored = IGNORED_KEYS | IGNORED_AT_TOP if top else IGNORED_KEYS
    found: dict[str, Any] = {}
    for key, each in value.items():
        name = plain(key)
        if name in ignored or name.endswith(" seconds"):
            continue
        name = (renamed or {}).get(name, name)
        if name in found:
            raise Failed(f"result.json has two keys that are read as '{name}'")
        found[name] = normalised(each, renamed, top=False)
    return found


def plain(key: str) -> str:
    """A key in lower case, with spaces for hyphens and underscores."""
    return re.sub("[-_ ]+", " ", key.lower())


def different_values(old: Any, new: Any, path: str) -> Iterator[Difference]:
    """Differences of two normalised values; numbers are the same if they are equal, or both are not a number."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from different_values(old.get(key, _ABSENT), new.get(key, _ABSENT), f"{path}/{key}")
    elif isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            yield Difference(f"{path}, length", len(old), len(new))
        for number, (before, after) in enumerate(zip(old, new, strict=False)):
            yield from different_values(before, after, f"{path}/{number}")
    elif not _same(old, new):
        yield Difference(path, old, new)


def tensors_of(path: Path, renamed: Mapping[str, str] | None = None) -> dict[str, list[tuple[str, Tensor]]]:
    """The tensors of a file with their paths, in order, for each entry at the top."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    found: dict[str, list[tuple[str, Tensor]]] = {}
    for name, tensor in flattened(content, "", renamed or {}):
        found.setdefault(plain(name.split("/")[1]), []).append((name, tensor))
    return found


def flattened(value: Any, path: str, renamed: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    """All tensors in a value with their paths, however deep, in order."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from flattened(each, f"{path}/{renamed.get(plain(str(key)), key)}", renamed)
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from flattened(each, f"{path}/{number}", renamed)


def different_tensors(
    old: Mapping[str, Sequence[tuple[str, Tensor]]], new: Mapping[str, Sequence[tuple[str, Tensor]]]
) -> Iterator[Difference]:
    """Differences of tensors that have the same paths; those of the same rank, where some paths are others."""
    for entry in {**old, **new}:
        before, after = old.get(entry, []), new.get(entry, [])
        if len(before) != len(after):
            yield Difference(f"final.pt/{entry}, number of tensors", len(before), len(after))
        by_path = {plain(path): (path, tensor) for path, tensor in after}
        if sorted(by_path) == sorted(plain(path) for path, _ in before):  # some states are in the order of a set
            after = [by_path[plain(path)] for path, _ in before]
        for (was_called, was), (called, now) in zip(before, after, strict=False):
            name = called if plain(called) == plain(was_called) else f"{called} (was {was_called})"
            yield from different_bits(was, now, f"final.pt{name}")


def different_bits(old: Tensor, new: Tensor, path: str) -> Iterator[Difference]:
    """The first place at which two tensors differ in a bit, or their kinds if these differ."""
    kinds = [f"{str(each.dtype).removeprefix('torch.')} {list(each.shape)}" for each in (old, new)]
    if kinds[0] != kinds[1]:
        yield Difference(path, *kinds)
        return
    bits = [each.reshape(-1, 1).contiguous().view(torch.uint8) for each in (old, new)]
    rows = (bits[0] != bits[1]).any(1).nonzero().flatten().tolist()
    if rows:
        values = (each.flatten()[rows[0]].item() for each in (old, new))
        yield Difference(f"{path}, {len(rows)} of {old.numel()} numbers, first is number {rows[0]}", *values)


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, bool) or isinstance(new, bool):
        return old is new
    if isinstance(old, float) and isinstance(new, float) and math.isnan(old) and math.isnan(new):
        return True
    return bool(old == new)


def _short(value: Any) -> str:
    text = str(value) if value is _ABSENT else repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


class _Absent:
    def __str__(self) -> str:
        return "nothing"


_ABSENT = _Absent()

# The report --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What is said of a spec, and whether it is as it should be."""

    kind: Literal["same", "expected", "different", "failed"]
    text: str


def judge(spec: Spec, base: Callable[[Spec], Path], tree: Callable[[Spec], Path]) -> Verdict:
    """Run a spec in both trees and compare."""
    try:
        old = base(spec)
    except Failed as failure:
        return Verdict("failed", f"failed in the base: {failure}")
    try:
        found = list(differences(old, tree(spec)))
    except Failed as failure:
        return Verdict("failed", f"failed: {failure}")
    reason = EXPECTED_DIFFERENCES.get(spec.name)
    if not found:
        return Verdict("same", "same" if reason is None else f"same, although a difference is expected: {reason}")
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    if reason is not None:
        return Verdict("expected", f"different as expected ({reason}): {found[0]}{more}")
    return Verdict("different", f"DIFFERENT: {found[0]}{more}")


def chosen(only: str) -> list[Spec]:
    """The specs whose names the regular expression finds."""
    names = [spec.name for spec in SPECS]
    if unknown := [name for name in EXPECTED_DIFFERENCES if name not in names]:
        sys.exit(f"EXPECTED_DIFFERENCES: there is no spec {', '.join(unknown)}")
    found = [spec for spec in SPECS if re.search(only, spec.name)]
    if not found:
        sys.exit(f"--only {only} finds no spec; there are {', '.join(names)}")
    return found


def report(specs: Sequence[Spec], base: Path, tree: Path, jobs: int, cache: Path, kept: Path) -> bool:
    """Compare all specs and print a line for each; whether all is as it should be."""
    start = time.monotonic()
    commit = commit_of(base)
    cache = cache / f"base-{commit[:12] or 'uncommitted'}"
    cache.mkdir(parents=True, exist_ok=True)
    for root in (base, tree):
        check_imports(root)
    verdict = functools.partial(
        judge,
        base=lambda spec: of_base(base, commit, spec, cache),
        tree=lambda spec: of_tree(tree, spec, kept),
    )
    width = max(len(spec.name) for spec in specs)
    count: Counter[str] = Counter()
    with ThreadPoolExecutor(jobs) as pool:
        for spec, found in zip(specs, pool.map(verdict, specs), strict=True):
            print(f"{spec.name:{width}}  {found.text}", flush=True)
            count[found.kind] += 1
    kinds = ", ".join(f"{count[kind]} {kind}" for kind in ("same", "expected", "different", "failed"))
    print(f"{kinds}; {time.monotonic() - start:.0f} s")
    return not (count["different"] or count["failed"])


def main() -> None:
    """Read the command line, and exit with 1 on a difference that is not expected."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", type=Path, required=True, help="a checkout of the commit to compare with")
    parser.add_argument("--tree", type=Path, default=Path(__file__).parent.parent, help="default: this one")
    parser.add_argument("--only", default="", metavar="REGEX", help="only specs whose name it finds")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default 2)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the runs of both trees here")
    known = parser.parse_args()
    specs = chosen(known.only)
    with tempfile.TemporaryDirectory() as passing:
        cache = (known.keep or Path(tempfile.gettempdir()) / "plastibench-compare").resolve()
        kept = cache / "tree" if known.keep else Path(passing)
        try:
            well = report(specs, known.base.resolve(), known.tree.resolve(), known.jobs, cache, kept)
        except Failed as failure:
            sys.exit(f"failed: {failure}")
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
