"""Report which results in a table were made by earlier commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

_NAMED = 5


def note_reused(reused: Sequence[Any], count: int, advice: str = "--force reruns") -> None:
    """Print a line to stderr about the runs that were complete before the command started.

    Args:
        reused: Their results.
        count: Number of all runs of the command.
        advice: How to rerun them.
    """
    if not reused:
        return
    times = sorted(_finished(result) for result in reused)
    when = times[0] if times[0] == times[-1] else f"between {times[0]} and {times[-1]}"
    names = list(dict.fromkeys(result.intervention for result in reused))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    which = "the run was" if count == 1 else f"{len(reused)} of {count} runs were"
    print(
        f"plastibench: {which} already complete, so not rerun ({', '.join(names[:_NAMED])}{more}; finished {when}); "
        f"{advice}",
        file=sys.stderr,
    )


def _finished(result: Any) -> str:
    """Return when a run ended, in local time; if the result does not record it, use the date of its file."""
    if result.origin.finished:
        moment = datetime.fromisoformat(result.origin.finished)
    else:
        moment = datetime.fromtimestamp((result.folder / "result.json").stat().st_mtime, timezone.utc)
    return moment.astimezone().strftime("%Y-%m-%d %H:%M")
