from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plastibench.cli.main import main
from plastibench.config.spec import PARTS, identity
from plastibench.results.result import Result
from tests.leaderboard.made import result, submitted, written


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    finals = {"none": 0.5, "reset": 0.7, "rnr": 0.6}
    found = [submitted(name, seed, final + 0.01 * seed) for name, final in finals.items() for seed in range(3)]
    return written(tmp_path / "runs", found)


def say(*words: Any) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["leaderboard", *map(str, words)])
    return int(exit_.value.code or 0)


def test_every_format_can_be_written_to_a_file(runs: Path, capsys) -> None:
    for form, beginning in (("table", "cl-digits"), ("markdown", "### "), ("csv", "scope,"), ("json", "[")):
        assert say("--runs-dir", runs, "--format", form) == 0
        text = capsys.readouterr().out
        assert text.startswith(beginning)
        path = runs.parent / f"out.{form}"
        assert say("--runs-dir", runs, "--format", form, "--out", path) == 0
        assert path.read_text() == text and capsys.readouterr().out.strip() == str(path)
    assert say("--runs-dir", runs, "--format", "html", "--out", runs.parent / "out.html") == 0
    assert (runs.parent / "out.html").read_text().startswith("<!doctype html>")


def test_sort_and_filter(runs: Path, capsys) -> None:
    assert say("--runs-dir", runs, "--format", "json", "--sort", "seeds", "--filter", "intervention=r*") == 0
    assert [row["intervention"] for row in json.loads(capsys.readouterr().out)] == ["reset", "rnr"]
    assert say("--runs-dir", runs, "--filter", "seeds>7") == 2
    assert "no row matches seeds>7" in capsys.readouterr().err
    assert say("--runs-dir", runs, "--sort", "fnal") == 2
    assert "did you mean 'final'?" in capsys.readouterr().err
    for more in (["--filter", "env=x"], ["--sort", "drop"], ["--format", "csv"], ["--out", runs.parent / "x.html"]):
        assert say("--runs-dir", runs, "--tensorboard", *more) == 2
        assert "drop --filter, --sort, --format and --out" in capsys.readouterr().err
    assert say("--runs-dir", runs, "--out", runs) == 2
    assert f"{runs} is a folder; name a file in it" in capsys.readouterr().err


def test_filter_accepts_a_name_with_commas(runs: Path, capsys) -> None:
    written(runs, [result("rnr", seed, 0.5, roles=("actor", "critic")) for seed in range(2)])
    assert say("--runs-dir", runs, "--format", "json", "--filter", "intervention=rnr roles=actor,critic") == 0
    assert [row["intervention"] for row in json.loads(capsys.readouterr().out)] == ["rnr roles=actor,critic"]


def test_submitted_results_join_the_leaderboard(runs: Path, tmp_path: Path, capsys) -> None:
    sent = tmp_path / "sent.json"
    sent.write_text(json.dumps(submitted("fire", 4, 0.9).to_dict()))
    assert say("add", sent, "--runs-dir", runs) == 0
    assert capsys.readouterr().out.endswith("result.json\n")
    assert say("--runs-dir", runs) == 0
    assert "not ranked, one seed: fire" in capsys.readouterr().out
    assert say("add", sent, "--runs-dir", runs) == 2
    assert "has already been added as" in capsys.readouterr().err
    for words in (["add"], ["ad", sent]):
        assert say(*words, "--runs-dir", runs) == 2
        assert "(expected: leaderboard add FILE)" in capsys.readouterr().err


def test_leaderboard_imports_neither_torch_nor_matplotlib(runs: Path) -> None:
    code = (
        f"import sys; from plastibench.cli.main import main\ntry: main(['leaderboard', '--runs-dir', {str(runs)!r}])\n"
    )
    code += "except SystemExit: pass\nassert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("count", [200, 10_000])
