from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from plastibench import plotting
from plastibench.results.files import write_result
from tests.leaderboard.made import result, written
from tests.plotting.made import results_of, supervised_result


def images(folder: Path) -> dict[str, bytes]:
    """Title and content of the images that TensorBoard shows."""
    events = EventAccumulator(str(folder)).Reload()
    return {tag: events.Images(tag)[0].encoded_image_string for tag in events.Tags()["images"]}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    return written(folder, [*results_of("none", "reset", "rnr"), *results_of("rnr", changed={"tau": 0.5})])


@pytest.mark.parametrize(
    ("out", "names"),
    [
        ("a", {"a.png", "a.svg"}),
        ("a.png", {"a.png", "a.svg"}),
        ("a.svg", {"a.png", "a.svg"}),
        ("a.pdf", {"a.pdf"}),
        (".", {"curves.png", "curves.svg"}),
    ],
)
def test_formats_follow_from_the_output_name(say: Any, tmp_path: Path, runs: Path, out: str, names: set[str]) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    done = say("plot", "curves", folder / out, "--runs-dir", runs)
    assert done.status == 0, done.err
    assert {path.name for path in folder.iterdir()} == names
    assert set(done.out.split()) == {str(folder / name) for name in names}


@pytest.mark.parametrize(
    ("arguments", "name"), [(["pareto"], "pareto"), (["curves", "--metric", "srank"], "curves_srank")]
)
def test_plots_go_to_the_runs_by_default_and_into_tensorboard(
    say: Any, tmp_path: Path, runs: Path, monkeypatch: Any, arguments: list[str], name: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    done = say("plot", *arguments, "--runs-dir", runs)
    assert done.status == 0 and done.out.split() == [str(runs / "plots" / f"{name}.{kind}") for kind in ("png", "svg")]
    assert not list((tmp_path / "here").iterdir())
    assert images(runs / "plots") == {name: (runs / "plots" / f"{name}.png").read_bytes()}


def test_out_names_the_file_as_a_flag_too(say: Any, tmp_path: Path, runs: Path) -> None:
    assert say("plot", "curves", "--out", tmp_path / "a.pdf", "--runs-dir", runs).status == 0
    assert (tmp_path / "a.pdf").is_file() and not (runs / "plots").exists()
    last = say("plot", "curves", "--intervention", "none,reset", "--runs-dir", runs, tmp_path / "b.pdf")
    assert last.status == 0 and (tmp_path / "b.pdf").is_file(), last
    both = say("plot", "curves", "a", "--out", "b", "--runs-dir", runs)
    assert both.status == 2 and "name one" in both.err


def test_files_are_reproducible_and_svg_contains_text(tmp_path: Path) -> None:
    found = results_of("none", "reset")
    once, twice = (plotting.draw("curves", found) for _ in range(2))
    assert plotting.png(once, 80) == plotting.png(twice, 80) and plotting.svg(once) == plotting.svg(twice)
    text = plotting.svg(once).decode()
    assert ">reset</text>" in text and "95 % confidence" in text and "<dc:date>" not in text
    pdf = [plotting.save(figure, tmp_path / f"{n}.pdf")[0].read_bytes() for n, figure in enumerate((once, twice))]
    assert pdf[0] == pdf[1] and b"CreationDate" not in pdf[0]


def test_runs_are_selected_by_env_agent_and_intervention(say: Any, tmp_path: Path, runs: Path) -> None:
    def texts(*arguments: str) -> str:
        done = say("plot", "curves", tmp_path / "f", "--runs-dir", runs, *arguments)
        assert done.status == 0, done.err
        return (tmp_path / "f.svg").read_text(encoding="utf-8")

    chosen = texts("--intervention", "none,rnr tau=0.5", "--env", "cl-digits", "--agent", "vit-nano")
    assert ">rnr tau=0.5</text>" in chosen and ">none</text>" in chosen and ">reset</text>" not in chosen
    assert ">reset</text>" in texts()


@pytest.mark.sample(2)
@pytest.mark.parametrize("kind", ["curves", "overview", "pareto", "timeline", "heatmap"])
def test_versions_of_an_edited_plugin_are_told_apart(say: Any, tmp_path: Path, kind: str) -> None:
    runs = tmp_path / "runs"
    for code in ("92d6b382674ebb0d", "5f1c7c04aa657d3b"):
        ids = {"id": f"x_s0_{code}", "group": f"x_{code}"}
        folder = runs / ids["id"]
        folder.mkdir(parents=True)
        write_result(folder, supervised_result("shrink", code={"intervention": code}, **ids))
        row = "7,0,1.5,end,layers-classifier/fc/dormant-ratio,0.5\n"
        (folder / "metrics.csv").write_text(f"update,task,epoch,phase,metric,value\n{row}")
    done = say("plot", kind, tmp_path / "f", "--runs-dir", runs)
    assert done.status == 0, done.err
    text = (tmp_path / "f.svg").read_text(encoding="utf-8")
    assert ">shrink code=92d6b3</text>" in text and ">shrink code=5f1c7c</text>" in text
    one = say("plot", kind, tmp_path / "f", "--runs-dir", runs, "--intervention", "shrink code=92d6b3")
    assert one.status == 0, one.err
    text = (tmp_path / "f.svg").read_text(encoding="utf-8")
    assert "code=5f1c7c" not in text
    none = say("plot", kind, "--runs-dir", runs, "--intervention", "shrink code=000000")
    assert none.status == 2 and "choose from shrink code=5f1c7c, shrink code=92d6b3" in none.err


def test_titles_of_settings_select_their_runs(say: Any, tmp_path: Path) -> None:
    found = [result("none", env_options=options) for options in ({}, {"epochs": 5}, {"epochs": 20, "noise": (0.5,)})]
    runs = written(tmp_path / "runs", found)
    titles = re.findall(r"^cl-digits.*(?=, mlp$)", say("leaderboard", "--runs-dir", runs).out, re.MULTILINE)
    assert len(titles) == 3
    for title in titles:
        done = say("plot", "curves", tmp_path / "f", "--runs-dir", runs, "--env", title, "--agent", "mlp")
        assert done.status == 0, done.err
        (shown,) = re.findall(r">(cl-digits[^<]*)</text>", (tmp_path / "f.svg").read_text(encoding="utf-8"))
        epochs = re.search(r"epochs=\d+", title)
        assert epochs is None or epochs.group() in shown
    listed = [
        say("runs", "list", "--wide", "--runs-dir", runs, "--env", title).out.splitlines()[2:] for title in titles
    ]
    assert sorted(map(len, listed)) == [1, 1, 1] and len({rows[0] for rows in listed}) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["curve"], "'curve'; did you mean 'curves'?"),
        (["curves", "f.jpg"], "'f.jpg'; use a name that ends in .png, .svg or .pdf"),
        (["curves", "nowhere/f.png"], "cannot write nowhere/f.png: the folder nowhere does not exist"),
        (["curves", "--intervention", "rn"], "no finished run of intervention 'rn' in"),
        (["curves", "--intervention", "rn"], "none, reset, rnr, rnr tau=0.5"),
        (["curves", "--agent", "mlp"], "no finished run of agent 'mlp' in"),
        (["curves", "--metric", "sranks"], "'sranks'; did you mean 'srank'?"),
        (["pareto", "--metric", "srank"], "pareto has no option 'metric'"),
        (["curves", "--data-dir", "data"], "curves has no option 'data-dir'"),
        (["fig2"], "plastibench sweep fig2"),
        (["curves", "--runs-dir", "elsewhere"], "the folder elsewhere does not exist"),
    ],
)
def test_invalid_requests_are_reported_in_one_line(
    say: Any, tmp_path: Path, runs: Path, monkeypatch: Any, arguments: list[str], words: str
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    runs_dir = [] if "--runs-dir" in arguments else ["--runs-dir", runs]
    said = say("plot", *arguments, *runs_dir)
    assert said.status == 2 and words in said.err and said.err.count("\n") == 1
    assert not list(folder.iterdir())


def test_help_describes_every_kind(say: Any) -> None:
    text = " ".join(say("plot", "--help").out.split())
    for kind, (location, summary) in plotting.PLOTS.items():
        assert f"{kind} {summary}" in text
        module, _, name = location.partition(":")
        assert callable(getattr(importlib.import_module(f"plastibench.plotting.{module}"), name))


def test_figures_is_a_deprecated_alias(say: Any, tmp_path: Path, runs: Path) -> None:
    done = say("figures", "curves", tmp_path / "f", "--runs-dir", runs)
    assert done.status == 0 and (tmp_path / "f.svg").is_file()
    assert "'figures' is now 'plot'" in done.err and done.err.count("\n") == 1


def test_missing_matplotlib_names_the_extra(say: Any, runs: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = say("plot", "curves", runs / "f", "--runs-dir", runs)
    assert said.status == 2 and "pip install 'plastibench[figures]'" in said.err


def test_an_empty_selection_is_rejected(say: Any, tmp_path: Path, runs: Path) -> None:
    for part in ("env", "agent", "intervention"):
        done = say("plot", "curves", tmp_path / "x", f"--{part}", "", "--runs-dir", runs)
        assert done.status == 2 and f"--{part} is empty" in done.err and done.err.count("\n") == 1


def test_a_run_measured_twice_counts_as_one_seed(tmp_path: Path) -> None:
    found = results_of("none", "reset")
    again = found[-1].model_copy(update={"id": f"{found[-1].id}-measured"})
    text = plotting.svg(plotting.draw("curves", [*found, again])).decode()
    assert text == plotting.svg(plotting.draw("curves", found)).decode() and "Mean over" in text


TINY = ["relabel-digits", "--agent", "mlp", "--agent.width", "8", "--env.tasks", "2", "--env.epochs", "1"]
TINY += ["--env.train-size", "40", "--threads", "1", "--quiet", "--intervention", "none,reset"]


@pytest.mark.parametrize("jobs", [pytest.param(["--jobs", "1"]), pytest.param(["--jobs", "2"], marks=pytest.mark.slow)])
def test_run_ends_with_its_plot(say: Any, tmp_path: Path, jobs: list[str]) -> None:
    done = say("run", *TINY, *jobs, "--runs-dir", tmp_path)
    assert done.status == 0, done.err
    (path,) = (tmp_path / "plots").glob("*.png")
    assert str(path) in done.out and path.stem.startswith("relabel-digits-") and path.stem.endswith("_none+reset")
    assert images(tmp_path / "plots") == {path.stem: path.read_bytes()}
    again = say("run", *TINY, "--seed", "0..1", "--runs-dir", tmp_path)
    assert str(path) in again.out and list((tmp_path / "plots").glob("*.png")) == [path]  # with more seeds


def test_run_without_plot_or_matplotlib(say: Any, tmp_path: Path, monkeypatch: Any) -> None:
    done = say("run", *TINY, "--no-plot", "--runs-dir", tmp_path)
    assert done.status == 0 and not (tmp_path / "plots").exists() and "plot:" not in done.out
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "matplotlib" else find(name))
    done = say("run", *TINY, "--runs-dir", tmp_path)
    assert done.status == 0 and not (tmp_path / "plots").exists()
    reused, hint = done.err.splitlines()
    assert "already complete" in reused and "pip install 'plastibench[figures]'" in hint
