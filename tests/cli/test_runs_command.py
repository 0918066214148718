"""``plastibench runs``: list, tag, delete, archive and restore runs; their states and progress."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from plastibench.config.spec import RunSpec
from plastibench.results.files import load_results
from plastibench.sweeps.run_folders import age, find_runs
from tests.leaderboard.made import result, written

Say = Callable[..., Any]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two methods with two seeds each, an interrupted run, a failed run, a prepared run, and a reference result."""
    options = {"intervention_options": {"quantile": 0.25}, "every": 7}
    found = [result("none", seed) for seed in (0, 1)] + [result("rnr", seed, **options) for seed in (0, 1)]
    folder = written(tmp_path / "runs", found)
    written(folder / "reference", [result("fire")])
    (folder / "reference" / "REFERENCE").write_text("")
    for name, files in {
        "reset": {"metrics.csv": "update,task,epoch,phase,metric,value\n0,0,0,end,a,1\n9,1,1,training,a,1\n"},
        "redo": {"metrics.csv": "", "failure.txt": "Traceback\nplastibench: the loss became nan\n"},
        "l2": {},
    }.items():
        made = spec(name)
        (folder / made.id).mkdir()
        for file, text in {"spec.toml": made.to_toml(), **files}.items():
            (folder / made.id / file).write_text(text)
    return folder


def spec(name: str) -> RunSpec:
    options = {"epochs": 2, "stop_after": 4}
    return RunSpec.make("cl-digits", "mlp", name, env_options=options, seed=3, device="cpu", every=5)


@pytest.fixture
def runs_say(say: Say, runs: Path) -> Say:
    return lambda action, *words: say("runs", action, *words, "--runs-dir", runs)


@contextmanager
def running(folder: Path) -> Iterator[None]:
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def listed(text: str) -> list[list[str]]:
    """Cells of the rows, which are at least two spaces apart."""
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()[2:]]


def test_list_shows_what_runs_are(runs_say: Say, runs: Path) -> None:
    done = runs_say("list")
    assert done.status == 0
    rows = {(row[1], row[2]): row for row in listed(done.out)}
    assert set(rows) == {
        *((name, seed) for name in ("none", "rnr quantile=0.25 every=7") for seed in "01"),
        *((f"{name} every=5", "3") for name in ("reset", "redo", "l2")),
    }
    first = rows["rnr quantile=0.25 every=7", "1"]
    (folder,) = runs.glob("*rnr_s1_*")
    assert first[0] == folder.name.rpartition("_")[2][:8] and first[3:] == [
        *("complete", "0 min", "cl-digits epochs=2 noise=0.5,0.1,0.0", "–", "mlp")
    ]
    assert rows["reset every=5", "3"][3] == "interrupted 38 %"  # one task and half of the second of four
    assert rows["redo every=5", "3"][3] == "failed" and rows["l2 every=5", "3"][3] == "waiting"


@pytest.mark.parametrize(
    ("words", "methods"),
    [
        (["*_rnr_*"], {"rnr"}),
        (["--intervention", "rnr", "--seed", "1"], {"rnr"}),
        (["--intervention", "r*"], {"rnr", "reset", "redo"}),
        (["--state", "failed"], {"redo"}),
        (["--state", "complete", "--intervention", "*every=7"], {"rnr"}),
        (["--env", "rl-*"], set()),
        (["--agent", "mlp", "*_s3_*"], {"reset", "redo", "l2"}),
    ],
)
def test_patterns_and_filters(runs_say: Say, words: list[str], methods: set[str]) -> None:
    done = runs_say("list", *words)
    assert done.status == 0
    assert {row[1].split()[0] for row in listed(done.out)} == methods
    assert methods or done.out == "no run matches\n"


def test_options_are_listed_when_a_plugin_is_missing(say: Say, tmp_path: Path) -> None:
    """Those of the plugin as they are stored, because its defaults are unknown."""
    made = spec("reset")
    folder = tmp_path / made.id
    folder.mkdir()
    (folder / "spec.toml").write_text(made.to_toml().replace('name = "reset"', 'name = "mine"\nfactor = 0.5'))
    (row,) = listed(say("runs", "list", "--wide", "--runs-dir", tmp_path).out)
    method, env = row[1], row[5]
    assert method.startswith("mine factor=0.5") and method.endswith(" every=5")
    assert "epochs=2" in env.split()


