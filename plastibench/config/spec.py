"""Run specs: the names and options of env, agent and intervention that define a run, stored as TOML."""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from plastibench.config import identity, options, registry
from plastibench.config.code_digest import code_of, digest
from plastibench.config.errors import UserError, all_of, did_you_mean
from plastibench.config.options import option

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PARTS = identity.PARTS
_TABLES = (*PARTS, "run")
_LARGEST_FILE = 4 << 20  # bytes
MOST_RUNS = 100_000  # per command
_CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")  # module:Class


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Options of the run itself."""

    seed: int = option(0, "random seed; for several runs 0,1,2 or 0..4", low=0)
    every: int = option(0, "intervene every N updates; 0: at task boundaries", low=0)
    representative: int = option(2048, "number of samples that interventions use", low=1)
    device: str = option("auto", "cpu, cuda, cuda:1, …; auto: a GPU if available")
    deterministic: bool = option(False, "use deterministic kernels only (slower on a GPU)")
    # None keeps the ids of specs that were made before the option existed.
    roles: tuple[str, ...] | None = option(None, "networks to modify, such as critic,actor (default: all)")
    until: int | None = option(None, "do not intervene after N updates (default: no limit)", low=0)
    offline_updates: int | None = option(
        None, "RL: extra updates after each intervention, before the agent acts again (default: 0)", low=0
    )
    checkpoint_memory: bool | None = option(
        None,
        "RL: save the replay buffer in checkpoints, so that resuming does not repeat all actions; the result is then "
        "not bit-identical to that of an uninterrupted run",
    )
    metrics: tuple[str, ...] | None = option(None, "additional metrics or groups of metrics, such as ranks,probes")

    def __post_init__(self) -> None:
        if self.metrics:
            registry.load("plastibench.metrics:select")(self.metrics)  # raises UserError for an unknown name


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """Everything that the result of a run depends on.

    Attributes:
        env: Name and all options of the env.
        agent: Name and all options of the agent.
        intervention: Name and all options of the intervention.
        run: Seed, schedule, device and other options of the run itself.
        code: The code of plugins, and versions of built-in classes other than 1, by part.
    """

    env: tuple[str, Mapping[str, Any]]
    agent: tuple[str, Mapping[str, Any]]
    intervention: tuple[str, Mapping[str, Any]]
    run: RunOptions
    code: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def make(
        cls,
        env: str,
        agent: str,
        intervention: str = "none",
        *,
        env_options: Mapping[str, Any] | None = None,
        agent_options: Mapping[str, Any] | None = None,
        intervention_options: Mapping[str, Any] | None = None,
        quiet: bool = False,
        **run: Any,
    ) -> RunSpec:
        """Create a spec from names and options, and fill in the defaults.

        Old names of options are replaced, with a line on stderr unless ``quiet``. The schedule of interventions is left
        out if it cannot change the run, because the intervention is ``none``.

        Raises:
            UserError: A name or option is unknown, or a value is invalid.
        """
        names, given = (env, agent, intervention), (env_options or {}, agent_options or {}, intervention_options or {})
        checks = [functools.partial(check_declared, *each) for each in zip(PARTS, names, given, strict=True)]
        settings, *_ = all_of([lambda: options.build(RunOptions, run, "run", quiet=quiet), *checks])
        parts = [_complete(part, name, each, quiet) for part, name, each in zip(PARTS, names, given, strict=True)]
        if identity.has_idle_schedule(intervention, parts[1][1], options.as_dict(settings)):
            settings = dataclasses.replace(settings, **identity.IDLE)
        spec = cls(parts[0], parts[1], parts[2], settings).current()
        identity.run_id(*spec._identity)  # raises UserError if it is too long
        return spec

    @classmethod
    def from_toml(cls, text: str, where: str = "spec.toml") -> RunSpec:
        """Read the output of :meth:`to_toml`; ``where`` is its origin, for error messages.

        The spec keeps the recorded code digests, even if the plugins have changed since.
        """
        tables = read_tables(text, where)
        for part in PARTS:
            if part not in tables:
                raise UserError(f"{where} has no table [{part}]")
        env, agent, intervention = (tables[part].pop("name") for part in PARTS)
        given: dict[str, Any] = {f"{part}_options": tables[part] for part in PARTS}
        spec = cls.make(env, agent, intervention, quiet=True, **given, **tables.get("run", {}))
        return dataclasses.replace(spec, code=tables.get("code", {}))

    def required_options(self, part: str) -> dict[str, Any]:
        """The options of env, agent or intervention that have no default."""
        name, values = getattr(self, part)
        fields = options.options_of(getattr(registry, f"{part}s").declaration(name))
        return {key: values[key] for key, field in fields.items() if field.metadata.get("required") and key in values}

    def without_intervention(self) -> RunSpec:
        """The same run with the intervention ``none`` and an unchanged schedule."""
        return dataclasses.replace(self, intervention=_complete("intervention", "none", {}, True))

    def to_toml(self) -> str:
        """Return the spec as TOML, with every option."""
        tables = {part: {"name": getattr(self, part)[0], **getattr(self, part)[1]} for part in PARTS}
        code = {"code": dict(self.code)} if self.code else {}
        return tomli_w.dumps({**tables, "run": options.as_dict(self.run), **code})

    @property
    def id(self) -> str:
        """The name of the run: its names, its seed, and a digest of its :attr:`content`."""
        return identity.run_id(*self._identity)

    @property
    def content(self) -> str:
        """Everything that identifies the run. Only the type of the device is included."""
        return identity.content(*self._identity)

    def group(self) -> str:
        """Return an id that is the same for all runs that differ only in their seed or their metrics."""
        return identity.group_id(*self._identity)

    def legacy_ids(self) -> tuple[str, ...]:
        """The ids that earlier versions gave to this run."""
        parts, run, _ = self._identity
        return identity.legacy_ids(parts, run)

    def legacy_groups(self) -> tuple[str, ...]:
        """The groups that earlier versions put this run in."""
        return dataclasses.replace(self, run=dataclasses.replace(self.run, seed=0, metrics=None)).legacy_ids()

    def current(self) -> RunSpec:
        """Return this spec with the digests of the current code, see :attr:`code`."""
        code = {part: _code(part, *getattr(self, part)) for part in PARTS}
        return dataclasses.replace(self, code={part: found for part, found in code.items() if found})

    @property
    def _identity(self) -> tuple[identity.Parts, dict[str, Any], Mapping[str, str]]:
        return [self.env, self.agent, self.intervention], options.as_dict(self.run), self.code

    def changed(self, part: str) -> dict[str, Any]:
        """Return the options of ``env``, ``agent`` or ``intervention`` that differ from the defaults of its name."""
        return changed_options(part, *getattr(self, part))

    def create(self, part: str) -> Any:
        """Construct the task stream, agent config or intervention of this spec."""
        name, values = getattr(self, part)
        entry = getattr(registry, f"{part}s")[name]
        return options.build(entry.load(), values, f"{part} {name}")


def changed_options(part: str, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an env, agent or intervention that differ from the defaults of its name.

    Raises:
        UserError: The name or an option is unknown, or a value is invalid.
    """
    _, usual = _complete(part, name, {}, quiet=True)
    _, given = _complete(part, name, values, quiet=True)
    return {key: value for key, value in given.items() if usual.get(key) != value}


