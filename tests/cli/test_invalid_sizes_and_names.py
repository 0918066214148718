"""Names, options, sizes and files that cannot be right are refused in one line before anything slow happens."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plastibench.config.registry import Entry
from plastibench.config.spec import RunSpec

RUN = ["run", "relabel-digits", "--agent", "mlp"]
TOML = '[env]\nname = "relabel-digits"\n[agent]\nname = "mlp"\n'


@pytest.fixture(autouse=True)
def nothing_is_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(entry: Entry) -> type:
        raise AssertionError(f"{entry.name} was imported")

    monkeypatch.setattr(Entry, "load", refuse)
    monkeypatch.chdir(tmp_path)


def refused(done: Any, *words: str) -> None:
    assert done.status == 2 and done.out == "", done
    (line,) = done.err.splitlines()
    assert line.startswith("plastibench: ") and len(line) < 600, line
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*RUN, "--env.bogus", "3"], ["env relabel-digits has no option 'bogus'"]),
        ([*RUN, "--agent.lrr", "3"], ["did you mean 'lr'"]),
        ([*RUN, "--intervention", "rnr", "--intervention.quantle", "1"], ["did you mean 'quantile'"]),
        ([*RUN, "--intervention", "rnr", "--intervention.quantile", "2"], ["it must be between 0 and 1"]),
        ([*RUN, "--intervention", "rnr", "--intervention.quantile", "0.2,0.4"], ["sweep file"]),
        ([*RUN, "--intervention", "rnr", "--intervention.solver", "qr"], ["choose from delta-ridge"]),
        ([*RUN, "--intervention", "l2-init+rnr", "--intervention.rnr.tau", "x"], ["rnr.tau", "expected a number"]),
        ([*RUN, "--sed", "1"], ["--seed"]),
        ([*RUN, "--epochs", "1"], ["did you mean '--env.epochs'"]),
        ([*RUN, "--seed", "0..400000000"], ["400,000,001 runs are too many"]),
        ([*RUN, "--seed", "0..99999", "--intervention", "none,rnr"], ["200,000 runs are too many"]),
        ([*RUN, "--seed", "9" * 5000], ["expected an integer"]),
        ([*RUN, "--agent.hidden", "1000000"], ["between 1 and 1000"]),
        ([*RUN, "--agent.width", "9223372036854775808"], ["too large"]),
        ([*RUN, "--env.path", "a\0b"], ["null character"]),
        ([*RUN, "--env.path", os.fsdecode(b"\xff")], ["UTF-8"]),
        (["run", "rl-atari-../../x", "--agent", "dqn-cnn"], ["letters, digits"]),
        (["run", "rl-atari-" + "x" * 100_000, "--agent", "dqn-cnn"], ["letters, digits"]),
        (["run", "x" * 100_000, "--agent", "mlp"], ["unknown env"]),
        (["run", "cl-digits", "--agent", "vit-nano", "--agent.depth", "9223372036854775808"], ["too large"]),
        (["run", "cl-digits", "--agent", "vit-nano", "--agent.depth", "1000000000"], ["between 1 and 1000"]),
        (
            ["run", "rl-cartpole", "--agent", "dqn-mlp", "--agent.hidden", ",".join("8" * 1_000_000)],
            ["1,000,000 items"],
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(map(str, value))[:40].replace("\0", ""),
)
def test_a_wrong_option_is_told_before_its_class_is_imported(
    arguments: list[str], words: list[str], say: Callable[..., Any]
) -> None:
    refused(say(*arguments), *words)


@pytest.mark.parametrize("command", [["run", "--spec"], ["sweep"]], ids=["run", "sweep"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[env]\nname = " + b"[" * 3000 + b"]" * 3000, ["not valid TOML"]),
        (TOML.encode() + b"width = 0x" + b"f" * 50_000, ["too large"]),
        (TOML.encode() + b"width = " + b"9" * 5_000, ["not valid TOML"]),
        (TOML.encode() + b"hidden = 1000000", ["between 1 and 1000"]),
        (b"\xff\xfe" + TOML.encode(), ["cannot read", "utf-8"]),
        (b'[env]\nname = "rl-atari-../../x"\n[agent]\nname = "dqn-cnn"\n', ["letters, digits"]),
        (b'[env]\nname = "relabel-digits"\n[agent]\nname = "../mlp"\n', ["unknown agent"]),
        (b"#" * (5 << 20), ["larger than 4 MiB"]),
    ],
    ids=["nested", "hexadecimal", "digits", "layers", "encoding", "name", "agent", "size"],
)
def test_a_file_that_cannot_be_a_spec_is_refused(
    command: list[str], content: bytes, words: list[str], say: Callable[..., Any], tmp_path: Path
) -> None:
    file = tmp_path / "given.toml"
    file.write_bytes(content)
    refused(say(*command, file), *words)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero")
def test_an_endless_spec_is_refused(say: Callable[..., Any]) -> None:
    refused(say("run", "--spec", "/dev/zero"), "larger than 4 MiB")


def test_a_grid_with_too_many_runs_is_refused_before_they_are_listed(say: Callable[..., Any], tmp_path: Path) -> None:
    many = list(range(1, 101))
    (tmp_path / "grid.toml").write_text(f"{TOML}lr = {many}\nwidth = {many}\nhidden = {many}\n")
    refused(say("sweep", "grid.toml"), "1,000,000 runs are too many")


def test_a_spec_is_checked_from_python_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    from plastibench.config.errors import UserError

    with pytest.raises(UserError, match="too large"):
        RunSpec.make("cl-digits", "mlp", agent_options={"width": 10**5000})


@pytest.mark.parametrize("folder", ["x" * 300, "/".join(["x" * 200] * 30)])
@pytest.mark.parametrize("command", [["run", "relabel-digits", "--agent", "mlp"], ["leaderboard"], ["runs", "list"]])
def test_paths_that_are_too_long_are_refused(say: Any, command: list[str], folder: str) -> None:
    refused(say(*command, "--runs-dir", folder), "too long")
