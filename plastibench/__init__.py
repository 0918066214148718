"""plastibench: gym, benchmark and toolbox for plasticity loss.

The public names below are imported on first use, so that ``import plastibench`` costs nothing.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# In a source tree plastibench.envs and plastibench.agents stand beside this folder, not inside it. They are not
# importable as plain `envs` and `agents`, because users have folders of those names.
_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "envs" / "__init__.py").is_file():
    __path__.append(str(_root))

_PUBLIC = {
    "Network": "plastibench.network",
    "attach": "plastibench.keeper",
    "Intervention": "plastibench.interventions.base",
    "Report": "plastibench.interventions.base",
    "NoIntervention": "plastibench.interventions.none",
    "Recouple": "plastibench.interventions.recouple",
    "Reset": "plastibench.interventions.reset",
    "Revive": "plastibench.interventions.revive",
    "RnR": "plastibench.interventions.rnr",
    "ShrinkPerturb": "plastibench.interventions.shrink_perturb",
    "RunSpec": "plastibench.spec",
    "run": "plastibench.runner",
    "option": "plastibench.options",
    "register_intervention": "plastibench.registry",
    "register_agent": "plastibench.registry",
    "register_env": "plastibench.registry",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'plastibench' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
