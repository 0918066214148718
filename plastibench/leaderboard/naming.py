"""Unique names of methods, and checks of what a name in the leaderboard refers to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from plastibench.config.code_digest import short_code
from plastibench.leaderboard.settings import (
    by_setting,
    differing_in_run_or_code,
    group_digest,
    label,
    setting_facts,
    show_run_and_code,
    shown,
)
from plastibench.results.result import Result


def method_names(found: Iterable[Result]) -> dict[str, str]:
    """Names of methods that are unique among all results, by the group of the results.

    The names are those of the leaderboard's rows. Different code has different names even if it ran in different
    settings.
    """
    settings: list[list[Result]] = []  # for each setting, one run per method
    alike: dict[str, list[Result]] = defaultdict(list)
    keys: dict[str, dict[str, None]] = defaultdict(dict)
    for setting in by_setting(found):
        settings.append([next(iter(method.runs.values())) for method in setting.methods])
        here: dict[str, list[Result]] = defaultdict(list)
        for run in settings[-1]:
            here[label(run)].append(run)
        for name, runs in here.items():
            alike[name] += runs
            keys[name].update(dict.fromkeys(differing_in_run_or_code(runs)))
    for name, runs in alike.items():
        if len({run.code.get("intervention") for run in runs}) > 1:
            keys[name]["code"] = None
    names: dict[str, str] = {}
    for runs in settings:
        made = [f"{label(run)} {show_run_and_code(run, keys[label(run)])}".strip() for run in runs]
        for run, name in zip(runs, made, strict=True):
            names[run.group] = name if made.count(name) == 1 else f"{name} {group_digest(run)}"
    return names


def means(name: str, result: Result, part: str = "intervention") -> bool:
    """Whether a name, as the leaderboard prints it, refers to the env, agent or intervention of a result.

    Args:
        name: States each option that differs from its default; it may state other options, and other facts.
        result: A result.
        part: ``env``, ``agent`` or ``intervention``.
    """
    return states(name, label(result, part), details_of(result, part))


def details_of(result: Result, part: str) -> set[str]:
    """Facts about a result that a name in the leaderboard may contain; see :func:`details`."""
    found = details(getattr(result.options, part), result.code.get(part, ""))
    if part == "env":
        found |= _words(f"{key}={value or 'unknown'}" for key, value in setting_facts(result).items())
    if part == "intervention":
        found |= details({**result.run, "every": result.every}) | {"run", group_digest(result)}
    return found


def details(options: Mapping[str, Any], code: str = "") -> set[str]:
    """Words that a name may contain, such as ``epochs=20``: all options, and the digest of the code."""
    stated = [f"{key.replace('__', '.')}={shown(value)}" for key, value in options.items()]
    return _words([*stated, *([f"code={short_code(code)}"] if code else [])])


def states(name: str, required: str, possible: Iterable[str]) -> bool:
    """Whether a name consists of all words of the required one and of possible words.

    ``key=default`` is possible if no other value of the key is.
    """
    given, needed, allowed = _words([name]), _words([required]), {*possible}
    keys = {word.partition("=")[0] for word in allowed}
    absent = {word for word in given if word.endswith("=default") and word.partition("=")[0] not in keys}
    return needed <= given <= needed | allowed | absent


def _words(texts: Iterable[str]) -> set[str]:
    return {word for text in texts for word in text.split()}
