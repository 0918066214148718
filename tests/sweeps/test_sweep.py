from __future__ import annotations

import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from plastibench.cli.main import main
from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.sweeps.engine import run_all
from plastibench.sweeps.grid import read_grid
from plastibench.sweeps.jobs import FAILURE_FILE, Job, RunArguments, prepare
from plastibench.sweeps.live_table import LiveTable, time_left
from plastibench.sweeps.local_engine import LocalEngine, _assign_gpu
from plastibench.utils.runtime import GPU_SHARE, set_up_torch

SMALL = """
[env]
name = "cl-digits"
epochs = 1
stop-after = 2
[agent]
name = "mlp"
width = 16
[run]
seed = "0..1"
device = "cpu"
"""


def file(folder: Path, text: str) -> Path:
    """A sweep file with this text."""
    path = folder / "sweep.toml"
    path.write_text(text)
    return path


def test_lists_are_axes_and_grids_override_shared_tables(tmp_path):
    specs = read_grid(
        file(
            tmp_path,
            SMALL
            + """
[[grid]]
intervention = {name = ["none", "reset"]}
[[grid]]
intervention = {name = "rnr", quantile = [0.2, 0.4]}
run = {every = [0, 10], seed = 3}
[[grid]]
agent = {name = "vit-nano", lr = 1e-4}
[[grid]]
intervention = {name = "none"}
""",
        )
    )
    found = [(s.agent[0], s.intervention[0], s.intervention[1].get("quantile"), s.run.every, s.run.seed) for s in specs]
    assert found == [
        *(("mlp", name, None, 0, seed) for name in ("none", "reset") for seed in (0, 1)),
        *(("mlp", "rnr", quantile, every, 3) for quantile in (0.2, 0.4) for every in (0, 10)),
        ("vit-nano", "none", None, 0, 0),
        ("vit-nano", "none", None, 0, 1),
    ]
    assert all(spec.env[1]["epochs"] == 1 for spec in specs)
    assert specs[0].agent[1]["width"] == 16  # the options of another agent do not carry over
    assert specs[-1].agent[1]["lr"] == 1e-4


