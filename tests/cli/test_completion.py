from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plastibench.cli.completion import SCRIPTS, candidates
from plastibench.cli.main import MODULES

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sw", ["sweep"]),
        ("run cl-di", ["cl-digits"]),
        ("run cl-digits --agent vit-n", ["vit-nano"]),
        ("run cl-digits --intervention none,l2-init-n", ["none,l2-init-norm"]),
        ("run --see", ["--seed"]),
        ("run cl-digits --agent mlp --agent.wid", ["--agent.width"]),
        ("run cl-digits --intervention rnr --intervention.quant", ["--intervention.quantile"]),
        ("run cl-digits --agent mlp --agent.width ", []),
        ("run cl-digits --seed ", []),
        ("list interv", ["interventions"]),
        ("sweep fig", ["fig2", "fig3", "fig4", "fig5"]),
        ("completion ", ["bash", "zsh", "fish"]),
        ("nonsense x", []),
    ],
)
def test_candidates(line: str, expected: list[str]) -> None:
    assert candidates(line.split(" "), MODULES) == expected


def test_every_command_is_completed() -> None:
    assert set(MODULES) < set(candidates([""], MODULES))
    for command in MODULES:
        assert "--help" in candidates([command, "--"], MODULES)


def test_ids_of_runs_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "cl-digits_mlp_none_s0_123456").mkdir(parents=True)
    (tmp_path / "runs" / "cl-digits_mlp_none_s0_123456" / "spec.toml").touch()
    for command in (["resume"], ["runs", "rm"], ["diagnose"]):
        assert candidates([*command, "cl"], MODULES) == ["cl-digits_mlp_none_s0_123456"], command
    assert candidates(["runs", "rm", "r"], MODULES) == []  # a second action


def test_bash_completes_with_the_script(say: Callable[..., Any], tmp_path: Path) -> None:
    script = say("completion", "bash").out
    (tmp_path / "script").write_text(
        f'plastibench() {{ {sys.executable} -m plastibench "$@"; }}\n{script}\n'
        'COMP_WORDS=(plastibench run cl-digits --agent vit-na); COMP_CWORD=4; _plastibench; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", tmp_path / "script"], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "vit-nano\n"


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_scripts_are_valid(shell: str, tmp_path: Path, say: Callable[..., Any]) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(say("completion", shell).out)
    subprocess.run([shell, "-n", tmp_path / "script"], check=True)
