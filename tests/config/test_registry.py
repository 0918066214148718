from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from plastibench.config import registry
from plastibench.config.errors import UserError
from plastibench.config.registry import Registry

GOOD = '''\
"""A package that provides a method."""

from dataclasses import dataclass

from plastibench import Intervention, Report, option


@dataclass
class Halve(Intervention):
    """Halve every weight."""

    factor: float = option(0.5, "fraction of each weight that remains", low=0, high=1)

    def intervene(self, network, batch):
        for parameter in network.module.parameters():
            parameter.data.mul_(self.factor)
        return Report(parameters=sum(p.numel() for p in network.module.parameters()))
'''


@pytest.fixture
def fresh() -> Registry:
    """A registry without built-in names."""
    return Registry("intervention")


def install(folder: Path, entry_points: str, **modules: str) -> None:
    """Write the modules and metadata of an installed package."""
    metadata = folder / "fake_plugin-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-plugin\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[plastibench.interventions]\n{entry_points}")
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)


def test_a_registry_is_a_mapping_of_names() -> None:
    assert isinstance(registry.interventions, Mapping)
    assert sorted(registry.interventions) == sorted(registry.interventions.all()) and len(registry.envs) > 9
    assert "rnr" in registry.interventions and "rnr+redo" in registry.interventions
    assert "rl-atari-breakout" in registry.envs and "rl-atari-../x" not in registry.envs
    assert "rrn" not in registry.interventions and registry.interventions.get("rrn") is None
    assert registry.agents.get("mlp") == registry.agents["mlp"] == dict(registry.agents.items())["mlp"]
    assert registry.envs != registry.agents and hash(registry.envs) != hash(registry.agents)
    with pytest.raises(KeyError) as raised:
        registry.interventions["rrn"]
    assert isinstance(raised.value, UserError) and str(raised.value).startswith("unknown intervention 'rrn'; did you")


def test_decorator_registers_class_with_first_docstring_line(fresh: Registry) -> None:
    @fresh.register("mine", tau=0.3)
    class Mine:
        """My method.

        More text.
        """

    assert fresh["mine"].load() is Mine
    assert (fresh["mine"].summary, dict(fresh["mine"].defaults)) == ("My method", {"tau": 0.3})


def test_decorator_can_be_repeated_with_other_names_and_summaries(fresh: Registry) -> None:
    @fresh.register("mine")
    @fresh.register("mine-fast", "My method, faster", name="an option called name")
    class Mine:
        """My method."""

    assert fresh["mine"].load() is fresh["mine-fast"].load() is Mine
    assert fresh["mine"].summary == "My method"
    assert fresh["mine-fast"].summary == "My method, faster"
    assert fresh["mine-fast"].defaults == {"name": "an option called name"}


def test_star_in_a_name_fills_the_option_with_the_rest(fresh: Registry) -> None:
    @fresh.register("game-*", "A game", id="*", frames=4)
    class Game:
        pass

    assert fresh["game-pong"].defaults == {"id": "pong", "frames": 4}
    assert fresh["game-pong"].name == "game-pong" and fresh["game-pong"].load() is Game
    assert list(fresh.all()) == ["game-*"]
    with pytest.raises(UserError, match="unknown intervention 'game-'"):
        fresh["game-"]


def test_registering_a_taken_name_is_an_error(fresh: Registry) -> None:
    fresh.register("mine")(int)
    with pytest.raises(ValueError, match="intervention 'mine' is already registered"):
        fresh.register("mine")(float)
    assert fresh["mine"].load() is int


@pytest.mark.parametrize("kind", ["envs", "agents", "interventions"])
def test_registering_a_builtin_name_is_an_error(kind: str) -> None:
    known = getattr(registry, kind)
    name = next(iter(known.all()))
    before = known[name]
    with pytest.raises(ValueError, match="already registered"):
        known.register(name)(int)
    assert known[name] is before


def test_unknown_name_is_reported_with_the_closest_name() -> None:
    with pytest.raises(
        UserError, match="unknown intervention 'shrink-pertrub'; did you mean 'shrink-perturb'"
    ) as caught:
        registry.interventions["shrink-pertrub"]
    assert "plastibench list interventions" in str(caught.value)
    with pytest.raises(UserError, match=r"unknown agent 'qqqqq' \("):
        registry.agents["qqqqq"]


