from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plastibench.cli.run_names import find_run
from plastibench.config.errors import UserError

TINY = ["--env.epochs", 1, "--env.tasks", 2, "--agent.width", 8, "--device", "cpu", "--no-plot", "--quiet"]


def test_a_run_is_found_by_the_beginning_of_its_digest(tmp_path: Path) -> None:
    for name in ("cl-digits_mlp_none_s0_0123456789abcdef", "cl-digits_mlp_none_s1_0123456fffffffff"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "spec.toml").write_text("")
    assert find_run("cl-digits_mlp_none_s0_0123456789abcdef", tmp_path) == "cl-digits_mlp_none_s0_0123456789abcdef"
    assert find_run("01234567", tmp_path) == "cl-digits_mlp_none_s0_0123456789abcdef"
    for name, problem in (("012345", "matches several runs"), ("01234", "no run '01234'"), ("89abcdef", "no run")):
        with pytest.raises(UserError, match=problem):
            find_run(name, tmp_path)


def test_resume_and_diagnose_take_what_runs_list_shows(tmp_path: Path, say: Any) -> None:
    folder = tmp_path / "runs"
    assert say("run", "relabel-digits", "--agent", "mlp", *TINY, "--runs-dir", folder).status == 0
    short = say("runs", "list", "--runs-dir", folder).out.splitlines()[2].split()[0]
    assert re.fullmatch("[0-9a-f]{8}", short)
    resumed = say("resume", short, "--runs-dir", folder)
    assert resumed.status == 0 and "already complete" in resumed.err and "--force" not in resumed.err
    assert "relabel-digits_mlp_none" in say("diagnose", short, "--runs-dir", folder, "--samples", 16).out


def test_results_of_other_data_are_not_averaged(tmp_path: Path, say: Any) -> None:
    def write(seed: int) -> None:
        draw = np.random.default_rng(seed)
        images, labels = draw.integers(0, 255, (40, 8, 8), np.uint8), np.arange(40) % 4
        np.savez(tmp_path / "data.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)

    command = ["run", "relabel-own", "--env.path", tmp_path / "data.npz", "--agent", "mlp", *TINY]
    command += ["--runs-dir", tmp_path / "runs"]
    write(0)
    first = say(*command, "--seed", "0")
    assert first.status == 0, first.err
    write(1)
    second = say(*command, "--seed", "0,1")
    assert second.status == 0 and "different data" in second.err
    assert "omits 1 result on different data" in second.err and "±" not in second.out
