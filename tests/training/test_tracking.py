"""What reaches a tracker, also from runs that are interrupted; and what a failing tracker does to a run: nothing."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plastibench.config.errors import RunError, UserError
from plastibench.config.short_names import own_name
from plastibench.config.spec import RunSpec
from plastibench.results import metrics_csv
from plastibench.results.files import read_result
from plastibench.training import runner, train
from plastibench.training.opened_run import Interrupted
from plastibench.training.trackers import tracker, tracking
from plastibench.training.trackers.tracker import LoggedStep, RunInfo, parse_names
from tests.support.runs import Stopped, assert_same_run, crash_at, flip, go

Tiny = Callable[..., RunSpec]
Point = tuple[int, str, float]  # update, chart, value


class Server:
    """A tracker in memory that can fail in any of its methods."""

    def __init__(self) -> None:
        self.runs: list[StoredRun] = []
        self.failing = ""  # name of a method
        self.error: type[BaseException] = OSError

    def start(self, name: str, info: RunInfo, known_id: str | None) -> StoredRun:
        self.fail("start")
        if known_id is None:
            self.runs.append(StoredRun(self, info, str(len(self.runs))))
        found = self.runs[int(known_id or -1)]
        found.sessions += 1
        return found

    def fail(self, method: str) -> None:
        if method == self.failing:
            raise self.error("no\nconnection")


class StoredRun:
    place = "in memory"

    def __init__(self, server: Server, info: RunInfo, run_id: str) -> None:
        self.server, self.info, self.id = server, info, run_id
        self.config: Any = None
        self.steps: list[LoggedStep] = []
        self.tables: list[dict[str, float]] = []
        self.sessions, self.status = 0, ""

    def log_config(self, config: Any) -> None:
        self.server.fail("log_config")
        self.config = config

    def log_scalars(self, steps: list[LoggedStep]) -> None:
        self.server.fail("log_scalars")
        self.steps += steps

    def log_table(self, name: str, update: int, columns: Any, rows: Any) -> None:
        self.server.fail("log_table")
        self.tables.append(dict(rows))

    def close(self, status: str) -> None:
        self.server.fail("close")
        self.status = status

    def points(self) -> list[Point]:
        """Everything but positions and the final values."""
        return [
            (step.update, name, value)
            for step in self.steps
            for name, value in step.values.items()
            if name not in ("task", "epoch") and not name.startswith(("result/", "cost/"))
        ]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    """A tracker named ``memory``."""
    made = Server()
    monkeypatch.setattr(tracking, "start", made.start)
    monkeypatch.setattr(runner, "parse_names", tuple)
    return made


def recorded(folder: Path) -> list[Point]:
    """The points in ``metrics.csv``."""
    rows = metrics_csv.read(folder / metrics_csv.NAME)
    return [(row.update, metrics_csv.chart_name(row.metric, row.phase), row.value) for row in rows]


def test_a_tracker_receives_metrics_config_and_result(server: Server, tiny: Tiny, tmp_path: Path) -> None:
    spec = tiny("rnr", {"quantile": 0.25}, seed=2)
    result = go(spec, tmp_path, log=["memory"])
    (stored,) = server.runs
    assert stored.points() == recorded(tmp_path / spec.id)
    assert [step.number for step in stored.steps] == sorted({step.number for step in stored.steps})
    assert len(stored.steps) < len(stored.points()) / 5, "values of one step belong together"
    assert stored.steps[0].values["epoch"] == stored.steps[0].values["task"] == 0
    assert stored.steps[-2].values["epoch"] == stored.steps[-2].values["task"] == 2
    assert stored.config["agent"] == {"name": "vit-nano", **dict(spec.agent[1])}
    assert stored.config["plastibench"] == {"id": spec.id, "group": spec.group()}
    (table,) = stored.tables
    assert {name: table[f"result/{name}"] for name in result["summary"]} == result["summary"]
    assert {name: table[f"cost/{name}"] for name in result["cost"]} == result["cost"]
    assert stored.steps[-1].values == table
    assert stored.status == "finished"


def test_names_groups_and_tags(server: Server, tiny: Tiny, tmp_path: Path) -> None:
    for seed in (0, 1):
        go(tiny("rnr", {"quantile": 0.25}, seed=seed, agent="mlp", every=3), tmp_path, log=["memory"])
    info = [stored.info for stored in server.runs]
    assert [each.name.rpartition("·")[2] for each in info] == ["s0", "s1"]
    assert info[0].name.startswith("rnr·") and "q=0.25" in info[0].name and "every=3" in info[0].name
    assert "ridge" not in info[0].name, "options with default values are left out"
    assert info[0].group == info[1].group == f"cl-digits·mlp·{info[0].name.removesuffix('·s0')}"
    assert info[1].tags == {"env": "cl-digits", "agent": "mlp", "intervention": "rnr", "seed": "1"}


def test_a_run_with_default_options_has_a_short_name() -> None:
    assert own_name(RunSpec.make("relabel-digits", "mlp", "none", device="cpu")) == "none"


@pytest.mark.sample(2)
@pytest.mark.parametrize("checkpoint_seconds", [0.0, 1e9], ids=["checkpoints", "no checkpoint"])
@pytest.mark.parametrize("updates", [3, 4, 5])
def test_a_resumed_run_sends_every_point_once(
    server: Server,
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    updates: int,
    checkpoint_seconds: float,
) -> None:
    spec = tiny("rnr", agent_options={"batch_size": 8})
    crash_at(monkeypatch, updates)
    with pytest.raises(Stopped):
        go(spec, tmp_path, checkpoint_seconds=checkpoint_seconds, log=["memory"])
    go(spec, tmp_path, log=["memory"])
    *abandoned, stored = server.runs
    assert not abandoned or checkpoint_seconds, "a run without a checkpoint starts over"
    assert without_times(stored.points()) == without_times(recorded(tmp_path / spec.id))


def test_a_run_that_goes_back_to_an_older_checkpoint_sends_no_point_twice(
    server: Server, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny("rnr", agent_options={"batch_size": 8})
    crash_at(monkeypatch, 6)
    with pytest.raises(Stopped):
        go(spec, tmp_path, checkpoint_seconds=0.0, log=["memory"])
    flip(tmp_path / spec.id / "checkpoint.pt", 30_000)
    sent = len(server.runs[0].points())
    go(spec, tmp_path, checkpoint_seconds=1e9, log=["memory"])  # sends at the end only
    (stored,) = server.runs
    assert 0 < sent < len(stored.points())
    assert without_times(stored.points()) == without_times(recorded(tmp_path / spec.id))


def test_a_process_killed_while_it_sends_leaves_no_point_twice(
    server: Server, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, log = tiny("rnr"), StoredRun.log_scalars

    def killed(self: StoredRun, steps: list[LoggedStep]) -> None:
        log(self, steps)
        monkeypatch.setattr(StoredRun, "log_scalars", log)
        raise Stopped

    monkeypatch.setattr(StoredRun, "log_scalars", killed)
    with pytest.raises(Stopped):
        go(spec, tmp_path, checkpoint_seconds=0.0, log=["memory"])
    go(spec, tmp_path, log=["memory"])
    (stored,) = server.runs
    assert without_times(stored.points()) == without_times(recorded(tmp_path / spec.id))


@pytest.mark.sample(2)
@pytest.mark.parametrize("method", ["start", "log_config", "log_scalars", "log_table", "close"])
def test_a_failing_tracker_changes_nothing_and_catches_up_later(
    server: Server, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    spec = tiny("rnr")
    go(spec, tmp_path / "without")
    server.failing = method
    go(spec, tmp_path / "with", checkpoint_seconds=0.0, log=["memory"])
    assert_same_run(tmp_path / "without" / spec.id, tmp_path / "with" / spec.id)
    (line,) = capsys.readouterr().err.splitlines()
    assert "memory tracking stopped" in line and "(OSError: no connection)" in line
    server.failing = ""
    for _ in range(2):
        go(spec, tmp_path / "with", log=["memory"])
    (stored,) = server.runs
    assert stored.points() == recorded(tmp_path / "with" / spec.id)
    assert stored.status == "finished"
    assert stored.sessions == 2 - (method == "start"), "the last call has nothing to send"


def test_one_tracker_fails_and_another_goes_on(server: Server, tiny: Tiny, tmp_path: Path, monkeypatch: Any) -> None:
    other = Server()
    other.failing = "log_scalars"
    servers = {"good": server, "bad": other}
    monkeypatch.setattr(tracking, "start", lambda name, *rest: servers[name].start(name, *rest))
    spec = tiny("rnr")
    go(spec, tmp_path, checkpoint_seconds=0.0, log=["bad", "good"])
    assert server.runs[0].points() == recorded(tmp_path / spec.id)
    assert not other.runs[0].steps


def test_a_tracker_added_to_a_complete_run_receives_everything(server: Server, tiny: Tiny, tmp_path: Path) -> None:
    spec = tiny("rnr")
    go(spec, tmp_path)
    go(spec, tmp_path, log=["memory"])
    (stored,) = server.runs
    assert stored.points() == recorded(tmp_path / spec.id)
    assert stored.tables[0]["result/final_accuracy"] == read_result(tmp_path / spec.id / "result.json").final


def test_a_tracker_that_fails_for_one_complete_run_is_not_tried_for_the_next(
    server: Server, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    specs = [tiny("none", seed=seed) for seed in (0, 1)]
    results = [runner.run(spec, runs_dir=tmp_path, quiet=True, threads=1) for spec in specs]
    server.failing, trackers = "log_scalars", ("memory",)
    for spec, result in zip(specs, results, strict=True):
        trackers = tracking.send_stored(trackers, spec, result, quiet=True)
    assert trackers == () and len(server.runs) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    server.failing = ""
    for spec, result in zip(specs, results, strict=True):
        assert tracking.send_stored(("memory",), spec, result, quiet=True) == ("memory",)
        assert server.runs[spec.run.seed].points() == recorded(tmp_path / spec.id)


def test_a_failed_run_is_sent_up_to_its_failure(
    server: Server, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny("rnr")
    failed = pytest.MonkeyPatch()
    failed.setattr("plastibench.training.supervised.SupervisedTrainer._end_task", _fail)
    with failed.context(), pytest.raises(RunError):
        go(spec, tmp_path, log=["memory"])
    failed.undo()
    assert server.runs[0].status == "failed"
    assert server.runs[0].points() == recorded(tmp_path / spec.id)


def _fail(self: Any) -> None:
    raise RunError("diverged")


def test_a_run_that_is_asked_to_stop_continues_in_the_same_run_of_the_tracker(
    server: Server, tiny: Tiny, tmp_path: Path
) -> None:
    spec = tiny("rnr")
    with pytest.raises(Interrupted):
        go(spec, tmp_path, log=["memory"], stop=[15])
    assert server.runs[0].status == "stopped"
    assert server.runs[0].points(), "what the checkpoint covers has been sent"
    go(spec, tmp_path, log=["memory"])
    (stored,) = server.runs
    assert (stored.status, stored.sessions) == ("finished", 2)
    assert without_times(stored.points()) == without_times(recorded(tmp_path / spec.id))


def test_force_starts_another_run_in_the_tracker(server: Server, tiny: Tiny, tmp_path: Path) -> None:
    for _ in range(2):
        go(tiny("none"), tmp_path, log=["memory"], force=True)
    assert len(server.runs) == 2
    assert server.runs[0].points()[0] == server.runs[1].points()[0]


@pytest.mark.parametrize("content", ["", "[memory]\nid = 3\n", "memory = 5\n", "[memory", "x = 1\n# sha256: 00\n"])
def test_a_damaged_state_file_starts_another_run_in_the_tracker(
    server: Server, tiny: Tiny, tmp_path: Path, content: str
) -> None:
    spec = tiny("none")
    go(spec, tmp_path, log=["memory"])
    (tmp_path / spec.id / tracking.STATE_FILE).write_text(content)
    go(spec, tmp_path, log=["memory"])
    assert len(server.runs) == 2
    assert server.runs[1].points() == recorded(tmp_path / spec.id)


def test_without_a_tracker_nothing_is_written(tiny: Tiny, tmp_path: Path) -> None:
    spec = tiny("none")
    go(spec, tmp_path, log="tensorboard")
    assert not (tmp_path / spec.id / tracking.STATE_FILE).exists()


def without_times(points: list[Point]) -> list[Point]:
    return [point for point in points if "seconds" not in point[1]]


# Names ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tracker seems to be installed."""
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: importlib.machinery.ModuleSpec(name, None, origin="x")
    )


