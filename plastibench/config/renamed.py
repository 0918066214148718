"""Old names of metrics and of keys in ``result.json``, which are accepted for one more version."""

from __future__ import annotations

METRICS: dict[str, str] = {  # old metric name -> new name
    "layer-rank-share": "layer-rank-fraction",
    "plasticity-probe-redrawn-gap": "plasticity-probe-fresh-gap",
    "normalised-return": "normalized-return",
}
RESULT_KEYS: dict[str, str] = {  # old key, after `-` became `_` -> new key
    "revived_share": "revived_fraction",
    "unrecovered_share": "unrecovered_fraction",
    "place": "position",
    "normalised_return": "normalized_return",
}
