from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plastibench.cli.plugins import import_plugins
from plastibench.config import identity, options, registry
from plastibench.config.code_digest import code_of
from plastibench.config.errors import UserError
from plastibench.config.options import build, option
from plastibench.config.spec import RunSpec
from plastibench.results.result import Result

COLLIDING = "0.1476", "0.472"  # two quantiles whose ids of 24 bits were equal


def colliding(quantile: str) -> RunSpec:
    return RunSpec.make(
        "relabel-digits",
        "mlp",
        "rnr",
        env_options={"tasks": 3, "epochs": 3, "train_size": 100},
        intervention_options={"quantile": quantile},
        device="cpu",
    )


def test_digests_have_at_least_64_bits_and_names_come_first() -> None:
    assert re.fullmatch(r"relabel-digits_mlp_rnr_s0_[0-9a-f]{16}", colliding("0.3").id)


def test_ids_differ_where_short_ones_collided() -> None:
    one, other = map(colliding, COLLIDING)
    assert one.legacy_ids() == other.legacy_ids()
    assert one.id != other.id and one.content != other.content


@pytest.mark.parametrize("name", ["rl-atari-../../x", "rl-atari-a/b", "rl-atari-a b", "rl-atari-a\nb", "rl-atari-é"])
def test_names_of_a_family_hold_safe_characters_only(name: str) -> None:
    with pytest.raises(UserError, match="letters, digits"):
        RunSpec.make(name, "dqn-cnn")


def test_registered_names_hold_safe_characters_only() -> None:
    with pytest.raises(ValueError, match="use letters, digits"):
        registry.register_env("../x")(type("Config", (), {}))


def test_names_that_are_too_long_for_a_folder_are_refused() -> None:
    names = [name for name in registry.interventions.builtin() if name != "none"]
    with pytest.raises(UserError, match="too long for a folder"):
        RunSpec.make("cl-digits", "mlp", "+".join(names))
    with pytest.raises(UserError) as error:
        RunSpec.make("rl-atari-" + "x" * 100_000, "dqn-cnn")
    assert len(str(error.value)) < 500


# Renamed options ------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def every_note() -> None:
    options.note_deprecated.cache_clear()


