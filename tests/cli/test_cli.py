from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plastibench.cli.main import COMMANDS
from plastibench.config import registry
from plastibench.config.options import flag_name, options_of
from plastibench.config.spec import RunOptions
from plastibench.results.files import write_result
from plastibench.sweeps.jobs import prepare
from plastibench.training import opened_run
from tests.support.runs import assert_same_run, go

Say = Callable[..., Any]
TINY = ["--env.epochs", "2", "--env.train-size", "40", "--env.stop-after", "3"]
TINY += ["--agent.width", "8", "--device", "cpu", "--threads", "1"]
RUN = ["run", "cl-digits", "--agent", "mlp", *TINY]
HEAVY = ("torch", "tensordict", "pydantic", "rich", "timm", "numpy", "matplotlib", "jinja2")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for runs. The working directory is temporary too, for commands that do not get the folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results"


def error_line(done: Any, status: int) -> str:
    """The message of a command that failed with this status; it must be one line."""
    assert done.status == status, (done.out, done.err)
    assert done.err.startswith("plastibench: ") and done.err.count("\n") == 1, done.err
    return done.err


# Help and lists ---------------------------------------------------------------------------------------------------


def test_help_shows_commands_and_examples(say: Say) -> None:
    done = say("--help")
    assert done.status == 0 and done.err == ""
    for word in (*COMMANDS, "examples:"):
        assert word in done.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(say: Say, command: str) -> None:
    done = say(command, "--help")
    assert done.status == 0 and done.out.startswith(f"usage: plastibench {command}") and done.err == ""
    assert not re.search(r"\(default: [^)]*\)\s*\(default", done.out)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, plastibench.cli.main as c\n"
        "for command in ['', *c.COMMANDS]:\n"
        "    try: c.main([*command.split(), '--help'])\n"
        f"    except SystemExit: print('heavy:', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.findall("^heavy: (.*)", done.stdout, re.M) == ["[]"] * (1 + len(COMMANDS))


def test_flags_of_run_are_those_of_run_options(say: Say) -> None:
    text = " ".join(say("run", "--help").out.split())
    for name, field in options_of(RunOptions).items():
        assert f"--{flag_name(name)} " in text
        assert field.metadata["help"] in text, name


def test_version(say: Say) -> None:
    assert re.fullmatch(r"plastibench \d+\.\d+\.\d+\n", say("--version").out)


@pytest.mark.parametrize("kind", ["envs", "agents", "interventions"])
def test_list_shows_every_name_with_its_summary(say: Say, kind: str) -> None:
    done = say("list", kind)
    assert done.status == 0
    listed = dict(re.findall(r"^  (\S+) +(.*)$", done.out, re.M))
    summaries = {name: entry.summary for name, entry in getattr(registry, kind).all().items()}
    assert {name: listed[name][-len(summary) :] for name, summary in summaries.items()} == summaries
    assert set(listed) - set(summaries) <= {"name"}  # the header of interventions