def test_list_functions_return_names_that_match_a_pattern() -> None:
    import plastibench

    assert plastibench.list_interventions() == list(registry.interventions.all())
    assert plastibench.list_interventions("rnr*") == ["rnr", "rnr-decay", "rnr-mlp", "rnr-attention", "rnr-layernorm"]
    assert plastibench.list_agents("vit-*-hnt") == ["vit-tiny-hnt", "vit-small-hnt"]
    assert "cl-digits" in plastibench.list_envs("cl-*")
    assert plastibench.list_envs("nothing") == []


def test_baseline_is_listed_first_and_kinds_are_grouped() -> None:
    kinds = [entry.kind for entry in registry.interventions.builtin().values()]
    assert next(iter(registry.interventions.builtin())) == "none"
    assert list(dict.fromkeys(kinds)) == list(registry.interventions._kinds)
    assert kinds == sorted(kinds, key=registry.interventions._kinds.index)
    for known in (registry.agents, registry.envs):
        assert {entry.kind for entry in known.builtin().values()} == set(known._kinds)


def test_every_builtin_name_loads_a_class_of_the_right_type() -> None:
    from plastibench.agents.classifier_config import ClassifierConfig
    from plastibench.agents.offpolicy_agent import OffPolicyConfig
    from plastibench.envs.rl_env import RLEnvConfig
    from plastibench.envs.task_stream_config import TaskStreamConfig
    from plastibench.interventions.base import Intervention

    kinds: list[tuple[registry.Registry, tuple[type, ...]]] = [
        (registry.envs, (TaskStreamConfig, RLEnvConfig)),
        (registry.agents, (ClassifierConfig, OffPolicyConfig)),
        (registry.interventions, (Intervention,)),
    ]
    for known, bases in kinds:
        assert len(known.all()) >= 8
        for entry in known.all().values():
            assert issubclass(entry.load(), bases)


def test_public_names_are_importable() -> None:
    import plastibench

    for name in plastibench.__all__:
        assert getattr(plastibench, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        plastibench.nothing  # noqa: B018


def test_importing_a_package_does_not_change_a_public_name() -> None:
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
    """Create a registry of the built-in interventions that has not looked for entry points yet."""
    return lambda: Registry("intervention", "plastibench.interventions")


def test_entry_point_provides_an_intervention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rescan: Callable[[], Registry]
) -> None:
    install(tmp_path, "halve = good_plugin:Halve\n", good_plugin=GOOD)
    monkeypatch.syspath_prepend(tmp_path)
    found = rescan()["halve"]
    assert found.load().__name__ == "Halve"
    assert found.summary == "Halve every weight"


