"""Seeded plugins with mistakes: in the file, in the class, in its options and in its hooks."""

from __future__ import annotations

from pathlib import Path
from random import Random

from tests.support.mutations import harmed, mutated_text

INTERVENTION = '''\
from dataclasses import dataclass
from typing import Any, Literal

import torch

import plastibench as pb

{top}

@pb.register_intervention({name})
@dataclass
class Mine(pb.Intervention):
    """Halve every weight."""

    factor: float = pb.option(0.5, "fraction that remains", low=0, high=1)
    {option}

    {hook}

    def intervene(self, network, batch):
        {act}
        with torch.no_grad():
            for parameter in network.module.parameters():
                parameter.mul_(self.factor)
        return {report}
{bottom}
'''
AGENT = '''\
from dataclasses import dataclass

import torch
from torch import nn

import plastibench as pb
from plastibench.agents.classifier import ClassifierConfig

{top}

@pb.register_agent({name})
@dataclass(frozen=True)
class Mine(ClassifierConfig):
    """One layer."""

    size: int = pb.option(8, "units", low=1, high=64)
    {option}

    def module(self, shape, classes):
        {act}
        return {report}
{bottom}
'''
DEFAULTS = {"top": "", "name": '"mine"', "option": "", "act": "", "bottom": "", "hook": ""}
LAYER = "nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))"
RAISED = (
    'ValueError("two\\nlines")',
    'KeyError("x")',
    "RuntimeError()",
    "AssertionError",
    "StopIteration",
    "RecursionError",
    "MemoryError()",
    "NotImplementedError",
    'UnicodeDecodeError("utf-8", b"\\xff", 0, 1, "bad")',
    'OSError(2, "No such file", "x")',
    'ImportError("no module")',
    'SystemExit("bye")',
    "SystemExit(0)",
    'SyntaxError("made up")',
    "torch.cuda.OutOfMemoryError()",
    'torch.linalg.LinAlgError("singular")',
    'pb.UserError("two\\nlines")',
    'type("Odd", (Exception,), {"__str__": lambda self: 1 / 0})()',
    'ValueError("\\ud800")',
    'ValueError("x" * 100_000)',
)
VALUES = ("None", "3", '"x"', "[]", "{}", "float('nan')", "torch.ones(3)", "object()", "Mine", "lambda: 1", "-1")
VALUES += ("...",)
NAMES = ('""', '"a b"', '"rnr"', '"mlp"', '"none"', '"+"', '"a+b"', '"../x"', '"x" * 300', "None", "3")
NAMES += ('"mine", 3', "b'x'")
NAMES += ('"mine", nosuch=1', '"mine", factor="x"', '"mine", size=-1', '"mine-*", factor="*"', "")
NAMES += ('"mine", "two\\nlines"',)
TYPES = ("float", "int", "bool", "str", "nosuch", "Any", "list", "dict[str, int]", "object", "tuple[int, ...]")
TYPES += ('Literal["a", "b"]', "int | None", "torch.Tensor", '"nosuch"', "tuple", "Literal[()]", "3")
ARGUMENTS = ('"help"', "3", '"help", low="x"', '"help", low=5, high=1', '"help", formerly="factor"')
ARGUMENTS += ('"help", names="x"', '"help", old_values=3', "", '"help", formerly=3', '"100 %"', '"%(nosuch)s {x}"')
OPTIONS = ("seed", "factor", "self", "batch", "_hidden", "ä", "size", "lr", "network", "prepare", "state_dict", "every")
HOOKS = ("prepare", "penalty", "before_update", "after_update", "evaluated", "wrapped", "state_dict", "load_state_dict")
HOOKS += ("intervine", "__init__", "__post_init__", "__init_subclass__", "__getattr__", "__eq__", "kind")
HOOKS += ("extra_memory",)
SIGNATURES = ("self, *arguments", "self, network", "self, network, batch", "self", "", "*, network", "self, state")
FILES = ("mine.py",) * 12 + ("random.py", "torch.py", "plastibench.py", "rnr.py", "a.b.py", "a b.py", "-x.py", "ä.py")
FILES += (".py", "tests.py", "__main__.py", "MINE.PY", "mine", "mine.txt", "x" * 200 + ".py")


def write_plugin(folder: Path, dice: Random) -> tuple[Path, str, str]:
    """Write a plugin that has mistakes.

    Returns:
        Its file, what is wrong with it, and the kind of class that it registers as ``mine``.
    """
    kind = dice.choice(["intervention", "intervention", "intervention", "agent"])
    path = folder / dice.choice(FILES)
    text = filled(kind, dice)
    wrong = dice.choice(["class"] * 8 + ["text", "text", "bytes", "encoding", "huge", "no file"])
    if wrong == "no file":
        dice.choice([path.mkdir, lambda: path.symlink_to(path), lambda: path.symlink_to("nowhere"), lambda: None])()
        return path, wrong, kind
    if wrong == "text":
        text = mutated_text(text, dice)
    elif wrong == "huge":
        text += dice.choice(["(" * 1000, "x = " + "-" * 100_000 + "1", "#" * 10_000_000, "[" * 90 + "]" * 90])
    content = text.encode(errors="surrogatepass")
    if wrong == "bytes":
        content = harmed(content, dice)[0]
    elif wrong == "encoding":
        unknown = b"# coding: nosuch\n"
        content = dice.choice([text.encode("utf-16"), content + b"\xff", b"\0" + content, unknown + content])
    path.write_bytes(content)
    return path, wrong, kind


def filled(kind: str, dice: Random) -> str:
    """The source of a class with one to two mistakes."""
    parts = {**DEFAULTS, "report": "pb.Report(parameters=3)" if kind == "intervention" else LAYER}
    for _ in range(dice.choice([1, 1, 2])):
        place = dice.choice(["top", "bottom", "name", "option", "option", "act", "report", "hook", "hook", "hook"])
        value = dice.choice([f"return {dice.choice(VALUES)}", f"raise {dice.choice(RAISED)}"])
        if place in ("top", "bottom"):
            parts[place] = f"raise {dice.choice(RAISED)}"
        elif place == "name":
            parts[place] = dice.choice(NAMES)
        elif place == "act":
            parts[place] = value
        elif place == "report":
            parts[place] = dice.choice([*VALUES, *(f"pb.Report(parameters={v}, units={v})" for v in VALUES)])
        elif place == "option":
            default = dice.choice([*VALUES, "5", '"a"', "(1, 2)", "True"])
            declared = dice.choice([f"pb.option({default}, {dice.choice(ARGUMENTS)})", default, "pb.option()"])
            parts[place] = f"{dice.choice(OPTIONS)}: {dice.choice(TYPES)} = {declared}"
        else:
            head = f"{dice.choice(['def', 'def', 'def', 'async def'])} {dice.choice(HOOKS)}({dice.choice(SIGNATURES)})"
            decorator = dice.choice(["", "", "", "@property\n    ", "@staticmethod\n    ", "@classmethod\n    "])
            constant = f"{dice.choice(HOOKS)} = {dice.choice(VALUES)}"
            parts[place] = dice.choice([f"{decorator}{head}: {value}"] * 4 + [constant])
    return (INTERVENTION if kind == "intervention" else AGENT).format(**parts)