def test_a_list_option_is_not_an_axis(tmp_path):
    text = '[env]\nname = "rl-cartpole"\n[agent]\nname = "dqn-mlp"\nhidden = [8, 16]\n'
    text += '[intervention]\nname = "rnr"\n[run]\nroles = ["critic"]\n'
    (spec,) = read_grid(file(tmp_path, text))
    assert spec.agent[1]["hidden"] == [8, 16]
    assert spec.run.roles == ("critic",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[env", "is not valid TOML"),
        ("[envs]\nname='x'", r"no table \[envs\]; did you mean 'env'"),
        ("[env]\nname='cl-digits'", r"\[agent\] has no name"),
        ("env = 3", "env must be a table"),
        (SMALL + "[grid]\nrun = {seed = 1}", r"grid must be written as \[\[grid\]\]"),
        (SMALL + "[intervention]\nname = 'rest'", "'rest'; did you mean 'reset'"),
        (SMALL + "[intervention]\nname = 'rnr'\nquantile = [0.1, 2.0]", "quantile is 2.0"),
    ],
)
def test_an_invalid_file_is_reported(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_grid(file(tmp_path, text))


def results(folder: Path) -> dict[str, object]:
    return {
        path.parent.name: (json.loads(path.read_text())["summary"], json.loads(path.read_text())["tasks"])
        for path in folder.glob("*/result.json")
    }


def test_a_failed_run_stores_its_reason_and_stops_no_other(tmp_path, capsys):
    path = file(tmp_path, SMALL.replace('seed = "0..1"', "seed = 0") + "[[grid]]\n[[grid]]\nagent = {lr = 1e30}\n")
    with pytest.raises(SystemExit) as exit_:
        main(["sweep", str(path), "--runs-dir", str(tmp_path / "r"), "--jobs", "2"])
    assert exit_.value.code == 1
    output = capsys.readouterr()
    assert "not finite" in output.err
    assert "1 of 2 complete, 1 failed" in output.err
    (reason,) = (tmp_path / "r").glob(f"*/{FAILURE_FILE}")
    assert "--agent.lr" in reason.read_text()
    assert len(results(tmp_path / "r")) == 1
    with pytest.raises(SystemExit):
        main(["sweep", str(path), "--runs-dir", str(tmp_path / "r"), "--list"])
    lines = sorted(line.split() for line in capsys.readouterr().out.splitlines())
    assert [(state, name) for state, _, name in lines] == [
        ("complete", "none·lr=0.003·s0"),
        ("failed", "none·lr=1e+30·s0"),
    ]


@pytest.mark.parametrize(
    ("body", "state", "words"),
    [
        ("import os; os.write(2, b'caf\\xe9 ' * 50_000 + b'\\n')", "complete", ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "failed", "killed by SIGKILL"),
    ],
)
def test_the_engine_survives_any_output_and_any_exit(tmp_path, body, state, words):
    (tmp_path / "plugin.py").write_text(body)
    specs = read_grid(file(tmp_path, SMALL))
    engine = LocalEngine(2, tmp_path / "r", RunArguments(tmp_path, [str(tmp_path / "plugin.py")]))
    jobs = run_all(specs, engine, tmp_path / "r", quiet=True)
    assert [job.state for job in jobs] == [state] * 2
    notes = [note.read_text() for note in (tmp_path / "r").glob(f"*/{FAILURE_FILE}")]
    assert len(notes) == (2 if words else 0) and all(words in note for note in notes)


def test_an_unusable_runs_dir_is_reported_in_one_line(tmp_path, say):
    (tmp_path / "r").write_text("a file")
    said = say("sweep", file(tmp_path, SMALL), "--runs-dir", tmp_path / "r", "--prepare")
    assert said.status == 2 and said.err.count("\n") == 1 and "choose another folder with --runs-dir" in said.err


@pytest.mark.slow
def test_an_interrupted_sweep_resumes_to_the_same_results(tmp_path):
    path = file(tmp_path, SMALL.replace("epochs = 1", "epochs = 40") + '[intervention]\nname = "reset"\n')
    engine = LocalEngine(2, tmp_path / "whole", RunArguments(tmp_path, threads=1))
    whole = run_all(read_grid(path), engine, tmp_path / "whole", quiet=True)
    assert [job.state for job in whole] == ["complete"] * 2
    command = [sys.executable, "-m", "plastibench", "sweep", str(path), "--runs-dir", str(tmp_path / "parts")]
    dice = random.Random(0)
    for stops in range(12):
        process = subprocess.Popen(
            [*command, "--jobs", "2", "--threads", "1"], stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        if stops < 2:
            time.sleep(dice.uniform(4, 7))
            os.killpg(process.pid, signal.SIGINT)  # Ctrl-C in a terminal reaches every process in the foreground
        error = process.communicate(timeout=120)[1]
        if process.returncode == 0:
            break
        assert process.returncode in (130, -signal.SIGINT), error  # -SIGINT: while Python is starting
        assert "failed" not in error
        assert process.returncode != 130 or "Traceback" not in error
        assert not list((tmp_path / "parts").glob(f"*/{FAILURE_FILE}"))
    assert process.returncode == 0
    assert results(tmp_path / "parts") == results(tmp_path / "whole")


def test_parallel_runs_equal_sequential_runs(tmp_path):
    arguments = ["cl-digits", "--agent", "mlp", "--agent.width", "8", "--env.epochs", "1", "--env.stop-after", "2"]
    for jobs, folder in (("1", "one"), ("2", "two")):
        with pytest.raises(SystemExit) as exit_:
            main(["run", *arguments, "--seed", "0,1", "--jobs", jobs, "--runs-dir", str(tmp_path / folder), "--quiet"])
        assert exit_.value.code == 0
    assert results(tmp_path / "one") == results(tmp_path / "two") != {}
    assert set(os.listdir(tmp_path / "one")) == set(os.listdir(tmp_path / "two"))


@pytest.mark.parametrize("figure", ["fig2", "fig3", "fig4", "fig5"])
def test_sweeps_of_the_paper_are_built_in_for_both_sizes(figure: str, tmp_path, capsys) -> None:
    found = {}
    for size in ("digits", "paper"):
        with pytest.raises(SystemExit) as exit_:
            main(["sweep", figure, "--size", size, "--list", "--runs-dir", str(tmp_path)])
        assert exit_.value.code == 0
        found[size] = {re.sub(r"_s\d+_\w+$", "", line.split()[1]) for line in capsys.readouterr().out.splitlines()}
    methods = {size: {name.split("_")[2] for name in names} for size, names in found.items()}
    assert methods["digits"] == methods["paper"] >= {"none", "reset"}
    assert {name.split("_")[0] for name in found["paper"]} <= {"cl-cifar100", "cl-tiny-imagenet"}


def test_several_runs_use_all_cores_without_being_asked(tmp_path, say, monkeypatch) -> None:
    words = ["run", "cl-digits", "--agent", "mlp", "--agent.width", "8", "--env.epochs", "1", "--env.stop-after", "2"]
    words += ["--device", "cpu", "--runs-dir", tmp_path]
    slots = []
    monkeypatch.setattr("plastibench.sweeps.capacity.cores", lambda: 2)
    monkeypatch.setattr(LocalEngine, "run", lambda self, jobs, **_: slots.append((self.slots, len(jobs))))
    say(*words, "--seed", "0..4")
    say(*words, "--seed", "0..4", "--jobs", "3")
    said = say(*words, "--seed", "0..1", "--jobs", "1")
    assert slots == [(2, 5), (3, 5)]
    assert said.status == 0 and "run 2 of 2" in said.err  # one after the other, in this process
    said = say(*words, "--seed", "0..2")  # one run is left
    assert said.status == 0 and "run 3 of 3" in said.err and len(slots) == 2


class FakeEngine:
    """Completes jobs without running them."""

    slots = 1

    def run(self, jobs: Sequence[Job], *, stop: Sequence[int], on_poll: Callable[[], None]) -> None:
        for job in jobs:
            if job.state == "waiting":
                job.state = "stopped" if stop else "complete"
            on_poll()


@pytest.mark.parametrize(("stop", "state"), [((), "complete"), ((signal.SIGINT,), "stopped")])
def test_any_engine_can_run_a_sweep(tmp_path, capsys, stop, state) -> None:
    specs = read_grid(file(tmp_path, SMALL))
    jobs = run_all(specs, FakeEngine(), tmp_path / "r", stop=stop)
    assert [(job.spec, job.state) for job in jobs] == [(spec, state) for spec in specs]
    assert all((tmp_path / "r" / spec.id / "spec.toml").is_file() for spec in specs)
    assert f"{0 if stop else 2} of 2 complete" in capsys.readouterr().err


def test_an_unknown_built_in_sweep_is_reported(capsys) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["sweep", "fig22"])
    assert exit_.value.code == 2
    message = "no file and no built-in sweep 'fig22'; did you mean 'fig2'? (fig2, fig3, fig4, fig5)"
    assert message in capsys.readouterr().err


def test_prepare_lists_unfinished_runs_for_a_scheduler(tmp_path, capsys) -> None:
    runs_dir = ["--runs-dir", str(tmp_path / "r")]
    with pytest.raises(SystemExit):
        main(["sweep", str(file(tmp_path, SMALL)), "--prepare", *runs_dir])
    first, second = capsys.readouterr().out.split()
    with pytest.raises(SystemExit) as exit_:
        main(["resume", first, "--quiet", *runs_dir])
    assert exit_.value.code == 0
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["sweep", str(file(tmp_path, SMALL)), "--prepare", *runs_dir])
    assert capsys.readouterr().out.split() == [second]


