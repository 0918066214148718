"""What many tests need: one thread, tiny runs, and commands whose output and status can be read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from plastibench.cli.main import main
from plastibench.config.spec import RunSpec
from tests.support.attack import PROPERTY, Attack, seconds_of


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The runner sets the number of threads by itself; everything else here must not take all cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def any_width() -> None:
    """Output that is not a terminal has all columns; an exported width would change that."""
    os.environ.pop("COLUMNS", None)


@pytest.fixture
def tiny() -> Callable[..., RunSpec]:
    """Specs of runs that take a third of a second."""

    def make(
        intervention: str = "none",
        options: Mapping[str, Any] | None = None,
        *,
        env: str = "cl-digits",
        agent: str = "vit-nano",
        env_options: Mapping[str, Any] | None = None,
        agent_options: Mapping[str, Any] | None = None,
        **run: Any,
    ) -> RunSpec:
        budget = {"epochs": 2, "train_size": 40, **({"stop_after": 3} if env == "cl-digits" else {"tasks": 3})}
        size = {"depth": 1, "dim": 16} if agent == "vit-nano" else {"width": 8}
        return RunSpec.make(
            env,
            agent,
            intervention,
            env_options={**budget, **(env_options or {})},
            agent_options={**size, **(agent_options or {})},
            intervention_options=options or {},
            device="cpu",
            **run,
        )

    return make


@dataclass
class Said:
    """How a command ended."""

    status: int
    out: str
    err: str


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run a command in this process."""

    def command(*arguments: object) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Said(int(ended.value.code or 0), out, err)

    return command


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--budget", default="10m", help="time of all attacks together (-m torture), such as 90s, 10m, 1h")


@pytest.fixture(params=["short", pytest.param("long", marks=pytest.mark.torture)])
def attack(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Iterator[Attack]:
    """A test that is an attack, in its short form, or with ``-m torture`` for its part of the budget."""
    name = request.node.originalname.removeprefix("test_").replace("_", " ")
    seconds = None
    if request.param == "long":
        attacks = sum(item.get_closest_marker("torture") is not None for item in request.session.items)
        workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))  # which attack at the same time
        seconds = workers * seconds_of(request.config.getoption("budget")) / attacks
    made = Attack(name, seconds)
    yield made
    if seconds is not None:
        record_property(PROPERTY, str(made))


@pytest.hookimpl(tryfirst=True)  # before pytest deselects the slow ones
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep only some cases of tests marked ``sample(N)`` in the normal suite: N, evenly spaced. The others are slow."""
    cases: dict[object, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sample"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for group in cases.values():
        mark = group[0].get_closest_marker("sample")
        assert mark is not None
        kept = {number * len(group) // mark.args[0] for number in range(mark.args[0])}
        for number, item in enumerate(group):
            if number not in kept and len(group) > mark.args[0]:
                item.add_marker("slow")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line per attack, with its counts."""
    reports = [report for report in terminalreporter.stats.get("", []) if report.when == "teardown"]
    lines = [text for report in reports for name, text in report.user_properties if name == PROPERTY]
    if lines:
        terminalreporter.section("attacks")
        for line in sorted(lines):
            terminalreporter.write_line(line)
