"""Old names that are still accepted for one version: metrics, and keys of ``result.json``."""

from __future__ import annotations

METRICS: dict[str, str] = {}  # old metric name -> new name
RESULT_KEYS: dict[str, str] = {  # old key, after `-` became `_` -> new key
    "revived_share": "revived_fraction",
    "unrecovered_share": "unrecovered_fraction",
    "place": "position",
}
