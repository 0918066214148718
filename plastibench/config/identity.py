"""Identity of a run: its id, its group, and the ids that earlier versions gave to the same run.

A run is defined by its env, agent and intervention with all options, the options of the run, and the code of plugins.
Two runs are the same if their :func:`content` is equal. Ids are digests of this content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from plastibench.config import registry
from plastibench.config.errors import UserError

PARTS = ("env", "agent", "intervention")
BASE = "none"  # the intervention that does nothing
IDLE: dict[str, Any] = {"every": 0, "until": None, "roles": None, "offline_updates": None}  # a schedule without effect
_DIGITS = 16  # digits of the digest: the probability of a collision among a million runs is 3e-8
_DIGITS_BEFORE = 6  # digits of the digest in version 0.1.0
_LONGEST = 200  # characters of an id, which is the name of a folder

Parts = Sequence[tuple[str, Mapping[str, Any]]]  # name and all options of env, agent and intervention


def content(parts: Parts, run: Mapping[str, Any], code: Mapping[str, str]) -> str:
    """Everything that identifies a run, as text. Only the type of the device is included.

    Args:
        parts: Name and all options of env, agent and intervention.
        run: All options of the run.
        code: Part to the code of its classes, see :func:`plastibench.config.code_digest.code_of`.
    """
    kind = str(run["device"]).partition(":")[0]
    all_of_it: list[Any] = [*parts, {**run, "device": kind}, *([dict(code)] if code else [])]
    return json.dumps(all_of_it, sort_keys=True, default=dict)


def run_id(parts: Parts, run: Mapping[str, Any], code: Mapping[str, str]) -> str:
    """The name of a run and of its folder: names, seed, and a digest of its content.

    Raises:
        UserError: The names are too long for a folder.
    """
    found = _id(parts, run, code, _DIGITS)
    if len(found) > _LONGEST:
        raise UserError(f"the names of env, agent and intervention are too long for a folder: {found[:80]}…")
    return found


def digest_of(run_id: str) -> str:
    """The digest at the end of an id."""
    return run_id.rpartition("_")[2]


def begins_digest(text: str, run_id: str) -> bool:
    """Whether a text is the beginning of an id's digest, and long enough to tell the runs of a machine apart."""
    return len(text) >= _DIGITS_BEFORE and digest_of(run_id).startswith(text)


def group_id(parts: Parts, run: Mapping[str, Any], code: Mapping[str, str]) -> str:
    """An id that is the same for all runs that differ only in their seed or their metrics."""
    return run_id(parts, {**{name: value for name, value in run.items() if name != "metrics"}, "seed": 0}, code)


def id_before(parts: Parts, run: Mapping[str, Any]) -> str:
    """The id that 0.1.0 gave to a run with these options."""
    return _id(parts, run, {}, _DIGITS_BEFORE)


def legacy_ids(parts: Parts, run: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the ids that version 0.1.0, with its old option names, gave to a run. They can collide."""
    before = [(name, renames(part, name).undo(options)) for part, (name, options) in zip(PARTS, parts, strict=True)]
    return (id_before(before, run),)


def renames(part: str, name: str) -> Any:
    """What was renamed among the options of a registered env, agent or intervention."""
    found: registry.Registry = getattr(registry, f"{part}s")
    return found.renames(name)


def has_idle_schedule(intervention: str, agent: Mapping[str, Any], run: Mapping[str, Any]) -> bool:
    """Whether the schedule cannot change a run, because its intervention does nothing.

    The schedule still matters if offline updates follow each intervention, or if the targets become copies of the
    trained networks at each intervention.

    Args:
        intervention: Name of the intervention.
        agent: Options of the agent.
        run: Options of the run.
    """
    return intervention == BASE and not run.get("offline_updates") and agent.get("target_policy") != "copy"


def _id(parts: Parts, run: Mapping[str, Any], code: Mapping[str, str], digits: int) -> str:
    digest = hashlib.sha256(content(parts, run, code).encode()).hexdigest()[:digits]
    return f"{'_'.join(name for name, _ in parts)}_s{run['seed']}_{digest}"
