from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plastibench.config import registry
from plastibench.results.files import write_result
from plastibench.training import runner

Say = Callable[..., Any]
TINY = ["--env.epochs", "2", "--env.train-size", "40", "--env.stop-after", "3"]
TINY += ["--agent.width", "8", "--device", "cpu", "--threads", "1"]
RUN = ["run", "cl-digits", "--agent", "mlp", *TINY]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where results go; whatever forgets to say so must not write into the repository."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results"


def one_line(done: Any, status: int) -> str:
    assert done.status == status, (done.out, done.err)
    assert done.err.startswith("plastibench: ") and done.err.count("\n") == 1, done.err
    return done.err


# Help and lists ---------------------------------------------------------------------------------------------------


def test_help_shows_commands_and_examples(say: Say) -> None:
    done = say("--help")
    assert done.status == 0 and done.err == ""
    for word in ("run", "resume", "list", "info", "leaderboard", "examples:"):
        assert word in done.out


@pytest.mark.parametrize("command", ["resume", "list", "info", "leaderboard", "run"])
def test_every_command_has_help(say: Say, command: str) -> None:
    done = say(command, "--help")
    assert done.status == 0 and done.out.startswith("usage: plastibench") and done.err == ""


def test_version(say: Say) -> None:
    assert re.fullmatch(r"plastibench \d+\.\d+\.\d+\n", say("--version").out)


@pytest.mark.parametrize("kind", ["envs", "agents", "interventions"])
def test_list_shows_every_name_of_a_kind_and_its_summary(say: Say, kind: str) -> None:
    done = say("list", kind)
    assert done.status == 0
    listed = dict(re.findall(r"^  (\S+) +(.*)$", done.out, re.M))
    summaries = {name: entry.summary for name, entry in getattr(registry, kind).all().items()}
    assert {name: listed[name][-len(summary) :] for name, summary in summaries.items()} == summaries
    assert set(listed) - set(summaries) <= {"name"}  # the header of interventions


def test_list_shows_metrics_with_definitions_and_without_a_kind_everything(say: Say) -> None:
    from plastibench.metrics import METRICS

    assert all(f"  {name} " in say("list", "metrics").out for name in METRICS)
    done = say("list")
    assert [line for line in done.out.splitlines() if line and not line.startswith(" ")] == [
        "envs:",
        "agents:",
        "interventions:",
        "metrics:",
    ]