@pytest.mark.parametrize(
    ("names", "part", "old", "new"),
    [
        (("relabel-digits", "mlp"), "env", {"switches": 3}, {"tasks": 3}),
        (("permuted-digits", "mlp"), "env", {"switches": "3"}, {"tasks": 3}),
        (("warm-digits", "mlp"), "env", {"share": 0.4}, {"fraction": 0.4}),
        (("cl-digits", "mlp", "reset"), "intervention", {"share": 0.4}, {"fraction": 0.4}),
        (("cl-digits", "mlp", "sr-spr"), "intervention", {"heads": "redraw"}, {"heads": "reinitialize"}),
        (("cl-digits", "mlp", "self-normalized-resets"), "intervention", {"percentile": 0.9}, {"quantile": 0.9}),
        (
            ("cl-digits", "mlp", "l2-init+reset"),
            "intervention",
            {"reset.share": 0.4},
            {"reset.fraction": 0.4},
        ),
    ],
)
def test_old_names_and_values_make_the_same_run(
    names: tuple[str, ...], part: str, old: dict[str, Any], new: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = RunSpec.make(*names, **{f"{part}_options": new})
    assert capsys.readouterr().err == ""
    assert RunSpec.make(*names, **{f"{part}_options": old}) == expected
    (line,) = capsys.readouterr().err.splitlines()
    assert "is deprecated; use" in line and next(iter(old)).rpartition(".")[2] in line
    # Files that an earlier version wrote are read without a note, and have the ids that it gave.
    (old_name, old_value), (new_name, new_value) = next(iter(old.items())), next(iter(new.items()))
    text = expected.to_toml()
    written = f"{options.field_name(new_name)} = {json.dumps(new_value)}"
    assert written in text
    before = text.replace(written, f"{options.field_name(old_name)} = {json.dumps(old_value)}")
    assert RunSpec.from_toml(before) == expected
    assert capsys.readouterr().err == ""


def test_constructors_accept_old_names(capsys: pytest.CaptureFixture[str]) -> None:
    from plastibench.interventions.reset import Reset
    from plastibench.interventions.shrink_perturb import ShrinkPerturb

    assert Reset("later", share=0.25) == Reset("later", fraction=0.25)  # type: ignore[call-arg]
    assert ShrinkPerturb(heads="redraw").heads == "reinitialize"  # type: ignore[arg-type]
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_an_option_given_by_both_names_is_refused() -> None:
    with pytest.raises(UserError, match="'tasks' is set twice; 'switches' is its old name"):
        RunSpec.make("relabel-digits", "mlp", env_options={"switches": 3, "tasks": 4})


def test_renames_are_found_without_importing_the_class() -> None:
    for known in (registry.envs, registry.agents, registry.interventions):
        for name, entry in known.builtin().items():
            assert known.renames(name) == options.renames_of(entry.load()), name


def test_legacy_ids_use_old_names() -> None:
    found = RunSpec.make("relabel-digits", "mlp", "rnr", env_options={"tasks": 7})
    parts = [("relabel-digits", {**found.env[1]}), found.agent, found.intervention]
    parts[0][1]["switches"] = parts[0][1].pop("tasks")
    assert found.legacy_ids() == (identity.id_before(parts, options.as_dict(found.run)),)


def test_every_published_result_has_the_present_id_of_its_options(pytestconfig: pytest.Config) -> None:
    paths = sorted((pytestconfig.rootpath / "runs" / "reference").glob("**/result.json"))
    assert len(paths) > 100
    for path in paths:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = Result.from_dict(content)
        given = {f"{part}_options": getattr(found.options, part) for part in identity.PARTS}
        names = [getattr(found, part) for part in identity.PARTS]
        spec = RunSpec.make(*names, **given, **found.run)
        assert (found.id, found.group, found.content) == (spec.id, spec.group(), spec.content)
        assert content["id"] in (spec.legacy_ids() if content["schema"] < 4 else [spec.id])


# The base --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [{"every": 5}, {"until": 10}, {"roles": ("classifier",)}, {"every": 5, "until": 10}])
def test_a_schedule_is_no_part_of_a_run_without_interventions(run: dict[str, Any]) -> None:
    plain = RunSpec.make("cl-digits", "mlp")
    assert RunSpec.make("cl-digits", "mlp", **run) == plain
    assert RunSpec.make("cl-digits", "mlp", "rnr", **run).id != RunSpec.make("cl-digits", "mlp", "rnr").id


@pytest.mark.parametrize(
    "options", [{"offline_updates": 5}, {"agent_options": {"target_policy": "copy"}}], ids=["updates", "targets"]
)
def test_a_schedule_that_changes_a_run_without_interventions_is_part_of_it(options: dict[str, Any]) -> None:
    plain, scheduled = (RunSpec.make("rl-cartpole", "dqn-mlp", every=every, **options) for every in (0, 50))
    assert scheduled.id != plain.id and scheduled.run.every == 50


# Code of plugins -------------------------------------------------------------------------------------------------

PLUGIN = """
from dataclasses import dataclass
import plastibench as pb
from helper import FACTOR

@pb.register_intervention("shrink", "shrink")
@dataclass
class Shrink(pb.Intervention):
    factor: float = pb.option(FACTOR, "factor")
"""


def ids_of(plugin: str) -> list[str]:
    """The ids of runs with the plugin, imported as a new process would."""
    for module in ("shrink", "helper", "mine", "mine.shrink", "mine.helper"):
        sys.modules.pop(module, None)
    registry.interventions._entries.pop("shrink", None)
    importlib.invalidate_caches()
    import_plugins([plugin])
    specs = [RunSpec.make("cl-digits", "mlp", name) for name in ("shrink", "l2-init+shrink", "none")]
    specs.append(RunSpec.make("cl-digits", "mlp", "recouple", intervention_options={"inner": "shrink"}))
    return [spec.id for spec in specs]


@pytest.mark.parametrize("layout", ["file", "package"])
def test_code_of_a_plugin_is_part_of_every_run_that_uses_it(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # bytecode of a file that is changed within a second is kept
    monkeypatch.setattr(registry.interventions, "_entries", {**registry.interventions.all()})
    folder = tmp_path if layout == "file" else tmp_path / "mine"
    folder.mkdir(exist_ok=True)
    main, helper = folder / "shrink.py", folder / "helper.py"
    text = PLUGIN
    if layout == "package":
        (folder / "__init__.py").touch()
        text = PLUGIN.replace("from helper", "from mine.helper")
    plugin = str(main) if layout == "file" else "mine.shrink"
    main.write_text(text)
    helper.write_text("FACTOR = 0.5\n")
    first = ids_of(plugin)
    assert ids_of(plugin) == first
    main.write_text(f"{text}\n# changed")
    second = ids_of(plugin)
    helper.write_text("FACTOR = 0.5  # changed\n")
    third = ids_of(plugin)
    for one, other in ((first, second), (second, third)):
        assert [a == b for a, b in zip(one, other, strict=True)] == [False, False, True, False]


def test_code_in_a_script_is_that_of_the_class_alone(tmp_path: Path) -> None:
    script = "from plastibench.config.code_digest import code_of\nclass A:\n    x = {0}\n    def f(self): return {1}\n"
    script += "print(code_of(A))  # {2}\n"

    def code(*values: object) -> str:
        (tmp_path / "script.py").write_text(script.format(*values))
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        return subprocess.check_output([sys.executable, "script.py"], cwd=tmp_path, text=True, env=environment)

    assert len(code(1, 2, "a").strip()) == 16
    assert code(1, 2, "a") == code(1, 2, "b")
    assert code(1, 2, "a") != code(3, 2, "a") and code(1, 2, "a") != code(1, 3, "a")


def test_code_without_a_source_is_its_compiled_functions() -> None:
    def made(body: str) -> type:
        space: dict[str, Any] = {"__name__": "__main__"}
        exec(f"class A:\n  def __post_init__(self): return {body}", space)
        return space["A"]  # type: ignore[no-any-return]

    assert code_of(made("1")) == code_of(made("1")) != code_of(made("2"))


def test_built_in_classes_have_no_code_but_a_version_other_than_1() -> None:
    assert RunSpec.make("cl-digits", "mlp", "rnr").code == {}
    sac = RunSpec.make("rl-pendulum", "sac-mlp")
    assert sac.code == {"agent": "version 2"} and RunSpec.from_toml(sac.to_toml()) == sac
    assert RunSpec.make("rl-minatar-permuted", "dqn-cnn").code == {"env": "version 2"}


def test_values_that_name_a_class_are_part_of_the_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from dataclasses import make_dataclass

    (tmp_path / "theirs.py").write_text("class Optimizer: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import theirs  # type: ignore[import-not-found]

    cls = make_dataclass("Config", [("optimizer", str, option("adam", "optimizer"))])
    monkeypatch.setattr(cls, "__module__", "plastibench.agents.made")
    monkeypatch.setitem(registry.agents._entries, "made", registry.Entry("made", cls, ""))
    assert build(cls, {}, "").optimizer == "adam"  # type: ignore[attr-defined]
    known = [RunSpec.make("cl-digits", "made", agent_options={"optimizer": each}).code for each in ("adam", "x:Y")]
    assert known == [{}, {}]
    named = RunSpec.make("cl-digits", "made", agent_options={"optimizer": "theirs:Optimizer"}).code
    assert named == {"agent": code_of(theirs.Optimizer)}