def test_names_are_parsed(installed: None) -> None:
    assert parse_names("wandb,tensorboard,mlflow,wandb") == parse_names(["wandb", "mlflow"]) == ("wandb", "mlflow")
    assert parse_names("tensorboard") == parse_names(()) == ()


def test_an_unknown_tracker_ends_the_command(say: Callable[..., Any], tmp_path: Path) -> None:
    found = say("run", "relabel-digits", "--agent", "mlp", "--log", "wandbb", "--runs-dir", tmp_path / "runs")
    assert found.status == 2
    assert found.err == (
        "plastibench: argument --log: unknown tracker 'wandbb'; did you mean 'wandb'? "
        "(tensorboard, wandb, mlflow, trackio)\n"
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("origin", ["not installed", "a folder of this name"])
@pytest.mark.parametrize("name", tracker.TRACKERS)
@pytest.mark.parametrize("command", ["run relabel-digits --agent mlp", "resume x", "sweep fig4", "survey"])
def test_a_missing_library_ends_the_command_before_any_run(
    say: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: str, name: str, command: str
) -> None:
    namespace = importlib.machinery.ModuleSpec(name, None, is_package=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None if origin == "not installed" else namespace)
    found = say(*command.split(), "--log", name, "--runs-dir", tmp_path / "runs")
    assert found.status == 2
    assert found.err == (
        f"plastibench: argument --log: the tracker {name} is not installed; pip install 'plastibench[{name}]'\n"
    )
    assert not (tmp_path / "runs").exists()


def test_a_missing_library_is_reported_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"wandb is not installed; pip install 'plastibench\[wandb\]'"):
        train.train("relabel-digits", "mlp", runs_dir=tmp_path / "runs", log="wandb")
    assert not (tmp_path / "runs").exists()