def check_declared(part: str, name: str, values: Mapping[str, Any]) -> None:
    """Check the options of an env, agent or intervention before its class is imported, which takes seconds.

    Raises:
        UserError: A name or option is unknown, a value is invalid, or a required option is not set.
    """
    entry, known = _registry(part)[name], _registry(part).declaration(name)
    built = functools.partial(options.build, known, values, f"{part} {name}", entry.defaults, quiet=True)
    given = {options.field_name(key) for key in (*values, *entry.defaults)}
    all_of([built, lambda: _check_required(part, name, options.options_of(known), given)])


def _check_required(part: str, name: str, fields: Mapping[str, dataclasses.Field[Any]], given: set[str]) -> None:
    for key, field in fields.items():
        if (examples := field.metadata.get("required")) and key not in given:
            raise UserError(f"{part} {name} needs --{part}.{options.flag_name(key)}, for example {examples}")


def read_tables(text: str, where: str) -> dict[str, dict[str, Any]]:
    """Parse the tables ``env``, ``agent``, ``intervention``, ``run`` and ``code`` of a TOML spec.

    Raises:
        UserError: The TOML is invalid, a table is unknown, or a name is missing.
    """
    tables = _parse(text, where)
    for table, content in tables.items():
        if table not in (*_TABLES, "code"):
            raise UserError(f"{where}: unknown table [{table}]{did_you_mean(table, _TABLES)}")
        if not isinstance(content, dict):
            raise UserError(f"{where}: {table} must be a table, as in [{table}] or {table}.name = …")
        if table in PARTS and "name" not in content:
            raise UserError(f"{where}: [{table}] has no name")
        name = content.get("name", "")
        names = name if isinstance(name, list) and table == "intervention" else [name]
        if not all(isinstance(each, str) for each in names):
            raise UserError(f"{where}: [{table}] name is {name!r}; expected text")
    check_run_options(tables.get("run", {}), where)
    return tables