def test_jobs_are_spread_over_gpus_and_divide_their_memory(monkeypatch, tmp_path) -> None:
    text = SMALL.replace('seed = "0..1"', 'seed = "0..4"').replace('"cpu"', '"auto"')
    specs = [replace(s, run=replace(s.run, device="cuda")) for s in read_grid(file(tmp_path, text))]
    monkeypatch.setattr("plastibench.sweeps.local_engine.gpu_count", lambda: 2)
    busy: list[int | None] = []
    for spec, expected in zip(specs, (0, 1, 0), strict=False):
        gpu, variables = _assign_gpu(Job(spec), busy, slots=3)
        assert gpu == expected
        assert variables == {"CUDA_VISIBLE_DEVICES": str(expected), GPU_SHARE: "0.5"}
        busy.append(gpu)
    assert _assign_gpu(Job(specs[3]), [0, 0], slots=3)[0] == 1  # the GPU that is free
    assert _assign_gpu(Job(read_grid(file(tmp_path, SMALL))[0]), busy, slots=3) == (None, {})


def test_the_memory_fraction_of_a_gpu_is_set_before_a_run(monkeypatch) -> None:
    spec = RunSpec.make("cl-digits", "mlp", device="cuda:1")
    set_to: list[tuple[float, int | None]] = []
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", lambda *share: set_to.append(share))
    set_up_torch(spec)
    monkeypatch.setenv(GPU_SHARE, "0.25")
    set_up_torch(spec)
    set_up_torch(replace(spec, run=replace(spec.run, device="cuda")))
    set_up_torch(replace(spec, run=replace(spec.run, device="cpu")))
    assert set_to == [(0.25, 1), (0.25, None)]