def test_many_results_are_read(count: int, tmp_path: Path) -> None:
    base = result("rnr", 0, 0.5).to_dict()
    metrics = {"task": 0, "phase": "end", "role": "classifier", "metrics": {"rank": 0.123456}}
    base["plasticity"] = [metrics] * 200  # as large as in real runs
    for number in range(count):
        group, seed = divmod(number, 5)
        made = {**base, "seed": seed, "run": {**base["run"], "seed": seed}}
        options = {"env": {**base["options"]["env"], "epochs": 1 + group % 20}, "agent": base["options"]["agent"]}
        made["options"] = {**options, "intervention": {**base["options"]["intervention"], "penalty": group + 1.0}}
        made["changed"] = {"env": {}, "agent": {}, "intervention": {"penalty": group + 1.0}}
        parts = [(made[part], made["options"][part]) for part in PARTS]
        made["id"], made["group"] = (identity(parts, {**made["run"], "seed": s}) for s in (seed, 0))
        written(tmp_path, [Result.from_dict(made)])
    command = [sys.executable, "-m", "plastibench", "leaderboard", "--runs-dir", str(tmp_path)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert text.count("rnr penalty=") >= count / 5


def test_malicious_names_are_harmless(runs: Path, tmp_path: Path, capsys) -> None:
    strange = ["$\\frac{$", "\x1b[31mred", "\ud800", "`<b>", "<script>alert(1)</script>|", "é"]
    found = []
    for number, text in enumerate(strange):
        for seed in range(2):
            made = result("reset", seed, 0.4)
            made.id, made.group = f"strange{number}_s{seed}", f"strange{number}"
            made.changed.intervention = made.options.intervention = {"x": text}
            made.origin.commit, made.origin.hardware.processor = None, f"a CPU {text}"
            found.append(made)
    written(runs, found)
    for form in ("table", "markdown", "csv", "json", "html"):
        assert say("--runs-dir", runs, "--format", form) == 0
        text = capsys.readouterr().out
        assert "\x1b" not in text
        if form in ("markdown", "html"):
            bare = re.sub(r"`[^`\n]*`", "", text)  # harmless in a code span
            assert "<script>alert" not in bare and "<b>" not in bare
        text.encode()
    assert say("--runs-dir", runs, "--tensorboard") == 0
    for kind in ("curves", "pareto", "overview"):
        with pytest.raises(SystemExit) as exit_:
            main(["plot", kind, str(tmp_path / kind), "--runs-dir", str(runs)])
        assert exit_.value.code == 0 and (tmp_path / f"{kind}.svg").is_file()
    assert "$\\frac{$" in (tmp_path / "curves.svg").read_text()  # literally, not as mathematics


@pytest.mark.parametrize(
    ("name", "beginning"),
    [("x.html", "<!doctype"), ("x.MD", "### "), ("x.csv", "scope,"), ("x.json", "["), ("x", "cl-")],
)
def test_the_suffix_of_the_file_sets_the_format(runs: Path, name: str, beginning: str) -> None:
    assert say("--runs-dir", runs, "--out", runs.parent / name) == 0
    assert (runs.parent / name).read_text().startswith(beginning)


def test_a_format_takes_precedence_over_the_suffix(runs: Path) -> None:
    assert say("--runs-dir", runs, "--out", runs.parent / "x.html", "--format", "csv") == 0
    assert (runs.parent / "x.html").read_text().startswith("scope,")


def test_the_table_fits_columns_and_wide_shows_all(runs: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    assert say("--runs-dir", runs) == 0
    piped = capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "80")
    assert say("--runs-dir", runs) == 0
    narrow = capsys.readouterr().out
    assert max(map(len, narrow.splitlines())) <= 80 and "AUC %" not in narrow
    assert say("--runs-dir", runs, "--wide") == 0
    assert capsys.readouterr().out == piped and "AUC %" in piped


def test_reference_results_join_only_on_request(runs: Path, capsys) -> None:
    published = written(runs / "reference", [result("fire", seed, 0.8, env_options={"epochs": 3}) for seed in range(3)])
    (published / "REFERENCE").write_text("")
    assert say("--runs-dir", runs) == 0
    assert "fire" not in capsys.readouterr().out
    assert say("--runs-dir", runs, "--tensorboard") == 0
    assert not (runs / "leaderboard" / "fire").exists()
    assert say("--runs-dir", runs, "--with-reference") == 0
    assert "fire" in capsys.readouterr().out
    for words in (["plot", "curves", runs.parent / "c.png"], ["leaderboard", "--tensorboard"]):
        with pytest.raises(SystemExit) as exit_:
            main([*map(str, words), "--runs-dir", str(runs), "--with-reference"])
        assert exit_.value.code == 0
    assert (runs / "leaderboard" / "fire").exists()


def test_trials_and_small_settings_count_only_if_asked(runs: Path, capsys) -> None:
    other = [result(name, seed, 0.5, env_options={"epochs": 3}) for name in ("none", "reset", "rnr") for seed in (0, 1)]
    small = [result(name, seed, 0.5, env_options={"epochs": 4}) for name in ("none", "reset") for seed in (0, 1)]
    written(runs, [*other, *small])

    def settings(*words: str) -> int:
        """Number of settings that count; 0: no table over all settings."""
        assert say("--runs-dir", runs, "--format", "json", *words) == 0
        rows = json.loads(capsys.readouterr().out)
        return max((row["settings"] for row in rows if row["scope"] == "all settings"), default=0)

    assert settings() == 2 and settings("--all-settings") == 3
    for run in other:
        (runs / run.id / "tags.txt").write_text("debug\n")
    assert settings() == 2 and settings("--exclude-tag", "debug") == 0
    for run in other:
        (runs / run.id / "tags.txt").write_text("trial\n")
    assert settings() == 0 and settings("--all-settings") == 2
