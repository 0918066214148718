from __future__ import annotations

from typing import Any

import pytest

from plastibench.leaderboard import by_setting, means, method_names
from plastibench.results.result import Result
from tests.leaderboard.made import result


def edited(code: str, **more: Any) -> Result:
    """A result of one version of a plugin."""
    made = result("reset", **more)
    ids = {"id": f"{made.id}{code[:4]}", "group": f"{made.group}{code[:4]}"}
    return made.model_copy(update={"code": {"intervention": code}, **ids})


def test_versions_of_a_plugin_have_names_of_their_own_in_all_settings() -> None:
    here, there = {"env_options": {"epochs": 2}}, {"env_options": {"epochs": 5}}
    found = [edited("92d6b382674e", **here), edited("5f1c7c04aa65", **here), edited("92d6b382674e", **there)]
    names = method_names([result("none"), *found])
    assert list(names.values()) == ["none", "reset code=92d6b3", "reset code=5f1c7c", "reset code=92d6b3"]
    alone = [edited("92d6b382674e", **here), edited("5f1c7c04aa65", **there)]
    assert list(method_names(alone).values()) == ["reset code=92d6b3", "reset code=5f1c7c"]
    assert list(method_names(found[:1]).values()) == ["reset"]


def test_names_are_those_of_the_leaderboard_and_unique() -> None:
    found = [result("rnr"), result("rnr", representative=64), result("rnr", every=7), edited("version 2")]
    alike = result("rnr").model_copy(update={"group": "other_0123"})
    names = method_names([*found, alike])
    assert len(set(names.values())) == len(names) == 5
    assert names[found[1].group] == "rnr representative=64" and names[found[2].group] == "rnr every=7"
    assert names["other_0123"] == "rnr representative=2048 (0123)"
    for setting in by_setting([*found, alike]):
        for method in setting.methods:
            for run in method.runs.values():
                assert method.name.startswith(names[run.group])


@pytest.mark.parametrize(
    ("name", "versions"),
    [
        ("reset", {"92d6b3", "5f1c7c"}),
        ("reset code=92d6b3", {"92d6b3"}),
        ("reset code=5f1c7c (DIGEST)", {"5f1c7c"}),
        ("reset code=000000", set()),
        ("code=92d6b3", set()),
        ("reset every=7", set()),
    ],
)
def test_a_name_means_the_versions_that_it_states(name: str, versions: set[str]) -> None:
    found = [edited("92d6b382674e"), edited("5f1c7c04aa65"), result("none")]
    wanted = name.replace("DIGEST", found[1].group.rpartition("_")[2])
    assert {run.code["intervention"][:6] for run in found if means(wanted, run)} == versions


def test_titles_of_settings_mean_their_runs() -> None:
    usual = result("none", env_options={"noise": (0.5, 0.1, 0.0), "epochs": 20})
    variants = [
        result("none", env_options={"epochs": 5}),
        result("none", agent_options={"lr": 0.5}),
        result("none", version=2),
        result("none", data="ffffffffffff"),
    ]
    found = [usual, *variants]
    settings = by_setting(found)
    assert len(settings) == len(found)
    for setting in settings:
        meant = [run for run in found if means(setting.env, run, "env") and means(setting.agent, run, "agent")]
        assert [run.id for run in meant] == [run.id for run in setting.runs], setting.title
    assert not means("cl-digits", usual, "env")  # the name alone means the default options
