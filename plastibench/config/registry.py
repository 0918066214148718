"""Registries of everything that has a name: task streams, agents and interventions."""

from __future__ import annotations

import fnmatch
import importlib
import importlib.metadata
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from plastibench.config.code_digest import code_of
from plastibench.config.declarations import make_class, prefixed
from plastibench.config.discovery import SourceClass, registered_classes, summary_of
from plastibench.config.errors import UserError, did_you_mean
from plastibench.config.options import Renames, accept_old_names, renames_of

T = TypeVar("T", bound=type[Any])
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,99}", re.ASCII)  # names become parts of folder names


@dataclass(frozen=True)
class Entry:
    """A registered name.

    Attributes:
        name: What the user types. A family ends with ``*``, for example ``rl-atari-*``.
        target: The class, ``"module:Class"``, or a function that makes the class.
        summary: One line for ``plastibench list``.
        defaults: Options that this name sets differently from the class.
        source: For a built-in name, the class as read from its source code.
    """

    name: str
    target: type | str | Callable[[], type]
    summary: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    source: SourceClass | None = None

    def load(self) -> type:
        """Return the class. Import its module if necessary."""
        if isinstance(self.target, str):
            loaded = load(self.target)
            assert isinstance(loaded, type)
            return loaded
        return self.target if isinstance(self.target, type) else self.target()

    @property
    def kind(self) -> str:
        """The ``kind`` that a built-in class declares, for example ``units``; empty for other classes."""
        return str(self.source.attributes.get("kind", "")) if self.source else ""


class UnknownNameError(UserError, KeyError):
    """A name is not registered."""

    __str__ = UserError.__str__  # KeyError would show quotes


