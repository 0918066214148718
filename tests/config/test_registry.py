from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plastibench.config import registry
from plastibench.config.errors import UserError
from plastibench.config.registry import Registry

GOOD = '''\
"""A package that brings a method."""

from dataclasses import dataclass

from plastibench import Intervention, Report, option


@dataclass
class Halve(Intervention):
    """Halve every weight."""

    factor: float = option(0.5, "what is left of each weight", low=0, high=1)

    def intervene(self, network, batch):
        for parameter in network.module.parameters():
            parameter.data.mul_(self.factor)
        return Report(parameters=sum(p.numel() for p in network.module.parameters()))
'''


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setitem(sys.modules, "no_builtins", SimpleNamespace())
    return Registry("intervention", "no_builtins")


def install(folder: Path, entry_points: str, **modules: str) -> None:
    """What pip leaves behind of a package: its modules and its metadata."""
    metadata = folder / "fake_plugin-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-plugin\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[plastibench.interventions]\n{entry_points}")
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)


def test_a_name_is_registered_by_decorator_with_its_first_docstring_line(fresh: Registry) -> None:
    @fresh.register("mine", tau=0.3)
    class Mine:
        """My method.

        With more to say.
        """

    assert fresh["mine"].load() is Mine
    assert (fresh["mine"].summary, dict(fresh["mine"].defaults)) == ("My method.", {"tau": 0.3})


def test_a_name_cannot_be_taken_twice(fresh: Registry) -> None:
    fresh.add("mine", int, "first")
    with pytest.raises(ValueError, match="intervention 'mine' is registered already"):
        fresh.add("mine", float, "second")
    with pytest.raises(ValueError, match="registered already"):
        fresh.register("mine")(type("Other", (), {}))
    assert fresh["mine"].load() is int


@pytest.mark.parametrize("kind", ["envs", "agents", "interventions"])
def test_a_builtin_name_cannot_be_overwritten(kind: str) -> None:
    known = getattr(registry, kind)
    name = next(iter(known.all()))
    before = known[name]
    with pytest.raises(ValueError, match="registered already"):
        known.add(name, int, "mine")
    assert known[name] is before


def test_an_unknown_name_is_told_with_the_closest_one_and_where_to_look() -> None:
    with pytest.raises(UserError) as caught:
        registry.interventions["shrink-pertrub"]
    assert str(caught.value) == (
        "no intervention 'shrink-pertrub'; did you mean 'shrink-perturb'?"
        " (plastibench list interventions shows all; --plugin brings your own)"
    )
    with pytest.raises(UserError, match=r"no agent 'qqqqq' \(plastibench list agents"):
        registry.agents["qqqqq"]


def test_every_builtin_name_loads_a_class_of_its_kind() -> None:
    from plastibench.agents.classifier_config import ClassifierConfig
    from plastibench.agents.offpolicy_agent import OffPolicyConfig
    from plastibench.envs.control import Control
    from plastibench.envs.scenario import Scenario
    from plastibench.interventions.base import Intervention

    kinds: list[tuple[registry.Registry, tuple[type, ...]]] = [
        (registry.envs, (Scenario, Control)),
        (registry.agents, (ClassifierConfig, OffPolicyConfig)),
        (registry.interventions, (Intervention,)),
    ]
    for known, bases in kinds:
        assert len(known.all()) >= 8
        for entry in known.all().values():
            assert issubclass(entry.load(), bases)


