from __future__ import annotations

import sys
import typing
from pathlib import Path
from typing import Any

import pytest

from plastibench.config import registry
from plastibench.config.discovery import Registration, SourceClass, registered_classes, summary_of
from plastibench.config.options import describe, options_of
from plastibench.config.registry import Registry

BASE = """\
raise AssertionError("never imported")


class Base:
    kind = "units"
    cost = 1.0

    def prepare(self): ...

    def act(self): ...
"""
METHODS = '''\
@register_thing("plain")
@register_thing("strong", "Stronger, in "
                "two literals", factor=-2e-1, parts=("a", "b"), limit=None)
@dataclass
class Method(Base):
    """Do something. Then more.

    And so on.
    """

    cost = 2.0
    computed = 1 + len("x")
    factor: float = 0.5

    def act(self): ...


@register_other("other")
class Other: ...
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "things_to_discover"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise AssertionError('never imported')")
    (folder / "base.py").write_text(BASE)
    (folder / "methods.py").write_text(METHODS)
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_registered_classes_are_read_without_import(package: Path) -> None:
    assert registered_classes("things_to_discover", "register_thing") == [
        SourceClass(
            target="things_to_discover.methods:Method",
            registrations=(
                Registration("plain", "Do something. Then more", {}),
                Registration(
                    "strong", "Stronger, in two literals", {"factor": -0.2, "parts": ("a", "b"), "limit": None}
                ),
            ),
            bases=("Base",),
            attributes={"kind": "units", "cost": 2.0},
            methods={"prepare": "Base", "act": "Method"},
        )
    ]
    assert "things_to_discover" not in sys.modules


@pytest.mark.parametrize("arguments", ["NAME", '"a", factor=FACTOR', '"a", **SMALL', 'f"a{1}"'])
def test_arguments_that_are_not_literals_are_an_error(package: Path, arguments: str) -> None:
    (package / "more.py").write_text(f"\n@register_thing({arguments})\nclass More: ...\n")
    with pytest.raises(ValueError, match=r"more\.py:2: the arguments of a register decorator must be literals"):
        registered_classes("things_to_discover", "register_thing")


@pytest.mark.parametrize(
    ("docstring", "summary"),
    [("One line.", "One line"), ("First\n\nsecond.", "First"), ("See e.g. this…", "See e.g. this…"), (None, "")],
)
def test_summary_is_the_first_line(docstring: str | None, summary: str) -> None:
    assert summary_of(docstring) == summary


@pytest.mark.parametrize("known", [registry.envs, registry.agents, registry.interventions], ids=lambda each: each.noun)
def test_declared_options_are_those_of_the_class(known: Registry) -> None:
    def facts(cls: type) -> dict[str, Any]:
        hints = typing.get_type_hints(cls)
        return {
            name: (describe(hints[name]), field.default, dict(field.metadata))
            for name, field in options_of(cls).items()
        }

    for name, entry in known.builtin().items():
        assert facts(known.declaration(name)) == facts(entry.load()), name
    if known is registry.interventions:
        name = "l2-init+reset"
        assert facts(known.declaration(name)) == facts(known[name].load())