class Registry(Mapping[str, Entry]):
    """Registry of the names of one kind of component, for example interventions.

    - Built-in names are read from the source files of a package, without importing them.
    - Other packages provide names through the entry point group ``plastibench.<noun>s``. Entry points are loaded only
      when a name is unknown or all names are listed.
    - Any module may register a class with the decorator :meth:`register`.
    """

    def __init__(self, noun: str, package: str = "", kinds: tuple[str, ...] = (), combine: str = "") -> None:
        """Create a registry.

        Args:
            noun: Singular noun for messages, for example ``intervention``.
            package: Package that contains the built-in classes.
            kinds: Order in which built-in names are listed, by the ``kind`` of their classes.
            combine: ``"module:function"`` that makes one class of several entries, for names such as ``a+b``.
        """
        self.noun, self._package, self._kinds, self._combine = noun, package, kinds, combine
        self._entries: dict[str, Entry] = {}
        self._declarations: dict[str, type] = {}  # declarations of built-in classes, by target
        self._discovered = self._scanned = False

    def register(self, name: str, summary: str = "", /, **defaults: Any) -> Callable[[T], T]:
        """Register the decorated class. Use the decorator several times to give a class several names.

        Args:
            name: The name. ``"rl-atari-*"`` matches every name with this prefix.
            summary: One line for ``plastibench list`` (default: the first line of the class docstring).
            defaults: Options that this name sets differently from the class. The value ``"*"`` is replaced with the
                part of the name that the ``*`` stands for.
        """
        if not isinstance(summary, str):
            raise TypeError(f"the summary of {self.noun} '{name}' must be a string")

        def decorate(cls: T) -> T:
            accept_old_names(cls)
            code_of(cls)  # now, because its file may change before the class is used
            if not (self._package and cls.__module__.startswith(f"{self._package}.")):  # built-in names are discovered
                self.add(Entry(name, cls, summary or summary_of(inspect.getdoc(cls)), defaults))
            return cls

        return decorate

    def add(self, entry: Entry) -> None:
        """Add an entry.

        Raises:
            ValueError: The name is taken, or contains characters other than letters, digits, ``.``, ``_``, ``+`` and
                ``-``. Silently replacing a method would invalidate comparisons.
        """
        self._discover()
        if not _NAME.fullmatch(entry.name.removesuffix("*")):
            raise ValueError(f"{self.noun} {entry.name!r} is not a name; use letters, digits, '.', '_' and '-'")
        if entry.name in self._entries:
            raise ValueError(f"{self.noun} '{entry.name}' is already registered; choose another name")
        self._entries[entry.name] = entry

    def __getitem__(self, name: str) -> Entry:
        """Look up a name, without importing its class.

        Raises:
            UserError: Unknown name, or a name that cannot be part of a folder's name.
        """
        self._discover()
        if self._combine and "+" in name and name not in self._entries:
            return self._combination(name)
        if name not in self._entries:
            self._scan_entry_points()
        if name in self._entries:
            return self._entries[name]
        for entry in self._entries.values():
            rest = name.removeprefix(entry.name.removesuffix("*"))
            if entry.name.endswith("*") and rest not in ("", name):
                if not _NAME.fullmatch(name):
                    raise UnknownNameError(
                        f"unknown {self.noun} {name[:100]!r}: a name has up to 100 letters, digits, '.', '_' and '-'"
                    )
                defaults = {option: rest if value == "*" else value for option, value in entry.defaults.items()}
                return replace(entry, name=name, defaults=defaults)
        hint = did_you_mean(name, self._entries) if len(name) < 100 else ""
        name = name if len(name) <= 100 else f"{name[:100]}…"
        raise UnknownNameError(
            f"unknown {self.noun} '{name}'{hint} (all names: plastibench list {self.noun}s; to load your own: --plugin)"
        )

    def __iter__(self) -> Iterator[str]:
        """Iterate over all names, built-in ones first."""
        return iter(self.all())

    def __len__(self) -> int:
        """Number of names."""
        return len(self.all())

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        """Two registries are equal only if they are the same object."""
        return self is other

    def parts(self, name: str) -> list[Entry]:
        """Return the entries that a name such as ``a+b`` combines; any other name has one entry."""
        if self._combine and "+" in name and name not in self._entries:
            return [self[part] for part in name.split("+")]
        return [self[name]]

    def declaration(self, name: str) -> type:
        """Return a class with the options of a name; for a built-in name, without behavior or imports."""
        parts = self.parts(name)
        if len(parts) == 1:
            return self._declared(parts[0])
        fields = [each for part in parts for each in prefixed(part.name, self._declared(part), part.defaults)]
        return make_class(name, {option: (hint, field) for option, hint, field in fields})

    def _declared(self, entry: Entry) -> type:
        if entry.source is None:
            return entry.load()
        if entry.source.target not in self._declarations:
            self._declarations[entry.source.target] = make_class(entry.name, entry.source.options)
        return self._declarations[entry.source.target]

    def renames(self, name: str) -> Renames:
        """What was renamed among the options of a name; an unknown name has no renames."""
        try:
            return renames_of(self.declaration(name))
        except UserError:
            return Renames()

    def all(self) -> dict[str, Entry]:
        """Every entry by name; built-in ones first."""
        self._discover()
        self._scan_entry_points()
        return dict(self._entries)

    def builtin(self) -> dict[str, Entry]:
        """The built-in entries by name, without loading entry points."""
        self._discover()
        return {name: entry for name, entry in self._entries.items() if entry.source}

    def custom(self) -> list[Entry]:
        """The entries that were registered so far by code outside plastibench."""
        return [entry for entry in self._entries.values() if entry.source is None]

    def names(self, pattern: str = "*") -> list[str]:
        """Names that match a glob pattern, for example ``"re*"``."""
        return [name for name in self.all() if fnmatch.fnmatchcase(name, pattern)]

    def _discover(self) -> None:
        if self._discovered or not self._package:
            return
        self._discovered = True
        entries = [
            Entry(found.name, source.target, found.summary, found.defaults, source)
            for source in registered_classes(self._package, f"register_{self.noun}")
            for found in source.registrations
        ]
        for entry in sorted(entries, key=self._position):
            self.add(entry)

    def _position(self, entry: Entry) -> int:
        return self._kinds.index(entry.kind) if entry.kind in self._kinds else len(self._kinds)

    def _combination(self, name: str) -> Entry:
        parts = name.split("+")
        if len(set(parts)) < len(parts):
            raise UnknownNameError(f"{self.noun} '{name}' contains the same part twice")
        entries = {part: self[part] for part in parts}
        return Entry(name, lambda: load(self._combine)(entries), " + ".join(parts))

    def _scan_entry_points(self) -> None:
        if self._scanned:
            return
        self._scanned = True
        for point in importlib.metadata.entry_points(group=f"plastibench.{self.noun}s"):
            if point.name in self._entries:
                continue
            try:
                loaded = point.load()
                if point.name not in self._entries:  # the module may have used the decorator as well
                    self.add(Entry(point.name, loaded, summary_of(inspect.getdoc(loaded))))
            except Exception as error:  # a broken plugin must not break the rest
                reason = f"{type(error).__name__}: {error}".partition("\n")[0]
                print(f"plastibench: cannot load plugin {point.name} ({point.value}): {reason}", file=sys.stderr)


def load(target: str) -> Any:
    """Import ``"module:name"`` and return the object."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


interventions = Registry(
    "intervention",
    "plastibench.interventions",
    ("baseline", "reset", "weights", "units", "wrapper", "optimizer", "regularizer", "averaging", "architecture"),
    "plastibench.interventions.combined:combine",
)
agents = Registry("agent", "plastibench.agents", ("classifier", "rl"))
envs = Registry("env", "plastibench.envs", ("task stream", "rl"))
REGISTRIES = {registry.noun: registry for registry in (envs, agents, interventions)}

register_intervention = interventions.register
register_agent = agents.register
register_env = envs.register
list_interventions = interventions.names
list_agents = agents.names
list_envs = envs.names
