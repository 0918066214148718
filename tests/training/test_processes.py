"""Commands in separate processes: signals, concurrent runs, full disks, closed pipes."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.runs import assert_same_run

ROOT = Path(__file__).resolve().parents[2]
FORKS = multiprocessing.get_context("forkserver") if hasattr(os, "fork") else None
SLOW_IMPORTS = [  # imported once for all child processes
    "plastibench.training.runner",
    "plastibench.leaderboard",
    "plastibench.agents.classifier",
    "plastibench.envs.growing",
    "plastibench.interventions.rnr",
    "sklearn.datasets",
    "timm.models.vision_transformer",
    "torch._dynamo",
]
pytestmark = pytest.mark.skipif(FORKS is None, reason="needs fork")

RUN = [
    "run", "cl-digits", "--agent", "vit-nano", "--agent.depth", "1", "--agent.dim", "16", "--agent.dropout", "0.2",
    "--agent.batch-size", "8", "--agent.lr", "0.01", "--env.train-size", "60", "--env.epochs", "4",
    "--env.stop-after", "3", "--env.augment", "crop-flip", "--intervention", "rnr", "--every", "5",
    "--representative", "10", "--device", "cpu", "--quiet", "--threads", "1",
]  # fmt: skip
UPDATES = 4 * (1 + 2 + 3)


@dataclass
class Settings:
    """How a child process differs from a command in a shell."""

    folder: Path
    name: str
    checkpoint_seconds: float = 60.0
    pause: float = 0.0  # seconds before every update, so that a signal can hit one
    stop_when_writing: int = 0  # die while this checkpoint, counted from 1, is written; 0: never
    stdout: str | None = None


def child(arguments: list[str], settings: Settings) -> None:
    """Run a command as a shell would, in a process that has already imported torch."""
    for descriptor, name in ((1, "out"), (2, "err")):
        path = settings.stdout if descriptor == 1 and settings.stdout else settings.folder / f"{settings.name}.{name}"
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.alarm(60)
    torch.set_num_threads(1)
    from plastibench.agents.classifier import Classifier
    from plastibench.cli.main import main
    from plastibench.training import runner
    from plastibench.utils import atomic_io

    runner.run.__kwdefaults__["checkpoint_seconds"] = settings.checkpoint_seconds
    update, fsync, written = Classifier.update, os.fsync, [0]

    def slow(self: Classifier, batch: Any) -> None:
        (settings.folder / f"{settings.name}.learning").touch()
        time.sleep(settings.pause)
        update(self, batch)

    def deadly(descriptor: int) -> None:
        if "checkpoint" in os.readlink(f"/proc/self/fd/{descriptor}"):
            written[0] += 1
            if written[0] == settings.stop_when_writing:
                os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    Classifier.update = slow  # type: ignore[method-assign]
    atomic_io.os.fsync = deadly  # type: ignore[assignment]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the state in which Python starts a command
    main(arguments)


class Child:
    """A running command."""

    def __init__(self, arguments: list[Any], folder: Path, name: str = "child", **settings: Any) -> None:
        self.folder, self.name = folder, name
        values = Settings(folder, name, **settings)
        self.process = FORKS.Process(target=child, args=([str(argument) for argument in arguments], values))
        self.process.start()

    def send(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def end(self) -> int:
        """Wait for the end; return the exit status, or minus the signal."""
        self.process.join(70)
        assert self.process.exitcode is not None
        return self.process.exitcode

    @property
    def out(self) -> str:
        return (self.folder / f"{self.name}.out").read_text()

    @property
    def err(self) -> str:
        return (self.folder / f"{self.name}.err").read_text()


@pytest.fixture(scope="module", autouse=True)
def forkserver() -> None:
    if FORKS is not None:
        FORKS.set_forkserver_preload([*SLOW_IMPORTS, __name__])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = Child([*RUN, "--runs-dir", folder / "runs"], folder)
    assert done.end() == 0, done.err
    run = next((folder / "runs").glob("*/result.json")).parent  # the runs folder also contains the leaderboard
    assert json.loads((run / "result.json").read_text())["cost"]["updates"] == UPDATES
    return run


def wait_for(path: Path, process: Child) -> None:
    limit = time.monotonic() + 30
    while not path.exists() and process.process.is_alive() and time.monotonic() < limit:
        time.sleep(0.002)


@pytest.mark.sample(1)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=["kill", "term", "int"])
def test_resume_after_signals_at_random_moments_is_bit_identical(
    uninterrupted: Path, tmp_path: Path, number: signal.Signals
) -> None:
    chance = random.Random(int(number))
    folder = tmp_path / "runs" / uninterrupted.name
    stopped = 0
    arguments = [*RUN, "--runs-dir", tmp_path / "runs"]
    for attempt in range(4):
        process = Child(arguments, tmp_path, f"try{attempt}", checkpoint_seconds=0.0, pause=0.02)
        wait_for(tmp_path / f"try{attempt}.learning", process)
        time.sleep(chance.uniform(0.02, 0.15))
        process.send(number)
        status = process.end()
        if status == 0:
            break
        stopped += 1
        if number is signal.SIGKILL:
            assert status == -signal.SIGKILL
        elif status != -number:  # unless the signal came during start-up, before anything could be printed
            assert status == 130
            assert process.err.count("\n") == 1, process.err
        assert not (folder / "result.json").exists()
    assert stopped >= 2
    last = Child(arguments, tmp_path, "last")
    assert last.end() == 0, last.err
    assert_same_run(uninterrupted, folder)


def test_sigterm_prints_one_line_and_the_run_can_be_resumed_by_id(uninterrupted: Path, tmp_path: Path) -> None:
    process = Child([*RUN, "--runs-dir", tmp_path / "runs"], tmp_path, pause=0.03)
    wait_for(tmp_path / "runs" / uninterrupted.name / "metrics.csv", process)
    time.sleep(0.2)
    process.send(signal.SIGTERM)
    assert process.end() == 130
    assert process.err.startswith(f"plastibench: {uninterrupted.name} stopped in task ")
    assert process.err.endswith("run the same command to continue\n") and process.err.count("\n") == 1
    assert (tmp_path / "runs" / uninterrupted.name / "checkpoint.pt").exists()
    resumed = Child(["resume", uninterrupted.name, "--runs-dir", tmp_path / "runs", "--quiet"], tmp_path, "resumed")
    assert resumed.end() == 0, resumed.err
    assert_same_run(uninterrupted, tmp_path / "runs" / uninterrupted.name)


def test_run_killed_while_saving_leaves_no_temporary_files(uninterrupted: Path, tmp_path: Path) -> None:
    arguments = [*RUN, "--runs-dir", tmp_path / "runs"]
    killed = Child(arguments, tmp_path, checkpoint_seconds=0.0, stop_when_writing=5)
    assert killed.end() == -signal.SIGKILL
    last = Child(arguments, tmp_path, "last")
    assert last.end() == 0, last.err
    folder = tmp_path / "runs" / uninterrupted.name
    assert_same_run(uninterrupted, folder)
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_second_process_on_the_same_run_is_refused(uninterrupted: Path, tmp_path: Path) -> None:
    arguments = [*RUN, "--runs-dir", tmp_path / "runs"]
    first = Child(arguments, tmp_path, "first", pause=0.05)
    wait_for(tmp_path / "runs" / uninterrupted.name / "metrics.csv", first)
    second = Child(arguments, tmp_path, "second")
    assert second.end() == 2
    assert "is being run by another process" in second.err and second.err.count("\n") == 1
    assert first.end() == 0, first.err
    assert_same_run(uninterrupted, tmp_path / "runs" / uninterrupted.name)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB."""
    libc = ctypes.CDLL(None, use_errno=True)
    folder = tmp_path / "disk"
    folder.mkdir()
    if libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, b"size=512k") != 0:
        pytest.skip("mounting is not permitted here")
    yield folder
    assert libc.umount(str(folder).encode()) == 0


