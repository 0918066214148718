"""plastibench: gym, benchmark and toolbox for plasticity loss.

The public names below are imported on first use, so that ``import plastibench`` costs nothing.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_ROOT = Path(__file__).resolve().parent.parent


class _SourceTreeFinder(MetaPathFinder):
    """Finds ``plastibench.envs`` and ``plastibench.agents`` in a source tree, where they are top-level folders.

    They are deliberately not importable as ``envs`` and ``agents``: users have folders with those names.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The spec of one of the two packages; None for every other name."""
        if name not in ("plastibench.envs", "plastibench.agents"):
            return None
        folder = _ROOT / name.rpartition(".")[2]
        return spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])


if (_ROOT / "pyproject.toml").is_file() and (_ROOT / "envs" / "__init__.py").is_file():
    sys.meta_path.insert(0, _SourceTreeFinder())  # before the finder of an editable install of another checkout

_PUBLIC = {
    "train": "plastibench.training.train",
    "apply": "plastibench.interventions.attach",
    "attach": "plastibench.interventions.attach",
    "Attached": "plastibench.interventions.attach",
    "Network": "plastibench.nn.network",
    "Intervention": "plastibench.interventions.base",
    "Report": "plastibench.interventions.base",
    "NoIntervention": "plastibench.interventions.none",
    "Recouple": "plastibench.interventions.recouple",
    "Reset": "plastibench.interventions.reset",
    "Revive": "plastibench.interventions.revive",
    "RnR": "plastibench.interventions.rnr",
    "ShrinkPerturb": "plastibench.interventions.shrink_perturb",
    "RunSpec": "plastibench.config.spec",
    "run": "plastibench.training.runner",
    "Result": "plastibench.results.result",
    "load_results": "plastibench.results.files",
    "option": "plastibench.config.options",
    "register_intervention": "plastibench.config.registry",
    "register_agent": "plastibench.config.registry",
    "register_env": "plastibench.config.registry",
    "list_interventions": "plastibench.config.registry",
    "list_agents": "plastibench.config.registry",
    "list_envs": "plastibench.config.registry",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'plastibench' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