def test_list_shows_metrics_and_by_default_everything(say: Say) -> None:
    from plastibench.metrics import METRICS

    assert all(f"  {name} " in say("list", "metrics").out for name in METRICS)
    done = say("list")
    assert [line for line in done.out.splitlines() if line and not line.startswith(" ")] == [
        "envs:",
        "agents:",
        "interventions:",
        "metrics:",
    ]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_a_terminal_of_80_columns(say: Say, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = say(*command.split(), "--help").out.splitlines()
    assert [line for line in lines if len(line) > 80 and "plastibench " not in line] == []  # commands can be copied


def test_help_of_run_shows_the_options_of_named_components(say: Say) -> None:
    done = say("run", "cl-digits", "--agent", "vit-nano", "--intervention", "redo,rnr", "--help")
    assert done.status == 0
    for text in (
        "--env.train-size",
        "(default: 200; at least 1)",
        "--agent.dim int",
        "(default: 64; 1 to 1,000,000)",
        "intervention redo:",
        "intervention rnr:",
        "--intervention.outgoing {keep,zero}",
    ):
        assert text in " ".join(done.out.split()), text
    assert "--env.train-size" not in say("run", "--agent", "mlp", "-h").out


def test_info_shows_versions_devices_data_and_runs(say: Say, runs: Path) -> None:
    import torch

    done = say("info", "--runs-dir", runs, "--data-dir", runs / "none")
    assert done.status == 0
    assert torch.__version__.split("+")[0] in done.out and "cpu" in done.out and "0 finished" in done.out
    assert not runs.exists()


def test_info_shows_the_options_of_names(say: Say) -> None:
    done = say("info", "mlp", "l2-init+rnr")
    assert done.status == 0
    for text in ("agent mlp: ", "--agent.lr float", "--intervention.rnr.quantile float"):
        assert text in done.out
    assert error_line(say("info", "rrn"), 2).startswith("plastibench: unknown name 'rrn'; did you mean 'rnr'?")


def test_help_of_options_fits_the_terminal(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = say("info", "rnr", "plasticity-injection", "vit-nano").out.splitlines()
    assert all(len(line) <= 80 for line in lines if "{" not in line)  # a list of choices is not broken


def test_info_shows_the_cache_and_unfinished_runs(say: Say, runs: Path) -> None:
    cached = runs / "data" / ".plastibench-cache" / "cifar10-v1"
    cached.mkdir(parents=True)
    (cached / "train_images.npy").write_bytes(bytes(3_000_000))
    (runs / "data" / "cifar10").mkdir()
    for number, files in enumerate((["metrics.csv"], ["metrics.csv"], [])):
        folder = runs / f"run{number}"
        folder.mkdir()
        for file in ("spec.toml", *files):
            (folder / file).write_text("")
    done = say("info", "--runs-dir", runs, "--data-dir", runs / "data")
    assert "\n  cifar10\n" in done.out and "cache of decoded images: cifar10-v1 (3 MB" in done.out
    assert "0 finished, 2 interrupted, 1 waiting" in done.out


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("kind", ["envs", "agents", "interventions", "metrics"])
def test_lists_fit_the_terminal(say: Say, monkeypatch: pytest.MonkeyPatch, kind: str, width: int) -> None:
    everything = say("list", kind).out
    monkeypatch.setenv("COLUMNS", str(width))
    lines = say("list", kind).out.splitlines()
    assert max(map(len, lines)) <= width
    names = [line.split()[0] for line in everything.splitlines()[1:-1]]
    assert [line.split()[0] for line in lines if line[:2] == "  " and line[2] != " "] == names


# Runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(say: Say, runs: Path) -> Any:
    return say(*RUN, "--intervention", "none,reset,redo", "--seed", "0..1", "--runs-dir", runs, "--quiet")


def test_run_compares_interventions_over_seeds(finished: Any, say: Say, runs: Path) -> None:
    assert finished.status == 0, finished.err
    assert finished.err == ""
    results = [json.loads(path.read_text()) for path in runs.glob("*/result.json")]
    assert sorted((r["intervention"], r["seed"]) for r in results) == [
        (name, seed) for name in ("none", "redo", "reset") for seed in (0, 1)
    ]
    headers = [line for line in finished.out.splitlines() if line.startswith("accuracy % after task")]
    assert len(headers) == 1
    rows = finished.out[finished.out.index(headers[0]) :].splitlines()[2:5]
    finals = {r["intervention"]: 0.0 for r in results}
    for r in results:
        finals[r["intervention"]] += r["summary"]["final_accuracy"]
    shown = [row.split()[0] for row in rows]
    assert set(shown) == {"none", "reset", "redo"} and shown == sorted(shown, key=lambda name: -finals[name])
    for row in rows:
        pair = [100 * r["summary"]["final_accuracy"] for r in results if r["intervention"] == row.split()[0]]
        mean = sum(pair) / 2
        half_width = 12.7062 * abs(pair[0] - pair[1]) / 2  # Student's t with one degree of freedom, 95 %
        assert f"{mean:.1f} ± {half_width:.1f}" in row

    board = say("leaderboard", "--runs-dir", runs)
    assert board.status == 0 and board.out.startswith("cl-digits")
    lines = board.out.splitlines()
    order = [line.split()[0] for line in lines if line.split() and line.split()[0] in ("none", "reset", "redo")]
    assert len(order) == 3 and set(order) == set(shown)

    markdown = say("leaderboard", "--runs-dir", runs, "--format", "markdown")
    table = [line for line in markdown.out.splitlines() if line.startswith("|")]
    assert len(table) == 5 and len({line.count("|") for line in table}) == 1
    assert set(table[1]) <= set("|:- ")


def test_repeating_a_command_changes_nothing(finished: Any, say: Say, runs: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in runs.glob("cl-digits_*/**/*")}
    again = say(*RUN, "--intervention", "none,reset,redo", "--seed", "0,1", "--runs-dir", runs)
    assert again.status == 0 and again.err.count("is already complete") == 6
    assert {path: path.stat().st_mtime_ns for path in runs.glob("cl-digits_*/**/*")} == before
    assert again.out == finished.out


def test_resume_reports_a_complete_run(finished: Any, say: Say, runs: Path) -> None:
    name = next(runs.glob("cl-digits_*")).name
    done = say("resume", name, "--runs-dir", runs)
    assert done.status == 0 and "is already complete" in done.out + done.err
    message = error_line(say("resume", name[:-1] + "x", "--runs-dir", runs), 2)
    assert f"did you mean '{name}'?" in message


def test_progress_goes_to_stderr_and_tables_to_stdout(say: Say, runs: Path) -> None:
    done = say(*RUN, "--runs-dir", runs)
    assert done.status == 0
    assert "task 3/3" in done.err and "task 3/3" not in done.out
    assert "accuracy % after task" in done.out and "accuracy % after task" not in done.err


def test_options_apply_to_the_interventions_that_have_them(say: Say, runs: Path) -> None:
    options = ["--intervention.quantile", "0.25", "--intervention.keep=0.5", "--runs-dir", runs, "--quiet"]
    done = say(*RUN, "--intervention", "none,low-gradient-quantile,shrink-perturb", *options)
    assert done.status == 0, done.err
    found = {r["intervention"]: r for r in (json.loads(p.read_text()) for p in runs.glob("*/result.json"))}
    assert found["none"]["changed"]["intervention"] == {}
    assert found["low-gradient-quantile"]["changed"]["intervention"] == {"quantile": 0.25}
    assert found["shrink-perturb"]["changed"]["intervention"] == {"keep": 0.5}


def test_flags_take_precedence_over_a_spec_file(say: Say, runs: Path, tmp_path: Path) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text(
        '[env]\nname = "cl-digits"\nepochs = 2\ntrain_size = 40\nstop_after = 2\n'
        '[agent]\nname = "mlp"\nwidth = 8\nbatch_size = 16\n'
        '[intervention]\nname = ["none", "redo"]\n[run]\nseed = [3, 4]\ndevice = "cpu"\n'
    )
    flags = ["--agent.batch-size", "32", "--seed", "5", "--runs-dir", runs, "--quiet"]
    done = say("run", "--spec", spec, *flags)
    assert done.status == 0, done.err
    found = [json.loads(path.read_text()) for path in runs.glob("*/result.json")]
    assert sorted((r["intervention"], r["seed"]) for r in found) == [("none", 5), ("redo", 5)]
    assert {r["options"]["agent"]["batch_size"] for r in found} == {32}
    assert {r["options"]["env"]["train_size"] for r in found} == {40}


def test_a_stored_spec_reproduces_the_run(say: Say, runs: Path, tmp_path: Path) -> None:
    assert say(*RUN, "--runs-dir", runs, "--quiet").status == 0
    (folder,) = runs.glob("cl-digits_*")
    again = say("run", "--spec", folder / "spec.toml", "--runs-dir", tmp_path / "again", "--quiet")
    assert again.status == 0, again.err
    assert [path.name for path in (tmp_path / "again").glob("*_*")] == [folder.name]


@pytest.mark.parametrize("position", ["before", "after", "between"])
def test_the_env_may_be_anywhere_among_the_options(say: Say, runs: Path, position: str) -> None:
    options = ["--agent", "mlp", *TINY, "--runs-dir", runs, "--quiet"]
    arguments = {"before": ["cl-digits", *options], "after": [*options, "cl-digits"]}
    arguments["between"] = ["--agent.lr", "0.01", "cl-digits", *options]
    done = say("run", *arguments[position])
    assert done.status == 0, done.err
    assert len(list(runs.glob("cl-digits_mlp_none_*/result.json"))) == 1


# Errors -----------------------------------------------------------------------------------------------------------

INVALID = {
    "no command": ([], "command"),
    "command": (["rum"], "did you mean 'run'?"),
    "subject of a list": (["list", "envz"], "KIND: unknown 'envz'; did you mean 'envs'?"),
    "format": (["leaderboard", "--format", "jsn"], "--format: unknown 'jsn'; did you mean 'json'?"),
    "action": (["runs", "lst"], "unknown 'lst'; did you mean 'list'?"),
    "size of a sweep": (["sweep", "fig2", "--size", "papr"], "did you mean 'paper'?"),
    "shell": (["completion", "bsh"], "did you mean 'bash'?"),
    "verb": (["leaderboard", "ad", "x.json"], "did you mean 'add'?"),
    "flag of a command without components": (["leaderboard", "--wdie"], "did you mean '--wide'?"),
    "zero threads": ([*RUN, "--threads", "0"], "--threads: '0' is not an integer from 1 to 1,024"),
    "digits of another alphabet": ([*RUN, "--threads", "²"], "--threads: '²' is not an integer from 1"),
    "zero samples": (["diagnose", "timm:resnet18", "--samples", "0"], "--samples: '0' is not an integer from 2"),
    "zero pixels": (["diagnose", "timm:resnet18", "--image-size", "0"], "--image-size: '0' is not an integer from 1"),
    "suffix of a leaderboard": (["leaderboard", "--out", "x.foo"], "unknown suffix '.foo'; use .txt, .html, .htm, .md"),
    "no kind": (["plot"], "plot needs a kind, as in: plastibench plot curves (kinds: timeline"),
    "kind after the file": (["plot", "x.png", "curves"], "the kind comes first: plastibench plot KIND [OUT]"),
    "two files": (["plot", "curves", "x.png", "--metric", "loss", "y.png"], "2 output files: x.png, y.png; name one"),
    "gym without id": (["run", "gym", "--agent", "dqn-mlp"], "env gym needs --env.id, for example CartPole-v1"),
    "timm without model": (
        ["run", "cl-digits", "--agent", "timm"],
        "agent timm needs --agent.model, for example resnet18",
    ),
    "several": (
        ["run", "gymm", "--agent.width", "0", "--intervention", "rrn,redo", "--evry", "1", "--seed", "x"],
        "unknown argument '--evry'; did you mean '--every'? (plastibench run --help); also: run needs --agent, for "
        "example --agent mlp (plastibench list agents shows all); also: unknown env 'gymm'; did you mean 'gym'? (all "
        "names: plastibench list envs; to load your own: --plugin); also: unknown intervention 'rrn'; did you mean "
        "'rnr'? (all names: plastibench list interventions; to load your own: --plugin); also: --seed x: expected",
    ),
    "several options": (
        [*RUN, "--agent.lrr", "1", "--agent.width", "0", "--env.epochs", "0", "--representative", "0"],
        "; also: agent mlp: width is 0; it must be between 1 and 65536; also: agent mlp has no option 'lrr'; did you",
    ),
    "needs of apply": (
        ["apply", "timm:resnet18"],
        "apply needs --intervention, for example --intervention fire; also:",
    ),
    "no env": (["run", "--agent", "mlp"], "run needs an env"),
    "part of an option": (["run", "cl-digits", "--agent", "mlp", "--epochs", "3"], "did you mean '--env.epochs'?"),
    "modules": (
        [*RUN, "--intervention", "rnr", "--intervention.modules", "headd"],
        "'headd'",
    ),
    "refit": ([*RUN, "--intervention", "rnr", "--intervention.refit", "("], "'(' is not a regular expression"),
    "out": (["survey", "warm-digits", "--out", "nosuch/x.md"], "the folder nosuch does not exist"),
    "rounds": (["bench", "train", "--rounds", "1"], "--rounds: '1' is not an integer from 2 to 1,000,000"),
    "plugin file": ([*RUN, "--plugin", "nosuch.py"], "--plugin nosuch.py: no such file"),
    "rl only": ([*RUN, "--offline-updates", "3"], "--offline-updates"),
    "patches": (
        ["run", "cl-digits", "--agent", "timm", "--agent.model", "vit_tiny_patch16_224"],
        "vit_tiny_patch16_224",
    ),
    "untested": (
        ["run", "incremental-digits", "--agent", "mlp", "--env.train-size", "1796"],
        "--env.train-size",
    ),
    "no agent": (["run", "cl-digits"], "run needs --agent"),
    "env": (["run", "cl-digit", "--agent", "mlp"], "'cl-digit'; did you mean 'cl-digits'?"),
    "agent": (["run", "cl-digits", "--agent", "mpl"], "'mpl'; did you mean 'mlp'?"),
    "intervention": ([*RUN, "--intervention", "none,rrn"], "'rrn'; did you mean 'rnr'?"),
    "empty intervention": ([*RUN, "--intervention", ""], "intervention"),
    "list of nothing": ([*RUN, "--intervention", ","], "',' contains no names"),
    "empty agent": (["run", "cl-digits", "--agent", ""], "agent"),
    "option": ([*RUN, "--agent.lrr", "1"], "'lrr'; did you mean 'lr'?"),
    "option of none listed": (
        [*RUN, "--intervention", "none,redo", "--intervention.quantil", "1"],
        "none of none, redo has an option 'quantil'",
    ),
    "type": ([*RUN, "--agent.lr", "fast"], "lr is 'fast'"),
    "integer": ([*RUN, "--env.epochs", "1.5"], "epochs is '1.5'"),
    "range": ([*RUN, "--env.noise", "0.5,2"], "noise is 2.0"),
    "choice": ([*RUN, "--env.augment", "crop"], "augment is 'crop'"),
    "negative": ([*RUN, "--agent.lr", "-1"], "lr is -1.0"),
    "no value": ([*RUN, "--agent.lr"], "--agent.lr needs a value"),
    "no value before a flag": ([*RUN, "--agent.lr", "--seed", "1"], "--agent.lr needs a value"),
    "no value of a flag": ([*RUN, "--seed"], "--seed"),
    "flag": ([*RUN, "--sede", "1"], "unknown argument '--sede'; did you mean '--seed'?"),
    "group of flags": ([*RUN, "--agents.lr", "1"], "unknown argument '--agents.lr'"),
    "word too many": ([*RUN, "rnr"], "unknown argument 'rnr'"),
    "flag of another command": (["leaderboard", "--seed", "1"], "unknown argument '--seed'"),
    "seed": ([*RUN, "--seed", "x"], "--seed x"),
    "seeds backwards": ([*RUN, "--seed", "4..0"], "--seed 4..0"),
    "negative seed": ([*RUN, "--seed=-1"], "--seed -1"),
    "empty seed": ([*RUN, "--seed", ""], "--seed"),
    "every": ([*RUN, "--every", "often"], "every is 'often'"),
    "representative": ([*RUN, "--representative", "0"], "representative is 0"),
    "threads": ([*RUN, "--threads", "-1"], "--threads"),
    "jobs": ([*RUN, "--jobs", "0"], "argument --jobs: '0' is not an integer from 1 to 1,024, or auto"),
    "jobs of a sweep": (
        ["sweep", "fig2", "--jobs", "0"],
        "argument --jobs: '0' is not an integer from 1 to 1,024, or auto",
    ),
    "threads of a diagnosis": (["diagnose", "resnet18", "--threads", "-1"], "--threads"),
    "device": ([*RUN, "--device", "gpu"], "device 'gpu'"),
    "device without data": ([*RUN, "--device", "meta"], "device 'meta'"),
    "spec file": (["run", "--spec", "nowhere.toml"], "nowhere.toml: No such file"),
    "spec folder": (["run", "--spec", "."], "Is a directory"),
    "dataset": ([*RUN, "--env.dataset", "digist"], "'digist'"),
    "train size": ([*RUN[:4], "--env.train-size", "9999", "--device", "cpu"], "9999"),
    "patch size": (
        ["run", "cl-digits", "--agent", "vit-nano", "--agent.patch-size", "3", "--device", "cpu"],
        "patch-size 3",
    ),
    "timm model": (
        ["run", "cl-digits", "--agent", "timm", "--agent.model", "resnet81", "--device", "cpu"],
        "'resnet81'; did you mean 'resnet18'?",
    ),
    "image size": (
        ["run", "cl-digits", "--agent", "timm", "--agent.model", "test_convnext", "--device", "cpu"],
        "[1, 8, 8]",
    ),
    "heads": (["run", "cl-digits", "--agent", "vit-nano", "--agent.heads", "7"], "heads 7"),
    "plugin": ([*RUN, "--plugin", "nowhere.py"], "--plugin nowhere.py: no such file"),
    "resume nothing": (["resume", "nothing"], "no run 'nothing' in "),
    "resume without id": (["resume"], "ID"),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_input_is_reported_in_one_line(say: Say, runs: Path, tmp_path: Path, case: str) -> None:
    arguments, message = INVALID[case]
    folder = ["--runs-dir", runs] if arguments and arguments[0] in ("run", "resume", "leaderboard") else []
    error = error_line(say(*arguments[:1], *folder, *arguments[1:]), 2)
    assert message in error
    assert not runs.exists() or not list(runs.iterdir())
    assert list(tmp_path.iterdir()) in ([], [runs])


INVALID_SPECS = {
    "not TOML": ("[env", "is not valid TOML"),
    "binary": ("\0\x01", "spec.toml"),
    "table": ("[envs]\nname='cl-digits'", "[envs]; did you mean 'env'?"),
    "no name": ("[agent]\nlr=1", "[agent] has no name"),
    "name": ("[env]\nname=3\n[agent]\nname='mlp'", "name"),
    "names": ("[env]\nname='cl-digits'\n[agent]\nname='mlp'\n[intervention]\nname=[1]", "name"),
    "type": (
        "[env]\nname='cl-digits'\nepochs='many'\n[agent]\nname='mlp'",
        "epochs is 'many'",
    ),
    "infinite": ("[env]\nname='cl-digits'\nepochs=inf\n[agent]\nname='mlp'", "epochs is inf"),
    "no tasks": ("[env]\nname='cl-digits'\nnoise=[]\n[agent]\nname='mlp'", "noise"),
    "no seeds": ("[env]\nname='cl-digits'\n[agent]\nname='mlp'\n[run]\nseed=[]", "seed"),
    "seed": ("[env]\nname='cl-digits'\n[agent]\nname='mlp'\n[run]\nseed=1.5", "seed"),
    "run option": (
        "[env]\nname='cl-digits'\n[agent]\nname='mlp'\n[run]\nsede=1",
        "'sede'; did you mean 'seed'?",
    ),
    "run table": ("[env]\nname='cl-digits'\n[agent]\nname='mlp'\n[run]\nenv='x'", "'env'"),
    "flat": ("env='cl-digits'", "[env]"),
}


@pytest.mark.parametrize("case", INVALID_SPECS)
def test_an_invalid_spec_file_is_reported_in_one_line(say: Say, runs: Path, tmp_path: Path, case: str) -> None:
    text, message = INVALID_SPECS[case]
    path = tmp_path / "spec.toml"
    path.write_text(text)
    assert message in error_line(say("run", "--spec", path, "--runs-dir", runs, "--device", "cpu"), 2)
    assert not runs.exists() or not list(runs.iterdir())


def test_a_failed_download_is_reported_in_one_line(
    say: Say, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    def offline(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", offline)
    monkeypatch.setattr(socket, "getaddrinfo", offline)
    command = ["run", "cl-cifar100", "--agent", "vit-tiny", "--runs-dir", runs, "--data-dir", tmp_path / "data"]
    error = error_line(say(*command, "--device", "cpu"), 2)
    assert "cifar100" in error and "download failed" in error and "cl-digits" in error
    assert not runs.exists()


@pytest.mark.parametrize("below", ["", "deeper"])
def test_an_unusable_runs_dir_is_reported_in_one_line(say: Say, tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("in the way")
    error = error_line(say(*RUN, "--quiet", "--runs-dir", tmp_path / "file" / below), 2)
    assert str(tmp_path / "file") in error and "--runs-dir" in error
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_diverging_run_is_reported_in_one_line_with_status_1(say: Say, runs: Path) -> None:
    wild = ["--agent.lr", "1e30", "--agent.clip", "0", "--runs-dir", runs, "--quiet"]
    assert "not finite in task 1 after update 1" in error_line(say(*RUN, *wild), 1)
    assert not list(runs.glob("*/result.json"))


def test_a_damaged_checkpoint_is_reported_in_one_line(say: Say, runs: Path) -> None:
    assert say(*RUN, "--runs-dir", runs, "--quiet").status == 0
    (folder,) = runs.glob("cl-digits_*")
    (folder / "result.json").unlink()
    (folder / "checkpoint.pt").write_bytes(b"half a checkp")
    assert "checkpoint.pt cannot be read" in error_line(say(*RUN, "--runs-dir", runs, "--quiet"), 2)


@pytest.mark.parametrize("agent", ["mlp", "vit-nano"])
def test_resume_several_runs(tiny: Any, say: Say, runs: Path, agent: str) -> None:
    """Networks that can be stacked run together, and others one after the other; both as each of them alone."""
    options = {} if agent == "mlp" else {"dropout": 0.2, "dim": 16, "depth": 1}
    specs = [tiny(env="relabel-digits", agent=agent, agent_options=options, seed=seed) for seed in range(2)]
    prepare(specs, runs)
    done = say("resume", *(spec.id for spec in specs), "--runs-dir", runs, "--threads", "1")
    assert done.status == 0 and "none" in done.out
    for spec in specs:
        assert json.loads((runs / spec.id / "result.json").read_text())["origin"].get("stacked", 1) == (
            2 if agent == "mlp" else 1
        )
        go(spec, runs / "alone")
        assert_same_run(runs / spec.id, runs / "alone" / spec.id)


def test_resume_refuses_a_renamed_folder(say: Say, runs: Path) -> None:
    assert say(*RUN, "--runs-dir", runs).status == 0
    (folder,) = (path.parent for path in runs.glob("*/result.json"))
    folder.rename(runs / "renamed")
    error = error_line(say("resume", "renamed", "--runs-dir", runs), 2)
    assert f"belongs to run {folder.name}" in error
    assert not folder.exists()


def test_a_stop_request_while_a_run_finishes_prevents_the_next_run(
    say: Say, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = write_result

    def stopped(*arguments: Any) -> None:
        write(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(opened_run, "write_result", stopped)
    said = say(*RUN, "--seed", "0..2", "--jobs", "1", "--runs-dir", runs)
    assert said.status == 130 and "stopped before cl-digits_mlp_none_s1" in said.err
    assert len(list(runs.glob("*/result.json"))) == 1
    monkeypatch.setattr(opened_run, "write_result", write)
    assert say(*RUN, "--seed", "0..2", "--runs-dir", runs).status == 0
    assert len(list(runs.glob("*/result.json"))) == 3


def test_batchnorm_with_a_last_batch_of_one_image_is_reported(say: Say, runs: Path) -> None:
    sizes = ["--env.train-size", 17, "--agent.batch-size", 16, "--env.epochs", 1, "--env.stop-after", 1]
    said = say("run", "relabel-digits", "--agent", "resnet18", *sizes, "--device", "cpu", "--runs-dir", runs, "--quiet")
    assert "last batch of an epoch has only one image" in error_line(said, 1)


def test_leaderboard_without_runs_is_reported_in_one_line(say: Say, runs: Path) -> None:
    assert "run an experiment first" in error_line(say("leaderboard", "--runs-dir", runs), 2)
    runs.mkdir()
    assert "no finished run in" in error_line(say("leaderboard", "--runs-dir", runs), 2)


def test_leaderboard_skips_and_names_a_damaged_result(say: Say, runs: Path) -> None:
    assert say(*RUN, "--runs-dir", runs, "--quiet").status == 0
    (runs / "bad").mkdir()
    (runs / "bad" / "result.json").write_text("{")
    done = say("leaderboard", "--runs-dir", runs)
    assert done.status == 0 and "none" in done.out
    assert "skipped: " in done.err and str(runs / "bad" / "result.json") in done.err and done.err.count("\n") == 1


def test_seeds_are_lists_and_ranges_without_duplicates() -> None:
    from plastibench.config.spec import seeds_of

    assert seeds_of("0..3") == [0, 1, 2, 3]
    assert seeds_of("4,1,4,0..1") == [4, 1, 0]
    assert seeds_of(" 2 , 5..5 ") == [2, 5]
    assert seeds_of([7, 8]) == [7, 8] and seeds_of(3) == [3]


def test_a_damaged_spec_is_reported_with_its_path(say: Say, runs: Path) -> None:
    (runs / "a").mkdir(parents=True)
    (runs / "a" / "spec.toml").write_text("= =")
    for command in (["resume", "a", "--runs-dir", runs], ["diagnose", runs / "a"]):
        assert f"{runs / 'a' / 'spec.toml'} is not valid TOML" in error_line(say(*command), 2)