def test_public_names_are_importable_and_unknown_ones_are_an_attribute_error() -> None:
    import plastibench

    for name in plastibench.__all__:
        assert getattr(plastibench, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        plastibench.nothing  # noqa: B018


def test_a_public_name_is_the_same_object_before_and_after_the_folder_of_that_name_is_imported() -> None:
    root = Path(registry.__file__).parents[1]
    code = """
import importlib, plastibench
for name in ("interventions", "agents", "envs"):
    before = getattr(plastibench, name, None)
    importlib.import_module(f"plastibench.{name}")
    after = getattr(plastibench, name)
    assert before is None or hasattr(before, "register") == hasattr(after, "register"), (before, after)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def rescan(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Registry]:
    """A registry of the built-in interventions that looks for entry points anew."""

    def make() -> Registry:
        known = Registry("intervention", "plastibench.interventions")
        known._entries.update(registry.interventions._entries)
        return known

    return make


def test_a_package_brings_an_intervention_by_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rescan: Callable[[], Registry]
) -> None:
    install(tmp_path, "halve = good_plugin:Halve\n", good_plugin=GOOD)
    monkeypatch.syspath_prepend(tmp_path)
    found = rescan()["halve"]
    assert found.load().__name__ == "Halve"
    assert found.summary == "Halve every weight."


def test_a_package_that_also_uses_the_decorator_is_registered_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rescan: Callable[[], Registry], capsys: pytest.CaptureFixture[str]
) -> None:
    known = rescan()
    monkeypatch.setattr(registry, "interventions", known)
    decorated = (
        "from plastibench.config.registry import interventions\n\n\n@interventions.register('halve')\n@dataclass"
    )
    both = GOOD.replace("@dataclass", decorated)
    install(tmp_path, "halve = twice_plugin:Halve\n", twice_plugin=both)
    monkeypatch.syspath_prepend(tmp_path)
    assert known["halve"].load().__name__ == "Halve"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two"),
        ("import does_not_exist", "ModuleNotFoundError"),
        ("def broken(:", "SyntaxError"),
        ("x = 1", "AttributeError"),
    ],
)
def test_a_broken_package_is_named_in_one_line_and_takes_nothing_down(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rescan: Callable[[], Registry],
    capsys: pytest.CaptureFixture[str],
    text: str,
    reason: str,
) -> None:
    install(tmp_path, "aaa = broken_plugin:Halve\nhalve = good_plugin:Halve\n", broken_plugin=text, good_plugin=GOOD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_plugin", raising=False)
    known = rescan()
    assert "halve" in known.all() and "rnr" in known.all() and "aaa" not in known.all()
    error = capsys.readouterr().err
    assert error.startswith("plastibench: plugin aaa (broken_plugin:Halve) does not load: ") and reason in error
    assert error.count("\n") == 1


def test_a_package_cannot_replace_a_builtin_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rescan: Callable[[], Registry]
) -> None:
    install(tmp_path, "rnr = good_plugin:Halve\n", good_plugin=GOOD)
    monkeypatch.syspath_prepend(tmp_path)
    assert rescan().all()["rnr"].load().__name__ == "RnR"


def test_importing_plastibench_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, plastibench, plastibench.config.registry; "
        "print({'torch', 'numpy', 'gymnasium'} & set(sys.modules))"
    )
    root = Path(registry.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout == "set()\n"


# Plugins in a file, through the command line ----------------------------------------------------------------------


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A short file with a method of one's own, and a registry that forgets it afterwards."""
    monkeypatch.setattr(registry.interventions, "_entries", dict(registry.interventions.all()))
    text = GOOD.replace("@dataclass", '@interventions.register("halve")\n@dataclass')
    text = text.replace("\n\n\n@", "\nfrom plastibench.config.registry import interventions\n\n\n@", 1)
    path = tmp_path / "my_method.py"
    path.write_text(text)
    return path


BUDGET = ["--agent", "mlp", "--agent.width", "8", "--env.epochs", "2", "--env.train-size", "40"]
BUDGET += ["--env.stop-after", "3", "--device", "cpu", "--quiet"]


def test_a_file_by_plugin_is_listed(plugin: Path, say: Callable[..., Any]) -> None:
    done = say("list", "interventions", "--plugin", plugin)
    assert done.status == 0 and "halve" in done.out and "Halve every weight." in done.out
    (line,) = (line for line in done.out.splitlines() if " plugin " in line)
    assert line.split()[:4] == ["halve", "plugin", "intervene", "?"]


def test_the_options_of_a_plugin_are_in_the_help(plugin: Path, say: Callable[..., Any]) -> None:
    done = say("run", "cl-digits", "--intervention", "halve", "--plugin", plugin, "--help")
    assert done.status == 0
    assert "--intervention.factor float" in done.out and "of each weight (default: 0.5, 0 to 1)" in done.out


def test_a_plugin_runs_with_its_options_and_stands_in_the_leaderboard(
    plugin: Path, tmp_path: Path, say: Callable[..., Any]
) -> None:
    runs = tmp_path / "runs"
    options = ["--intervention.factor", "0.25", "--plugin", plugin, "--runs-dir", runs, *BUDGET]
    done = say("run", "cl-digits", "--intervention", "none,halve", *options)
    assert done.status == 0, done.err
    assert "halve factor=0.25" in done.out
    board = say("leaderboard", "--runs-dir", runs)
    assert board.status == 0 and "halve factor=0.25" in board.out and "none" in board.out


def test_a_plugin_may_postpone_its_annotations(plugin: Path, tmp_path: Path, say: Callable[..., Any]) -> None:
    path = tmp_path / "postponed.py"
    path.write_text("from __future__ import annotations\n" + plugin.read_text().replace('"halve"', '"postponed"'))
    done = say("run", "cl-digits", "--intervention", "postponed", "--plugin", path, "--help")
    assert done.status == 0, done.err
    assert "--intervention.factor float" in done.out


def test_a_plugin_without_options_needs_no_dataclass(plugin: Path, tmp_path: Path, say: Callable[..., Any]) -> None:
    path = tmp_path / "bare.py"
    path.write_text(
        "from plastibench import Intervention, Report\nfrom plastibench.config.registry import interventions\n\n\n"
        '@interventions.register("bare")\n'
        "class Bare(Intervention):\n"
        '    """Set every bias to zero."""\n\n'
        "    def intervene(self, network, batch):\n"
        "        return Report()\n"
    )
    done = say("run", "cl-digits", "--intervention", "bare", "--plugin", path, "--runs-dir", tmp_path / "r", *BUDGET)
    assert done.status == 0, done.err
    assert "bare" in done.out


def test_a_plugin_that_takes_a_builtin_name_is_refused(plugin: Path, say: Callable[..., Any]) -> None:
    plugin.write_text(plugin.read_text().replace('"halve"', '"rnr"'))
    done = say("list", "--plugin", plugin)
    assert done.status == 2 and "'rnr' is registered already" in done.err and done.err.count("\n") == 1


@pytest.mark.parametrize("text", ["1/0", "def broken(:", "import does_not_exist", "raise SystemExit(7)"])
def test_a_plugin_that_does_not_load_is_named_in_one_line(tmp_path: Path, say: Callable[..., Any], text: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    done = say("list", "--plugin", path)
    assert done.status == 2 and done.err.count("\n") == 1 and str(path) in done.err


@pytest.mark.parametrize("name", ["nowhere.py", "no_such_module", ""])
def test_a_plugin_that_does_not_exist_is_named_in_one_line(say: Callable[..., Any], name: str) -> None:
    done = say("list", "--plugin", name)
    assert done.status == 2 and done.err.count("\n") == 1 and f"--plugin {name}" in done.err
