from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

import pytest

from plastibench.config.errors import UserError
from plastibench.config.options import as_dict, build, describe_type, option, options_of
from plastibench.interventions.base import Intervention


@dataclass(frozen=True)
class Sample:
    share: float = option(0.5, "a fraction", low=0, high=1)
    batch_size: int = option(4, "a count", low=1)
    top: float = option(0.0, "a bounded number", high=9)
    fast: bool = option(False, "a flag")
    name: str = option("x", "a text")
    limit: int | None = option(None, "may be none", low=1)
    mode: Literal["one", "two"] = option("one", "a choice")
    noise: tuple[float, ...] = option((0.5, 0.0), "a list", low=0, high=1)


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("share", "0.25", 0.25),
        ("share", 1, 1.0),
        ("share", "1e-3", 0.001),
        ("share", 0, 0.0),
        ("share", 1.0, 1.0),
        ("batch-size", "7", 7),
        ("batch_size", 7, 7),
        ("batch_size", 7.0, 7),
        ("fast", "yes", True),
        ("fast", "False", False),
        ("fast", True, True),
        ("fast", "0", False),
        ("name", "", ""),
        ("limit", "none", None),
        ("limit", None, None),
        ("limit", "3", 3),
        ("mode", "two", "two"),
        ("noise", "0.1,0.2,0", (0.1, 0.2, 0.0)),
        ("noise", [1, 0.5], (1.0, 0.5)),
        ("noise", "0.3", (0.3,)),
    ],
)
def test_values_are_converted_to_the_type_of_the_option(name: str, given: object, value: object) -> None:
    found = getattr(build(Sample, {name: given}, "sample"), name.replace("-", "_"))
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("share", "abc", "sample: share is 'abc'; expected a number"),
        ("share", "", "sample: share is ''; expected a number"),
        ("share", "1.5", "sample: share is 1.5; it must be between 0 and 1"),
        ("share", -0.1, "sample: share is -0.1; it must be between 0 and 1"),
        ("share", "nan", "sample: share is 'nan'; expected a finite number"),
        ("share", "inf", "sample: share is 'inf'; expected a finite number"),
        ("share", True, "sample: share is True; expected a number"),
        ("share", [0.5], "sample: share is [0.5]; expected a number"),
        ("share", date(2024, 1, 1), "expected a number"),
        ("batch-size", "1.5", "sample: batch-size is '1.5'; expected an integer"),
        ("batch_size", 1.5, "sample: batch_size is 1.5; expected an integer"),
        ("batch_size", 0, "sample: batch_size is 0; it must be at least 1"),
        ("batch_size", float("inf"), "sample: batch_size is inf; expected an integer"),
        ("batch_size", float("nan"), "sample: batch_size is nan; expected an integer"),
        ("share", 10**400, "an integer that is too large"),
        ("top", 10, "sample: top is 10.0; it must be at most 9"),
        ("fast", "maybe", "sample: fast is 'maybe'; expected true or false"),
        ("fast", 1, "sample: fast is 1; expected true or false"),
        ("name", 3, "sample: name is 3; expected text"),
        ("limit", "0", "sample: limit is 0; it must be at least 1"),
        ("limit", "few", "sample: limit is 'few'; expected an integer"),
        ("mode", "tow", "sample: mode is 'tow'; did you mean 'two'? (choose from one, two)"),
        ("mode", ["one"], "choose from one, two"),
        ("noise", "0.1,x", "sample: noise is 'x'; expected a number"),
        ("noise", [0.1, 2], "sample: noise is 2.0; it must be between 0 and 1"),
        ("noise", 0.1, "sample: noise is 0.1; expected a list"),
        ("noise", {"a": 1}, "expected a list"),
        ("batchsize", 3, "sample has no option 'batchsize'; did you mean 'batch-size'?"),
        ("zzz", 3, "sample has no option 'zzz' (options: share, batch-size, top, fast, name, limit, mode, noise)"),
    ],
)
def test_invalid_value_is_reported_in_one_line(name: str, given: object, message: str) -> None:
    with pytest.raises(UserError) as caught:
        build(Sample, {name: given}, "sample")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_value_error_of_the_class_is_reported_with_its_place() -> None:
    @dataclass
    class Strict:
        a: int = option(1, "")

        def __post_init__(self) -> None:
            if self.a == 13:
                raise ValueError("13 is unlucky")

    assert build(Strict, {"a": 12}, "here").a == 12
    with pytest.raises(UserError, match="here: 13 is unlucky"):
        build(Strict, {"a": 13}, "here")


def test_as_dict_omits_none_and_converts_tuples_to_lists() -> None:
    assert as_dict(Sample()) == {
        "share": 0.5,
        "batch_size": 4,
        "top": 0.0,
        "fast": False,
        "name": "x",
        "mode": "one",
        "noise": [0.5, 0.0],
    }
    assert as_dict(Sample(limit=2))["limit"] == 2
    assert build(Sample, as_dict(Sample(limit=2, noise=())), "sample") == Sample(limit=2, noise=())


def test_fields_outside_the_constructor_are_not_options() -> None:
    @dataclass
    class Hidden:
        a: int = option(1, "")
        b: int = dataclasses.field(default=2, init=False)

    assert list(options_of(Hidden)) == ["a"]
    with pytest.raises(UserError, match="has no option 'b'"):
        build(Hidden, {"b": 1}, "hidden")


def test_intervention_without_options_need_not_be_a_dataclass() -> None:
    class Plain(Intervention):
        """A custom method without options."""

    assert isinstance(build(Plain, {}, "intervention plain"), Plain)
    assert as_dict(Plain()) == {}
    with pytest.raises(UserError, match="intervention plain has no option 'tau'"):
        build(Plain, {"tau": 1}, "intervention plain")


@pytest.mark.parametrize(
    ("name", "text"),
    [("share", "float"), ("batch_size", "int"), ("mode", "{one,two}"), ("noise", "float,…"), ("name", "text")],
)
def test_help_describes_the_type(name: str, text: str) -> None:
    assert describe_type(Sample, name) == text


def test_help_describes_the_type_of_an_optional_value() -> None:
    assert "int" in describe_type(Sample, "limit")


@pytest.mark.parametrize("kind", ["envs", "agents", "interventions"])
def test_every_registered_option_is_documented_and_its_default_is_valid(kind: str) -> None:
    from plastibench.config import registry

    for name, entry in getattr(registry, kind).all().items():
        cls: Any = entry.load()
        assert entry.summary and "\n" not in entry.summary, name
        for field in options_of(cls).values():
            assert field.metadata.get("help"), f"{name}: {field.name}"
            assert describe_type(cls, field.name)
        built = build(cls, entry.defaults, name)
        assert build(cls, as_dict(built), name) == built or kind == "interventions"