def test_versions_of_an_edited_plugin_are_told_apart(say: Say, tmp_path: Path) -> None:
    codes = {seed: f"{name}82674ebb0d" for seed, name in enumerate(("92d6b3", "5f1c7c", "92d6b3"))}
    for seed, code in codes.items():
        made = dataclasses.replace(spec("reset"), code={"intervention": code})  # an unfinished run, too
        if seed < 2:
            done = result("reset", seed, every=5).model_copy(update={"code": {"intervention": code}})
            written(tmp_path, [done])
            continue
        (tmp_path / made.id).mkdir()
        (tmp_path / made.id / "spec.toml").write_text(made.to_toml())
    written(tmp_path, [result("none")])

    def names(*words: str) -> list[str]:
        return [row[1] for row in listed(say("runs", "list", "--wide", *words, "--runs-dir", tmp_path).out)]

    first, second = "reset every=5 code=92d6b3", "reset every=5 code=5f1c7c"
    assert sorted(names()) == ["none", second, first, first]
    assert names("--intervention", first) == [first, first] and names("--intervention", second) == [second]
    assert len(names("--intervention", "reset every=5")) == len(names("--intervention", "*every=5")) == 3
    assert f"{first}  3 " in say("runs", "status", "--wide", "--runs-dir", tmp_path).out


def test_a_list_says_which_columns_do_not_fit(runs_say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    narrow, wide = runs_say("list").out, runs_say("list", "--wide").out
    hidden = len(wide.splitlines()[0].split()) - len(narrow.splitlines()[0].split())
    assert hidden > 1 and f"\n\n{hidden} more columns with --wide, in a wider terminal or a pipe\n" in narrow
    assert "--wide" not in wide


@pytest.mark.parametrize("width", [80, 120])
def test_lists_fit_the_terminal(runs_say: Say, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for action in ("list", "status"):
        assert max(map(len, runs_say(action).out.splitlines())) <= width
    assert "noise=0.5,0.1,0.0" in runs_say("list", "--wide").out


def test_status_shows_progress_and_reasons(runs_say: Say, runs: Path) -> None:
    done = runs_say("status")
    assert done.out.startswith("1 interrupted, 1 failed, 1 waiting, 4 complete\n")
    (row,) = (row for row in listed(done.out) if "interrupted" in row)
    assert row[2:4] == ["38 %", "task 2/4"]
    assert "failed: the loss became nan" in done.out and "plastibench resume" in done.out
    (folder,) = runs.glob("*reset*")
    with running(folder):
        assert runs_say("status").out.startswith("1 running, 1 failed")
    with open(folder / "metrics.csv", "a") as file:
        file.write("70,3,2,end,")  # a line that is being written
    assert "38 %" in runs_say("status").out


def test_an_unknown_env_or_a_damaged_spec_does_not_hide_a_run(runs_say: Say, runs: Path) -> None:
    (folder,) = runs.glob("*reset*")
    text = (folder / "spec.toml").read_text()
    (folder / "spec.toml").write_text(text.replace('"cl-digits"', '"my-env"'))
    assert "my-env" in runs_say("list").out
    (folder / "spec.toml").write_text("[")
    done = runs_say("list", folder.name)
    assert done.status == 0 and listed(done.out)[0][:4] == [folder.name.rpartition("_")[2][:8], "?", "?", "interrupted"]


def test_tags_are_added_removed_and_filtered(runs_say: Say, say: Say, runs: Path) -> None:
    digest = next(runs.glob("*rnr_s0_*")).name.rpartition("_")[2][:8]
    assert runs_say("tag", "trial", digest, "*none*").out == "added tag trial: 3 runs\n"
    assert runs_say("tag", "v2", digest).status == 0
    assert {(row[0] == digest, row[6]) for row in listed(runs_say("list", "--tag", "trial").out)} == {
        *((True, "trial v2"), (False, "trial"))
    }
    assert sorted(run.intervention for run in load_results(runs) if "trial" in run.tags) == ["none", "none", "rnr"]
    assert runs_say("tag", "trial", "--tag", "trial", "--remove").out == "removed tag trial: 3 runs\n"
    assert [row[6] for row in listed(runs_say("list", "--tag", "*").out)] == ["v2"]
    assert not list(runs.glob("*none*/tags.txt"))


def test_rm_asks_and_refuses_running_runs(runs_say: Say, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(runs.rglob("*"))
    assert "add --yes to confirm" in runs_say("rm", "*rnr*").err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    answers = iter(["n", "y"])
    monkeypatch.setattr("builtins.input", lambda question: next(answers))
    assert runs_say("rm", "*rnr*").status == 1
    (folder,) = runs.glob("*none_s1*")
    with running(folder):
        done = runs_say("rm", "*none*", "--yes")
        assert done.status == 2 and f"{folder.name} is running and cannot be removed" in done.err
    (folder / "lock").unlink()
    assert sorted(runs.rglob("*")) == before
    assert runs_say("rm", "*rnr*").status == 0
    assert not list(runs.glob("*rnr*")) and len(list(runs.glob("*none*"))) == 2
    assert runs_say("rm", "--state", "failed", "--yes").status == 0 and not list(runs.glob("*redo*"))


def test_the_board_follows_when_runs_are_removed(runs_say: Say, runs: Path) -> None:
    assert runs_say("rm", "*_s3_*", "--yes").status == 0
    lines = {path.name for path in (runs / "leaderboard").iterdir() if path.is_dir()}
    assert any(name.startswith("rnr") for name in lines)
    assert runs_say("rm", "*rnr*", "--yes").status == 0
    assert {path.name for path in (runs / "leaderboard").iterdir() if path.is_dir()} == {"none"}
    assert runs_say("rm", "*", "--yes").status == 0
    assert not (runs / "leaderboard").exists() and (runs / "reference").exists()


def test_an_archived_run_is_out_of_sight_and_comes_back(runs_say: Say, runs: Path, tmp_path: Path) -> None:
    deep = runs / "study"
    deep.mkdir()
    (folder,) = runs.glob("*rnr_s0*")
    folder = folder.rename(deep / folder.name)
    (folder / "lock").touch()
    (folder / "final.pt").write_bytes(b"weights")
    (folder / "tags.txt").write_text("v2\n")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}
    assert runs_say("archive", folder.name.rpartition("_")[2][:8]).out == f"{runs}/archive/{folder.name}.tar.gz\n"
    assert not folder.exists() and len(load_results(runs)) == 3 and not list(runs.glob("archive/**/events*"))
    assert runs_say("restore").out == f"{folder.name}\n"
    assert "no archived run 'rnx'" in runs_say("restore", "rnx").err
    assert runs_say("restore", folder.name.rpartition("_")[2][:8]).out == f"{folder}\n"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not list(runs.glob("archive/*")) and len(load_results(runs)) == 4


@pytest.mark.parametrize("case", ["damaged", "another run", "exists", "outside"])
def test_an_archive_that_cannot_be_restored_changes_nothing(
    runs_say: Say, runs: Path, tmp_path: Path, case: str
) -> None:
    (runs / "archive").mkdir()
    (folder,) = runs.glob("*rnr_s0*")
    path = runs / "archive" / f"{folder.name}.tar.gz"
    if case == "damaged":
        path.write_bytes(b"\x1f\x8bnothing")
    else:
        names = {"another run": "other", "exists": folder.name, "outside": f"../../{folder.name}"}
        with tarfile.open(path, "w:gz") as packed:
            packed.add(folder, names[case])
    before = sorted(tmp_path.rglob("*"))
    done = runs_say("restore", folder.name)
    assert done.status == 2 and done.err.startswith("plastibench: cannot restore") and done.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lst"], "ACTION: unknown 'lst'; did you mean 'list'?"),
        (["rm"], "runs rm needs runs"),
        (["archive"], "runs archive needs runs"),
        (["tag"], "runs tag needs a tag"),
        (["tag", "trial"], "runs tag needs runs"),
        (["tag", "a/b", "*"], "tag 'a/b'"),
        (["rm", "zzzzzz", "--yes"], "no run 'zzzzzz'"),
        (["rm", "zz*", "--yes"], "no run matches"),
        (["list", "--state", "runing"], "did you mean 'running'"),
    ],
)
def test_invalid_requests_are_reported_in_one_line(runs_say: Say, words: list[str], message: str) -> None:
    done = runs_say(*words)
    assert done.status == 2 and message in done.err and done.err.count("\n") == 1


