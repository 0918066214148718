"""One small registry for everything that has a name: task streams, agents, interventions, metrics."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from plastibench.config.errors import UserError, did_you_mean

T = TypeVar("T", bound=type[Any])


@dataclasses.dataclass(frozen=True)
class Entry:
    """A registered name.

    Attributes:
        name: What the user types.
        target: The class, or ``"module:Class"``, which is imported when it is needed and not before, or what makes it.
        summary: One line for ``plastibench list``.
        defaults: Options that this name sets differently from the class.
    """

    name: str
    target: type | str | Callable[[], type]
    summary: str
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def load(self) -> type:
        """The class itself."""
        if isinstance(self.target, str):
            module, _, attribute = self.target.partition(":")
            loaded = getattr(importlib.import_module(module), attribute)
            assert isinstance(loaded, type)
            return loaded
        return self.target if isinstance(self.target, type) else self.target()


class Registry:
    """Names of one kind (``"intervention"``), with did-you-mean and entry points.

    Built-in names are added as strings, so that listing them imports nothing. Packages ship theirs through the entry
    point group ``plastibench.<kind>s``; those are looked up only when a name is unknown or everything is listed.
    """

    def __init__(self, kind: str, builtin: str, combine: str = "") -> None:
        """Make an empty registry.

        Args:
            kind: Singular noun for messages.
            builtin: Module that registers the built-in names when it is imported.
            combine: ``"module:function"`` that makes one class of several entries, for names like ``a+b``.
        """
        self.kind = kind
        self._builtin = builtin
        self._combine = combine
        self._entries: dict[str, Entry] = {}
        self._families: dict[str, tuple[Entry, str]] = {}
        self._scanned = False

    def add(self, name: str, target: type | str, summary: str, **defaults: Any) -> None:
        """Register ``name``.

        Raises:
            ValueError: The name is taken; silently replacing a method would falsify comparisons.
        """
        if name in self._entries:
            raise ValueError(f"{self.kind} '{name}' is registered already; choose another name")
        self._entries[name] = Entry(name, target, summary, defaults)

    def add_family(self, prefix: str, target: type | str, summary: str, option: str, **defaults: Any) -> None:
        """Register every name that begins with ``prefix``; what follows it becomes the value of ``option``."""
        self._families[prefix] = Entry(f"{prefix}*", target, summary, defaults), option

    def register(self, name: str, **defaults: Any) -> Callable[[T], T]:
        """Class decorator: register the decorated class as ``name``; its first docstring line is the summary."""

        def decorate(cls: T) -> T:
            self.add(name, cls, _first_line(cls), **defaults)
            return cls

        return decorate

    def __getitem__(self, name: str) -> Entry:
        """The entry of ``name``.

        Raises:
            UserError: No such name, with the closest one that exists.
        """
        importlib.import_module(self._builtin)
        if self._combine and "+" in name and name not in self._entries:
            return self._combination(name)
        if name not in self._entries:
            self._scan_entry_points()
        for prefix, (entry, option) in self._families.items():
            if name not in self._entries and name.startswith(prefix) and name != prefix:
                defaults = {**entry.defaults, option: name.removeprefix(prefix)}
                return dataclasses.replace(entry, name=name, defaults=defaults)
        if name not in self._entries:
            hint = did_you_mean(name, self._entries)
            raise UserError(
                f"no {self.kind} '{name}'{hint} (plastibench list {self.kind}s shows all; --plugin brings your own)"
            )
        return self._entries[name]

    def _combination(self, name: str) -> Entry:
        parts = name.split("+")
        if len(set(parts)) < len(parts):
            raise UserError(f"{self.kind} '{name}' names one of its parts twice")
        entries = {part: self[part] for part in parts}
        module, _, function = self._combine.partition(":")

        def load() -> type:
            combined: type = getattr(importlib.import_module(module), function)(entries)
            return combined

        return Entry(name, load, " + ".join(parts), {})

    def all(self) -> dict[str, Entry]:
        """Every entry by name, built-in ones first; a family under its prefix and an asterisk."""
        importlib.import_module(self._builtin)
        self._scan_entry_points()
        families = (entry for entry, _ in self._families.values())
        return {**self._entries, **{entry.name: entry for entry in families}}

    @property
    def builtin(self) -> tuple[str, ...]:
        """The names registered so far, without looking for more."""
        return tuple(self._entries)

    def _scan_entry_points(self) -> None:
        if self._scanned:
            return
        self._scanned = True
        for point in importlib.metadata.entry_points(group=f"plastibench.{self.kind}s"):
            if point.name in self._entries:
                continue
            try:
                loaded = point.load()
                if point.name not in self._entries:  # the module may have registered itself with the decorator
                    self.add(point.name, loaded, _first_line(loaded))
            except Exception as error:  # a broken plugin must not take the rest down with it
                reason = f"{type(error).__name__}: {error}".partition("\n")[0]
                print(f"plastibench: plugin {point.name} ({point.value}) does not load: {reason}", file=sys.stderr)


def _first_line(cls: type) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0]


interventions = Registry("intervention", "plastibench.interventions", "plastibench.interventions.combined:combine")
agents = Registry("agent", "plastibench.agents")
envs = Registry("env", "plastibench.envs")

register_intervention = interventions.register
register_agent = agents.register
register_env = envs.register