def test_entry_point_whose_module_also_uses_the_decorator_is_registered_once(
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
def test_broken_entry_point_is_reported_in_one_line_and_skipped(
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
    assert error.startswith("plastibench: cannot load plugin aaa (broken_plugin:Halve): ") and reason in error
    assert error.count("\n") == 1


def test_entry_point_cannot_replace_a_builtin_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rescan: Callable[[], Registry]
) -> None:
    install(tmp_path, "rnr = good_plugin:Halve\n", good_plugin=GOOD)
    monkeypatch.syspath_prepend(tmp_path)
    assert rescan().all()["rnr"].load().__name__ == "RnR"


def modules_after(code: str) -> set[str]:
    """Heavy modules that are loaded after ``code`` has run in a new process."""
    code += "\nimport sys; print(*{'torch', 'numpy', 'gymnasium', 'timm'} & set(sys.modules), file=sys.stderr)"
    root = Path(registry.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    return set(done.stderr.split("\n")[-2].split())


@pytest.mark.parametrize(
    "code",
    [
        "import plastibench.config.registry",
        "import plastibench; plastibench.list_interventions(); plastibench.list_agents(); plastibench.list_envs()",
        "from plastibench.cli.main import main\ntry: main(['list'])\nexcept SystemExit: pass",
        "from plastibench.cli.main import main\n"
        "try: main('run cl-digits --agent mlp --intervention rrn'.split())\nexcept SystemExit: pass",
    ],
)
def test_names_are_listed_and_checked_without_importing_torch(code: str) -> None:
    assert modules_after(code) == set()


@pytest.mark.slow
def test_looking_up_a_class_imports_its_module_only() -> None:
    code = "from plastibench.config.registry import interventions; interventions['rnr'].load()"
    code += "\nimport sys; print(*(m for m in sys.modules if 'plastibench.interventions.' in m), file=sys.stderr)"
    root = Path(registry.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    names = {name.rpartition(".")[2] for name in done.stderr.split("\n")[-2].split()}
    assert names == {"base", "rnr", "recouple", "revive", "wrapper"}


# Plugins in a file, on the command line -------------------------------------------------------------------------


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a custom method. The registry is restored after the test."""
    monkeypatch.setattr(registry.interventions, "_entries", dict(registry.interventions.all()))
    text = GOOD.replace("@dataclass", '@register_intervention("halve")\n@dataclass')
    text = text.replace("\n\n\n@", "\nfrom plastibench import register_intervention\n\n\n@", 1)
    path = tmp_path / "my_method.py"
    path.write_text(text)
    return path


BUDGET = ["--agent", "mlp", "--agent.width", "8", "--env.epochs", "2", "--env.train-size", "40"]
BUDGET += ["--env.stop-after", "3", "--device", "cpu", "--quiet"]


def test_plugin_file_is_listed(plugin: Path, say: Callable[..., Any]) -> None:
    done = say("list", "interventions", "--plugin", plugin)
    assert done.status == 0 and "halve" in done.out and "Halve every weight" in done.out
    (line,) = (line for line in done.out.splitlines() if "halve" in line)
    assert line.split()[:4] == ["halve", "custom", "?", "intervene"]


def test_help_shows_the_options_of_a_plugin(plugin: Path, say: Callable[..., Any]) -> None:
    done = say("run", "cl-digits", "--intervention", "halve", "--plugin", plugin, "--help")
    assert done.status == 0
    assert (
        "--intervention.factor float" in done.out
        and "fraction of each weight that remains (default: 0.5; 0 to 1)" in done.out
    )


def test_plugin_runs_with_its_options_and_appears_in_the_leaderboard(
    plugin: Path, tmp_path: Path, say: Callable[..., Any]
) -> None:
    runs = tmp_path / "runs"
    options = ["--intervention.factor", "0.25", "--plugin", plugin, "--runs-dir", runs, *BUDGET]
    done = say("run", "cl-digits", "--intervention", "none,halve", *options)
    assert done.status == 0, done.err
    assert "halve factor=0.25" in done.out
    board = say("leaderboard", "--runs-dir", runs)
    assert board.status == 0 and "halve factor=0.25" in board.out and "none" in board.out


def test_plugin_with_postponed_annotations(plugin: Path, tmp_path: Path, say: Callable[..., Any]) -> None:
    path = tmp_path / "postponed.py"
    path.write_text("from __future__ import annotations\n" + plugin.read_text().replace('"halve"', '"postponed"'))
    done = say("run", "cl-digits", "--intervention", "postponed", "--plugin", path, "--help")
    assert done.status == 0, done.err
    assert "--intervention.factor float" in done.out


def test_plugin_without_options_needs_no_dataclass(plugin: Path, tmp_path: Path, say: Callable[..., Any]) -> None:
    path = tmp_path / "bare.py"
    path.write_text(
        "from plastibench import Intervention, Report, register_intervention\n\n\n"
        '@register_intervention("bare")\n'
        "class Bare(Intervention):\n"
        '    """Set every bias to zero."""\n\n'
        "    def intervene(self, network, batch):\n"
        "        return Report()\n"
    )
    done = say("run", "cl-digits", "--intervention", "bare", "--plugin", path, "--runs-dir", tmp_path / "r", *BUDGET)
    assert done.status == 0, done.err
    assert "bare" in done.out


def test_plugin_with_a_builtin_name_is_refused(plugin: Path, say: Callable[..., Any]) -> None:
    plugin.write_text(plugin.read_text().replace('"halve"', '"rnr"'))
    done = say("list", "--plugin", plugin)
    assert done.status == 2 and "'rnr' is already registered" in done.err and done.err.count("\n") == 1


def test_an_option_cannot_be_its_own_old_name(plugin: Path, say: Callable[..., Any]) -> None:
    plugin.write_text(plugin.read_text().replace("low=0, high=1", 'formerly="factor"'))
    done = say("list", "--plugin", plugin)
    assert done.status == 2 and f"{plugin.name}:" in done.err and done.err.count("\n") == 1
    assert "option 'factor' of Halve: formerly='factor' is the name of an option" in done.err


@pytest.mark.parametrize("text", ["1/0", "def broken(:", "import does_not_exist", "raise SystemExit(7)"])
def test_plugin_that_does_not_load_is_reported_in_one_line(tmp_path: Path, say: Callable[..., Any], text: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    done = say("list", "--plugin", path)
    assert done.status == 2 and done.err.count("\n") == 1 and str(path) in done.err


@pytest.mark.parametrize("name", ["nowhere.py", "no_such_module", ""])
def test_missing_plugin_is_reported_in_one_line(say: Callable[..., Any], name: str) -> None:
    done = say("list", "--plugin", name)
    assert done.status == 2 and done.err.count("\n") == 1 and f"--plugin {name}" in done.err