def test_the_archive_of_the_same_run_is_not_replaced(runs_say: Say, runs: Path) -> None:
    (folder,) = runs.glob("*rnr_s0*")
    (runs / "archive").mkdir()
    (runs / "archive" / f"{folder.name}.tar.gz").write_bytes(b"older")
    done = runs_say("archive", folder.name)
    assert done.status == 2 and "already exists" in done.err
    assert folder.exists() and (runs / "archive" / f"{folder.name}.tar.gz").read_bytes() == b"older"


def test_runs_are_sorted_by_age(runs: Path) -> None:
    for number, path in enumerate(sorted(runs.glob("*/spec.toml"))):
        for file in path.parent.iterdir():
            os.utime(file, (number, number))
    found = [run.id for run in find_runs(runs) if run.state != "complete"]
    assert found == sorted(found)
    now = time.time()
    assert [age(now - seconds) for seconds in (5, 600, 3 * 3600, 49 * 3600)] == ["0 min", "10 min", "3 h", "2 d"]


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_run_tags_its_runs(say: Say, tmp_path: Path, jobs: int) -> None:
    tiny = ["--env.tasks", "2", "--env.epochs", "1", "--env.train-size", "40", "--agent.width", "8", "--quiet"]
    words = ["run", "relabel-digits", "--agent", "mlp", *tiny, "--seed", "0,1", "--jobs", jobs, "--runs-dir", tmp_path]
    assert say(*words, "--tag", "trial", "--tag", "first").status == 0
    assert [sorted(run.tags) for run in load_results(tmp_path)] == [["first", "trial"]] * 2
    done = say(*words, "--tag", "a b")
    assert done.status == 2 and "tag 'a b'" in done.err