def test_time_left_subtracts_the_elapsed_time_of_running_jobs(tmp_path: Path) -> None:
    spec = read_grid(file(tmp_path, SMALL))[0]
    complete = [Job(spec, "complete", seconds=80.0), Job(spec, "complete", seconds=120.0), Job(spec, "complete")]
    running = [Job(spec, "running", started=0.0), Job(spec, "running", started=50.0)]
    waiting = [Job(spec) for _ in range(3)]
    assert time_left([*running, *waiting], 2, 60.0) is None  # no job has completed yet
    assert time_left([*complete, *running], 2, 60.0) == 90
    assert time_left([*complete, *running, *waiting], 2, 60.0) == 240  # 40 and 90, then 140 and 190, then 240
    assert time_left([*complete, *running], 2, 500.0) == 0  # slower than the mean: about to end
    assert time_left([*complete, Job(spec, "failed")], 2, 60.0) == 0
    running[0].progress, running[1].progress = 0.25, 0.1  # 60 and 10 seconds after their starts: 240 and 100 in all
    assert time_left(running, 2, 60.0) == 180
    assert time_left([*running, *waiting], 2, 60.0) == 430  # 180 and 90, then 170 each in the slot that is free first


def test_the_table_shows_every_run_and_its_progress_within_80_columns(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    specs = read_grid(file(tmp_path, SMALL + "[[grid]]\nagent = {lr = [0.001, 0.01]}\n"))
    jobs = prepare(specs, tmp_path / "r")
    jobs[0].state, jobs[0].message = "running", "task 1/2, epoch 1/1  accuracy  50.0 %  12,345 samples/s  0:10 left"
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(LiveTable(jobs, 2, quiet=True)._table())
    lines = console.export_text().splitlines()
    assert [line.split()[1] for line in lines[1:]] == [
        f"none·lr={rate}·s{seed}" for rate in ("0.001", "0.01") for seed in (0, 1)
    ]
    assert "accuracy  50.0 %" in lines[1] and all(len(line) <= 80 for line in lines)