def check_run_options(values: Mapping[str, Any], where: str) -> None:
    """Check that a table ``[run]`` contains only options of the run.

    Raises:
        UserError: An unknown option.
    """
    known = options.options_of(RunOptions)
    for name in values:
        if options.field_name(name) not in known:
            raise UserError(f"{where}: [run] has no option '{name}'{did_you_mean(name, known)}")


def read_file(path: Path) -> dict[str, dict[str, Any]]:
    """Parse the tables of a spec file, without the code that it records."""
    tables = read_tables(read_text(path), str(path))
    tables.pop("code", None)
    if path.name == "spec.toml":  # written by a run: its old names need no note
        for part in set(PARTS) & set(tables):
            tables[part] = identity.renames(part, str(tables[part]["name"])).apply(tables[part])
    return tables


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        UserError: The file cannot be read, or is not valid TOML.
    """
    return _parse(read_text(path), str(path))


def seeds_of(text: Any) -> list[int]:
    """Parse seeds given as ``3``, ``0,1,2`` or ``0..4``, and remove duplicates."""
    if text == []:
        raise UserError("seed is an empty list; expected at least one seed")
    if isinstance(text, list | int):
        return list(text) if isinstance(text, list) else [text]
    seeds: list[int] = []
    for part in str(text).split(","):
        found = re.fullmatch(r"\s*(\d{1,15})(?:\.\.(\d{1,15}))?\s*", part, re.ASCII)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if last < first:
            raise UserError(
                f"--seed {str(text)[:100]}: expected an integer, a list such as 0,1,2 or a range such as 0..4"
            )
        check_count(len(seeds) + last - first + 1, f"--seed {str(text)[:100]}")
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


def check_count(count: int, what: str) -> None:
    """Check that a command does not have too many runs, before they are listed.

    Raises:
        UserError: There are more than a hundred thousand.
    """
    if count > MOST_RUNS:
        raise UserError(f"{what}: {count:,} runs are too many; at most {MOST_RUNS:,} are allowed per command")


def read_text(path: Path) -> str:
    """Read a text file of limited size.

    Raises:
        UserError: The file cannot be read, is too large, or is not UTF-8.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:
            raise UserError(f"cannot read {path}: it is larger than {_LARGEST_FILE >> 20} MiB, too large for a spec")
        return content.decode("utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except ValueError as error:  # also from an integer with too many digits
        raise UserError(f"{where} is not valid TOML: {error}") from error
    except RecursionError as error:
        raise UserError(f"{where} is not valid TOML: it is nested too deeply") from error


def _complete(part: str, name: str, values: Mapping[str, Any], quiet: bool = True) -> tuple[str, dict[str, Any]]:
    entry = _registry(part)[name]
    built: Any = options.build(entry.load(), values, f"{part} {name}", entry.defaults, quiet)
    values = options.as_dict(built)
    for option_name, usual in entry.defaults.items():  # None is omitted, unless reading the spec would yield a default
        if usual is not None and getattr(built, option_name) is None:
            values[option_name] = "none"
    return name, values


def _registry(part: str) -> registry.Registry:
    found: registry.Registry = getattr(registry, f"{part}s")
    return found


def _code(part: str, name: str, values: Mapping[str, Any]) -> str:
    """The code of all classes that a part of a run consists of, see :func:`code_of`."""
    found = dict.fromkeys(code for cls in _classes(part, name, values) if (code := code_of(cls)))
    return next(iter(found)) if len(found) == 1 else digest(*found) if found else ""


def _classes(part: str, name: str, values: Mapping[str, Any]) -> Iterator[type]:
    """The classes of a name and of those options that name others: an inner intervention, or ``module:Class``."""
    for entry in _registry(part).parts(name):
        yield entry.load()
    fields = options.options_of(_registry(part)[name].load())
    for option_name, value in values.items():
        of = fields[option_name].metadata.get("names") if option_name in fields else ""
        if of and isinstance(value, str):
            yield from _classes(of, value, {})
        elif isinstance(value, str) and _CLASS.fullmatch(value):  # checking the options has imported its module
            module, _, class_name = value.partition(":")
            found = getattr(sys.modules.get(module), class_name, None)
            if isinstance(found, type):
                yield found