def test_help_of_a_run_shows_the_options_of_what_is_named_with_the_defaults_of_that_name(say: Say) -> None:
    done = say("run", "cl-digits", "--agent", "vit-nano", "--intervention", "redo,rnr", "--help")
    assert done.status == 0
    for text in (
        "--env.train-size",
        "(default: 200, at least 1)",
        "--agent.dim int",
        "(default: 64, at least 1)",
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


# Runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(say: Say, runs: Path) -> Any:
    return say(*RUN, "--intervention", "none,reset,redo", "--seed", "0..1", "--runs-dir", runs, "--quiet")


def test_several_interventions_and_seeds_end_in_one_table_and_a_leaderboard(
    finished: Any, say: Say, runs: Path
) -> None:
    assert finished.status == 0, finished.err
    assert finished.err == ""
    results = [json.loads(path.read_text()) for path in runs.glob("*/result.json")]
    assert sorted((r["intervention"], r["seed"]) for r in results) == [
        (name, seed) for name in ("none", "redo", "reset") for seed in (0, 1)
    ]
    headers = [line for line in finished.out.splitlines() if line.startswith("accuracy % after task")]
    assert len(headers) == 1
    rows = finished.out[finished.out.index(headers[0]) :].splitlines()[2:5]
    assert [row.split()[0] for row in rows] == ["none", "reset", "redo"]
    for row in rows:
        finals = [100 * r["summary"]["final-accuracy"] for r in results if r["intervention"] == row.split()[0]]
        mean = sum(finals) / 2
        deviation = abs(finals[0] - finals[1]) / 2**0.5
        assert f"{mean:.1f} ± {deviation:.1f}" in row

    board = say("leaderboard", "--runs-dir", runs)
    assert board.status == 0 and board.out.startswith("cl-digits")
    lines = board.out.splitlines()
    order = [line.split()[0] for line in lines if line.split() and line.split()[0] in ("none", "reset", "redo")]
    means = {name: sum(r["summary"]["final-accuracy"] for r in results if r["intervention"] == name) for name in order}
    assert len(order) == 3 and order == sorted(order, key=lambda name: -means[name])

    markdown = say("leaderboard", "--runs-dir", runs, "--format", "markdown")
    table = [line for line in markdown.out.splitlines() if line.startswith("|")]
    assert len(table) == 5 and len({line.count("|") for line in table}) == 1
    assert set(table[1]) <= set("|:- ")


def test_the_same_command_again_does_nothing_twice(finished: Any, say: Say, runs: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in runs.glob("cl-digits_*/**/*")}
    again = say(*RUN, "--intervention", "none,reset,redo", "--seed", "0,1", "--runs-dir", runs)
    assert again.status == 0 and again.err.count("is complete already") == 6
    assert {path: path.stat().st_mtime_ns for path in runs.glob("cl-digits_*/**/*")} == before
    assert again.out == finished.out


def test_resume_of_a_complete_run_says_so(finished: Any, say: Say, runs: Path) -> None:
    name = next(runs.glob("cl-digits_*")).name
    done = say("resume", name, "--runs-dir", runs)
    assert done.status == 0 and "is complete already" in done.out + done.err
    message = one_line(say("resume", name[:-1] + "x", "--runs-dir", runs), 2)
    assert f"did you mean '{name}'?" in message


def test_progress_is_on_stderr_and_tables_are_on_stdout(say: Say, runs: Path) -> None:
    done = say(*RUN, "--runs-dir", runs)
    assert done.status == 0
    assert "task 3/3" in done.err and "task 3/3" not in done.out
    assert "accuracy % after task" in done.out and "accuracy % after task" not in done.err


def test_each_intervention_takes_the_options_that_it_has(say: Say, runs: Path) -> None:
    options = ["--intervention.quantile", "0.25", "--intervention.keep=0.5", "--runs-dir", runs, "--quiet"]
    done = say(*RUN, "--intervention", "none,low-gradient-quantile,shrink-perturb", *options)
    assert done.status == 0, done.err
    found = {r["intervention"]: r for r in (json.loads(p.read_text()) for p in runs.glob("*/result.json"))}
    assert found["none"]["changed"]["intervention"] == {}
    assert found["low-gradient-quantile"]["changed"]["intervention"] == {"quantile": 0.25}
    assert found["shrink-perturb"]["changed"]["intervention"] == {"keep": 0.5}


def test_a_spec_file_is_run_and_flags_win_wherever_they_stand(say: Say, runs: Path, tmp_path: Path) -> None:
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


def test_the_spec_that_a_run_leaves_makes_the_same_run(say: Say, runs: Path, tmp_path: Path) -> None:
    assert say(*RUN, "--runs-dir", runs, "--quiet").status == 0
    (folder,) = runs.glob("cl-digits_*")
    again = say("run", "--spec", folder / "spec.toml", "--runs-dir", tmp_path / "again", "--quiet")
    assert again.status == 0, again.err
    assert [path.name for path in (tmp_path / "again").glob("*_*")] == [folder.name]


@pytest.mark.parametrize("place", ["before", "after", "between"])
def test_the_env_may_stand_before_after_or_between_the_options(say: Say, runs: Path, place: str) -> None:
    options = ["--agent", "mlp", *TINY, "--runs-dir", runs, "--quiet"]
    arguments = {"before": ["cl-digits", *options], "after": [*options, "cl-digits"]}
    arguments["between"] = ["--agent.lr", "0.01", "cl-digits", *options]
    done = say("run", *arguments[place])
    assert done.status == 0, done.err
    assert len(list(runs.glob("cl-digits_mlp_none_*/result.json"))) == 1


# Mistakes ---------------------------------------------------------------------------------------------------------

MISTAKES = {
    "no command": ([], "command"),
    "command": (["rum"], "did you mean 'run'?"),
    "no env": (["run", "--agent", "mlp"], "run needs an env"),
    "part of an option": (["run", "cl-digits", "--agent", "mlp", "--epochs", "3"], "did you mean '--env.epochs'?"),
    "modules": (
        [*RUN, "--intervention", "rnr", "--intervention.modules", "headd"],
        "modules 'headd' selects nothing in this network (it has 1, 3, 5, …)",
    ),
    "refit": ([*RUN, "--intervention", "rnr", "--intervention.refit", "("], "refit: '(' is not a regular expression"),
    "out": (["survey", "warm-digits", "--out", "nosuch/x.md"], "nosuch/x.md: no folder nosuch"),
    "rounds": (["bench", "--rounds", "1"], "--rounds must be at least 2"),
    "plugin file": ([*RUN, "--plugin", "nosuch.py"], "--plugin nosuch.py: no such file"),
    "rl only": ([*RUN, "--offline-updates", "3"], "--offline-updates is for agents that act (rl-*); cl-digits is a"),
    "patches": (
        ["run", "cl-digits", "--agent", "timm", "--agent.model", "vit_tiny_patch16_224"],
        "vit_tiny_patch16_224 cuts images into patches of 16x16, which do not cover one of 8x8",
    ),
    "untested": (
        ["run", "incremental-digits", "--agent", "mlp", "--env.train-size", "1796"],
        "classes have no test image; lower --env.train-size",
    ),
    "no agent": (["run", "cl-digits"], "run needs --agent"),
    "env": (["run", "cl-digit", "--agent", "mlp"], "no env 'cl-digit'; did you mean 'cl-digits'?"),
    "agent": (["run", "cl-digits", "--agent", "mpl"], "no agent 'mpl'; did you mean 'mlp'?"),
    "intervention": ([*RUN, "--intervention", "none,rrn"], "no intervention 'rrn'; did you mean 'rnr'?"),
    "empty intervention": ([*RUN, "--intervention", ""], "intervention"),
    "list of nothing": ([*RUN, "--intervention", ","], "',' contains no name"),
    "empty agent": (["run", "cl-digits", "--agent", ""], "agent"),
    "option": ([*RUN, "--agent.lrr", "1"], "agent mlp has no option 'lrr'; did you mean 'lr'?"),
    "option of none listed": (
        [*RUN, "--intervention", "none,redo", "--intervention.quantil", "1"],
        "none of none, redo has an option 'quantil'",
    ),
    "type": ([*RUN, "--agent.lr", "fast"], "agent mlp: lr is 'fast'; expected a number"),
    "whole number": ([*RUN, "--env.epochs", "1.5"], "epochs is '1.5'; expected a whole number"),
    "range": ([*RUN, "--env.noise", "0.5,2"], "noise is 2.0; it must be between 0 and 1"),
    "choice": ([*RUN, "--env.augment", "crop"], "augment is 'crop'"),
    "negative": ([*RUN, "--agent.lr", "-1"], "lr is -1.0; it must be at least 0"),
    "no value": ([*RUN, "--agent.lr"], "--agent.lr needs a value"),
    "no value before a flag": ([*RUN, "--agent.lr", "--seed", "1"], "--agent.lr needs a value"),
    "no value of a flag": ([*RUN, "--seed"], "--seed"),
    "flag": ([*RUN, "--sede", "1"], "unknown argument '--sede'; did you mean '--seed'?"),
    "group of flags": ([*RUN, "--agents.lr", "1"], "unknown argument '--agents.lr'"),
    "word too many": ([*RUN, "rnr"], "unknown argument 'rnr'"),
    "flag of another command": (["leaderboard", "--seed", "1"], "unknown argument '--seed'"),
    "seed": ([*RUN, "--seed", "x"], "--seed x: expected a whole number, a list 0,1,2 or a range 0..4"),
    "seeds backwards": ([*RUN, "--seed", "4..0"], "--seed 4..0"),
    "negative seed": ([*RUN, "--seed=-1"], "--seed -1"),
    "empty seed": ([*RUN, "--seed", ""], "--seed"),
    "every": ([*RUN, "--every", "often"], "every is 'often'; expected a whole number"),
    "representative": ([*RUN, "--representative", "0"], "representative is 0; it must be at least 1"),
    "threads": ([*RUN, "--threads", "-1"], "--threads"),
    "jobs": ([*RUN, "--jobs", "0"], "argument --jobs: '0' must be at least 1"),
    "jobs of a sweep": (["sweep", "fig2", "--jobs", "0"], "argument --jobs: '0' must be at least 1"),
    "threads of a diagnosis": (["diagnose", "resnet18", "--threads", "-1"], "--threads"),
    "device": ([*RUN, "--device", "gpu"], "device 'gpu' is not available here"),
    "device without data": ([*RUN, "--device", "meta"], "device 'meta'"),
    "spec file": (["run", "--spec", "nowhere.toml"], "cannot read nowhere.toml: No such file"),
    "spec folder": (["run", "--spec", "."], "cannot read .: Is a directory"),
    "data set": ([*RUN, "--env.dataset", "digist"], "no data set 'digist'"),
    "train size": ([*RUN[:4], "--env.train-size", "9999", "--device", "cpu"], "train_size 9999 is outside 1 to 1796"),
    "patch size": (
        ["run", "cl-digits", "--agent", "vit-nano", "--agent.patch-size", "3", "--device", "cpu"],
        "patch-size 3 does not divide images of 8x8 pixels",
    ),
    "timm model": (
        ["run", "cl-digits", "--agent", "timm", "--agent.model", "resnet81", "--device", "cpu"],
        "no model 'resnet81'; did you mean 'resnet18'?",
    ),
    "image size": (
        ["run", "cl-digits", "--agent", "timm", "--agent.model", "test_convnext", "--device", "cpu"],
        "does not take images of [1, 8, 8]",
    ),
    "heads": (["run", "cl-digits", "--agent", "vit-nano", "--agent.heads", "7"], "dim 64 is not a multiple of heads 7"),
    "plugin": ([*RUN, "--plugin", "nowhere.py"], "--plugin nowhere.py: no such file"),
    "kind": (["list", "colours"], "invalid choice: 'colours'"),
    "format": (["leaderboard", "--format", "pdf"], "invalid choice: 'pdf'"),
    "resume nothing": (["resume", "nothing"], "no run 'nothing' in "),
    "resume without id": (["resume"], "ID"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_status_2_and_nothing_is_created(
    say: Say, runs: Path, tmp_path: Path, mistake: str
) -> None:
    arguments, message = MISTAKES[mistake]
    places = ["--runs-dir", runs] if arguments and arguments[0] in ("run", "resume", "leaderboard") else []
    error = one_line(say(*arguments[:1], *places, *arguments[1:]), 2)
    assert message in error
    assert not runs.exists() or not list(runs.iterdir())
    assert list(tmp_path.iterdir()) in ([], [runs])


SPECS = {
    "not TOML": ("[env", "is not valid TOML"),
    "binary": ("\0\x01", "spec.toml"),
    "table": ("[envs]\nname='cl-digits'", "no table [envs]; did you mean 'env'?"),
    "no name": ("[agent]\nlr=1", "[agent] has no name"),
    "name": ("[env]\nname=3\n[agent]\nname='mlp'", "name"),
    "names": ("[env]\nname='cl-digits'\n[agent]\nname='mlp'\n[intervention]\nname=[1]", "name"),
    "type": (
        "[env]\nname='cl-digits'\nepochs='many'\n[agent]\nname='mlp'",
        "epochs is 'many'; expected a whole number",
    ),
    "infinite": ("[env]\nname='cl-digits'\nepochs=inf\n[agent]\nname='mlp'", "epochs is inf; expected a whole number"),
    "no tasks": ("[env]\nname='cl-digits'\nnoise=[]\n[agent]\nname='mlp'", "noise"),
    "no seeds": ("[env]\nname='cl-digits'\n[agent]\nname='mlp'\n[run]\nseed=[]", "seed"),
    "seed": ("[env]\nname='cl-digits'\n[agent]\nname='mlp'\n[run]\nseed=1.5", "seed"),
    "run option": (
        "[env]\nname='cl-digits'\n[agent]\nname='mlp'\n[run]\nsede=1",
        "no option 'sede'; did you mean 'seed'?",
    ),
    "run table": ("[env]\nname='cl-digits'\n[agent]\nname='mlp'\n[run]\nenv='x'", "[run] has no option 'env'"),
    "flat": ("env='cl-digits'", "env must be a table, as in [env]"),
}


@pytest.mark.parametrize("mistake", SPECS)
def test_a_mistake_in_a_spec_file_is_one_line_with_status_2(say: Say, runs: Path, tmp_path: Path, mistake: str) -> None:
    text, message = SPECS[mistake]
    path = tmp_path / "spec.toml"
    path.write_text(text)
    assert message in one_line(say("run", "--spec", path, "--runs-dir", runs, "--device", "cpu"), 2)
    assert not runs.exists() or not list(runs.iterdir())


def test_data_that_is_missing_and_cannot_be_downloaded_is_one_line(
    say: Say, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    def offline(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", offline)
    monkeypatch.setattr(socket, "getaddrinfo", offline)
    command = ["run", "cl-cifar100", "--agent", "vit-tiny", "--runs-dir", runs, "--data-dir", tmp_path / "data"]
    error = one_line(say(*command, "--device", "cpu"), 2)
    assert "cifar100 is not in" in error and "the download failed" in error and "cl-digits" in error
    assert not runs.exists()


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_place_that_cannot_be_written_is_one_line(say: Say, tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("in the way")
    error = one_line(say(*RUN, "--quiet", "--runs-dir", tmp_path / "file" / below), 2)
    assert str(tmp_path / "file") in error and "--runs-dir" in error
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_loss_that_is_not_finite_is_one_line_with_status_1(say: Say, runs: Path) -> None:
    wild = ["--agent.lr", "1e30", "--agent.clip", "0", "--runs-dir", runs, "--quiet"]
    assert "values that are not finite in task 1, after update 1" in one_line(say(*RUN, *wild), 1)
    assert not list(runs.glob("*/result.json"))


def test_a_damaged_checkpoint_is_one_line_with_status_2(say: Say, runs: Path) -> None:
    assert say(*RUN, "--runs-dir", runs, "--quiet").status == 0
    (folder,) = runs.glob("cl-digits_*")
    (folder / "result.json").unlink()
    (folder / "checkpoint.pt").write_bytes(b"half a checkp")
    assert "checkpoint.pt cannot be read" in one_line(say(*RUN, "--runs-dir", runs, "--quiet"), 2)


def test_a_run_whose_folder_was_renamed_is_not_begun_anew_elsewhere(say: Say, runs: Path) -> None:
    assert say(*RUN, "--runs-dir", runs).status == 0
    (folder,) = (path.parent for path in runs.glob("*/result.json"))
    folder.rename(runs / "renamed")
    error = one_line(say("resume", "renamed", "--runs-dir", runs), 2)
    assert f"describes the run {folder.name}" in error
    assert not folder.exists()


def test_a_stop_that_is_asked_for_while_a_run_is_finished_ends_the_list(
    say: Say, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = write_result

    def stopped(*arguments: Any) -> None:
        write(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(runner, "write_result", stopped)
    said = say(*RUN, "--seed", "0..2", "--runs-dir", runs)
    assert said.status == 130 and "stopped before cl-digits_mlp_none_s1" in said.err
    assert len(list(runs.glob("*/result.json"))) == 1
    monkeypatch.setattr(runner, "write_result", write)
    assert say(*RUN, "--seed", "0..2", "--runs-dir", runs).status == 0
    assert len(list(runs.glob("*/result.json"))) == 3


def test_a_last_batch_of_one_that_batchnorm_cannot_take_is_told(say: Say, runs: Path) -> None:
    sizes = ["--env.train-size", 17, "--agent.batch-size", 16, "--env.epochs", 1, "--env.stop-after", 1]
    said = say("run", "relabel-digits", "--agent", "resnet18", *sizes, "--device", "cpu", "--runs-dir", runs, "--quiet")
    assert "a last batch of one image" in one_line(said, 1)


def test_leaderboard_of_nothing_is_one_line(say: Say, runs: Path) -> None:
    assert "run something first" in one_line(say("leaderboard", "--runs-dir", runs), 2)
    runs.mkdir()
    assert "no finished run in" in one_line(say("leaderboard", "--runs-dir", runs), 2)


def test_leaderboard_names_a_damaged_result_and_shows_the_others(say: Say, runs: Path) -> None:
    assert say(*RUN, "--runs-dir", runs, "--quiet").status == 0
    (runs / "bad").mkdir()
    (runs / "bad" / "result.json").write_text("{")
    done = say("leaderboard", "--runs-dir", runs)
    assert done.status == 0 and "none" in done.out
    assert "left out" in done.err and str(runs / "bad" / "result.json") in done.err and done.err.count("\n") == 1


def test_seeds_are_lists_and_ranges_without_repeats() -> None:
    from plastibench.config.spec import seeds_of

    assert seeds_of("0..3") == [0, 1, 2, 3]
    assert seeds_of("4,1,4,0..1") == [4, 1, 0]
    assert seeds_of(" 2 , 5..5 ") == [2, 5]
    assert seeds_of([7, 8]) == [7, 8] and seeds_of(3) == [3]


def test_a_damaged_spec_of_a_run_is_named_with_its_folder(say: Say, runs: Path) -> None:
    (runs / "a").mkdir(parents=True)
    (runs / "a" / "spec.toml").write_text("= =")
    for command in (["resume", "a", "--runs-dir", runs], ["diagnose", runs / "a"]):
        assert f"{runs / 'a' / 'spec.toml'} is not valid TOML" in one_line(say(*command), 2)
