from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from plastibench import plotting
from plastibench.results.files import write_result
from tests.plotting.made import results_of


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    for result in [*results_of("none", "reset", "rnr"), *results_of("rnr", changed={"tau": 0.5})]:
        (folder / result.id).mkdir(parents=True)
        write_result(folder / result.id, result)
    return folder


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


def test_the_default_name_is_the_kind(say: Any, tmp_path: Path, runs: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert say("plot", "pareto", "--runs-dir", runs).status == 0
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / "pareto.svg").is_file()


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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["curve"], "'curve'; did you mean 'curves'?"),
        (["curves", "f.jpg"], "'f.jpg'; use a name that ends in .png, .svg or .pdf"),
        (["curves", "nowhere/f.png"], "nowhere/f.png: no folder nowhere"),
        (["curves", "--intervention", "rn"], "no finished run of intervention 'rn' in"),
        (["curves", "--intervention", "rn"], "none, reset, rnr, rnr tau=0.5"),
        (["curves", "--agent", "mlp"], "no finished run of agent 'mlp' in"),
        (["curves", "--metric", "sranks"], "'sranks'; did you mean 'srank'?"),
        (["pareto", "--metric", "srank"], "pareto has no option 'metric'"),
        (["curves", "--data-dir", "data"], "curves has no option 'data-dir'"),
        (["fig2"], "plastibench sweep fig2"),
        (["curves", "--runs-dir", "elsewhere"], "no folder elsewhere"),
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
