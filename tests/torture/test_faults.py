"""Processes that are killed, find the disk full, or meet in one folder lose nothing."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest

from plastibench.config.spec import RunSpec
from plastibench.leaderboard import tensorboard
from plastibench.leaderboard.standings import standings
from plastibench.utils.digests import signed
from tests.leaderboard.made import result
from tests.support.attack import Attack
from tests.support.faults import FORKS, Ended, Fault, Process
from tests.support.runs import assert_same_run
from tests.support.tensorboard import content

pytestmark = pytest.mark.skipif(FORKS is None, reason="needs fork")


def spec_of(kind: str) -> RunSpec:
    """A run of a second or less."""
    if kind == "rl":
        env = {"steps": 96, "envs": 4, "evaluate_every": 48, "evaluation_episodes": 1, "max_episode_steps": 20}
        agent = {"hidden": (8, 8), "batch_size": 8, "learning_starts": 40, "replay_ratio": 0.25}
        return RunSpec.make(
            "rl-cartpole", "dqn-mlp", "redo", env_options=env, agent_options=agent, device="cpu", every=6
        )
    env = {"epochs": 2, "train_size": 40, "stop_after": 3}
    agent = {"batch_size": 8, **({"width": 8} if kind == "mlp" else {"depth": 1, "dim": 16, "dropout": 0.2})}
    return RunSpec.make("cl-digits", kind, "rnr", env_options=env, agent_options=agent, device="cpu", representative=6)


class Case:
    """A run, its result without faults, and its number of file calls."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.spec = spec_of(kind)
        self.whole = folder / "whole"
        done = self.start(self.whole).end()
        assert done.status == 0, done.err
        self.calls = done.calls
        self.names = self.files(self.whole)

    def start(self, runs_dir: Path, fault: Fault | None = None, log: str = "log") -> Process:
        """Start the run, or continue it."""
        folder = runs_dir / self.spec.id
        if not folder.exists():
            folder.mkdir(parents=True)
            (folder / "spec.toml").write_text(signed(self.spec.to_toml()))
        words = ["resume", self.spec.id, "--runs-dir", str(runs_dir), "--quiet", "--threads", "1", "--for-command", "x"]
        return Process(words, folder, runs_dir / f"{log}.txt", fault)

    def files(self, runs_dir: Path) -> list[str]:
        """Names of the files of the run; those of event files contain the time."""
        found = {path.name.partition(".out.tfevents")[0] for path in (runs_dir / self.spec.id).iterdir()}
        return sorted(found)

    def check(self, runs_dir: Path) -> None:
        """Finish the run, and compare it with the one without faults."""
        last = self.start(runs_dir).end()
        assert (last.status, last.err) == (0, "")
        assert_same_run(self.whole / self.spec.id, runs_dir / self.spec.id)
        assert content(self.whole / self.spec.id) == content(runs_dir / self.spec.id)
        assert self.files(runs_dir) == self.names


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return {}


def case_of(dice: Random, attack: Attack, cases: dict[str, Case], folder: Path) -> Case:
    kind = dice.choice(["mlp", "vit-nano", "rl"]) if attack.seconds else "mlp"
    if kind not in cases:
        cases[kind] = Case(kind, folder / kind)
    return cases[kind]


def one_line(ended: Ended) -> bool:
    """Whether an error was reported in one line, without a traceback."""
    return ended.err.startswith("plastibench: ") and ended.err.count("\n") == 1


def test_kills_at_file_calls(attack: Attack, cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> None:
    for number, dice in enumerate(attack.trials(3)):
        folder = tmp_path_factory.mktemp("kills")
        case = case_of(dice, attack, cases, folder)
        for _ in range(dice.choice([1, 1, 2, 3])):
            sign = dice.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
            call = 1 + number % case.calls if sign == signal.SIGKILL else dice.randint(1, case.calls)
            ended = case.start(folder, Fault(call, kill=sign)).end()
            assert ended.status in ((-sign, 0) if sign == signal.SIGKILL else (-sign, 0, 130)), ended
            assert "Traceback" not in ended.err, ended.err
            attack.note(f"by {sign.name}" if ended.status else "survived")
        case.check(folder)


def test_full_disks(attack: Attack, cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> None:
    for dice in attack.trials(3):
        folder = tmp_path_factory.mktemp("full")
        case = case_of(dice, attack, cases, folder)
        ended = case.start(folder, Fault(dice.randint(1, case.calls), full=True)).end()
        if ended.status:
            assert ended.status in (1, 2) and one_line(ended) and "No space left on device" in ended.err, ended
            attack.note("reported")
        else:
            attack.note("harmless")
        case.check(folder)


def test_two_processes_in_one_folder(
    attack: Attack, cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory
) -> None:
    for dice in attack.trials(1):
        folder = tmp_path_factory.mktemp("two")
        case = case_of(dice, attack, cases, folder)
        both = [case.start(folder, log=f"log{number}") for number in range(2)]
        for ended in [process.end() for process in both]:
            if ended.status:
                assert ended.status == 2 and one_line(ended) and "is being run by another process" in ended.err, ended
            attack.note("refused" if ended.status else "complete")
        case.check(folder)


def test_writers_of_one_leaderboard(attack: Attack, tmp_path: Path) -> None:
    made = {name: [result(name, seed) for seed in range(2)] for name in ("none", "reset", "rnr", "redo", "fire")}

    def write(number: int) -> None:
        chosen = Random(number).sample(sorted(made), 3)
        tensorboard.write(tmp_path, standings([run for name in chosen for run in made[name]]))

    for dice in attack.trials(1):
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, [dice.randrange(10**6) for _ in range(8)]))
        lines = [path for path in (tmp_path / tensorboard.FOLDER).iterdir() if path.is_dir()]
        assert len(lines) == 3 and not list((tmp_path / tensorboard.FOLDER).rglob("*.tmp"))
        attack.outcomes["written"] += 8