@pytest.mark.sample(1)
@pytest.mark.parametrize("left", [0, 120])  # KiB; decides which write fails first
def test_run_fails_on_a_full_disk_and_resumes_with_free_space(
    uninterrupted: Path, tmp_path: Path, small_disk: Path, left: int
) -> None:
    filler = small_disk / "filler"
    descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT)
    try:
        for _ in range((512 - left) // 4 if left else 1000):
            os.write(descriptor, bytes(4096))
    except OSError:
        assert not left
    os.close(descriptor)
    arguments = [*RUN, "--runs-dir", small_disk / "runs"]
    full = Child(arguments, tmp_path, "full", checkpoint_seconds=0.0)
    status = full.end()
    assert full.err.count("\n") == 1 and "No space left on device" in full.err, full.err
    folder = small_disk / "runs" / uninterrupted.name
    assert not (folder / "result.json").exists()
    assert status == 1, full.err
    filler.unlink()
    last = Child(arguments, tmp_path, "last")
    assert last.end() == 0, last.err
    assert_same_run(uninterrupted, folder)


def test_closed_output_pipe_is_not_an_error() -> None:
    command = [sys.executable, "-m", "plastibench", "list"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.decode()) == (0, "")


def test_ascii_terminal_is_not_an_error() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "plastibench", "list"]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr.decode()[-300:]
    assert b"rnr" in done.stdout


MLP_RUN = ["run", "relabel-digits", "--agent", "mlp"]
TINY_RUN = [*MLP_RUN, "--agent.width", "8", "--env.epochs", "1", "--env.tasks", "2", "--env.train-size", "40"]
LIGHT = ["torch", "tensordict", "torchrl", "numpy", "scipy", "pandas", "matplotlib", "pydantic", "timm", "sklearn"]
NOT_IN_A_RUN = ["sklearn", "scipy.stats", "pandas", "matplotlib", "timm", "torchvision"]


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["--help"], LIGHT),
        (["run", "--help"], LIGHT),
        (["run", "cl-digits", "--agent", "vit-nano", "--intervention", "l2-init+rnr", "--help"], LIGHT),
        (["list"], LIGHT),
        (["list", "interventions"], LIGHT),
        (["run", "cl-digtis"], LIGHT),
        ([*MLP_RUN, "--agent.width", "many"], LIGHT),
        ([*MLP_RUN, "--intervention", "none,rnr", "--intervention.quantile", "2"], LIGHT),
        ([*MLP_RUN, "--intervention", "l2-init+rnr", "--intervention.rnr.quantle", "0.1"], LIGHT),
        ([*MLP_RUN, "--intervention", "reset", "--every", "often"], LIGHT),
        (["run", "rl-cartpole", "--agent", "dqn-mlp", "--agent.gamma", "2"], LIGHT),
        (["sweep", "wrong.toml"], LIGHT),
        ([*TINY_RUN, "--no-plot", "--quiet", "--device", "cpu", "--runs-dir", "runs"], NOT_IN_A_RUN),
    ],
    ids=lambda value: " ".join(value) if "run" in value or "list" in value else "",
)
def test_nothing_slow_is_imported_before_it_is_needed(tmp_path: Path, arguments: list[str], absent: list[str]) -> None:
    grids = "[[grid]]\nintervention.name = 'reset'\n[[grid]]\nintervention = {name = 'redo', tau = 'low'}\n"
    (tmp_path / "wrong.toml").write_text(f"env.name = 'cl-digits'\nagent.name = 'mlp'\n{grids}")
    at_the_end = f"sorted(name for name in {absent!r} if name in sys.modules)"
    code = (
        "import sys\nfrom plastibench.cli import board_update, main\n"
        "board_update.update_board = lambda *_, **__: None\n"  # reads all results, after the run
        f"try: main.main({arguments!r})\nexcept SystemExit as status: print(status.code, {at_the_end})\n"
    )
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=variables, check=True
    )
    fails = absent is LIGHT and "--help" not in arguments and "list" not in arguments
    assert done.stdout.splitlines()[-1] == f"{2 if fails else 0} []", done.stderr


def test_python_m_plastibench_is_the_command_line() -> None:
    done = subprocess.run([sys.executable, "-m", "plastibench", "--version"], capture_output=True, text=True, cwd=ROOT)
    from plastibench import __version__

    assert (done.returncode, done.stdout) == (0, f"plastibench {__version__}\n")
