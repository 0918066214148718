"""Average gradients of a finished run's last two LayerNorms, computed from its folder once and kept there.

The quantity is that of the paper's Figure 3: E[∂L/∂z_i], the gradient of a sample's loss by each output of the
LayerNorm, with its sign, averaged over all training samples of the last task and all positions (tokens), in eval mode.
``plastibench.metrics.plasticity`` measures the same on a probe batch as a run goes on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plastibench.config.errors import RunError, UserError
from plastibench.plotting.over_seeds import Array
from plastibench.results.result import Result
from plastibench.utils.atomic_io import write_text

if TYPE_CHECKING:
    from tensordict import TensorDictBase

    from plastibench.nn.network import Network

FILE = "layernorm-gradients.json"
LAST = 2  # LayerNorms, counted from the end: before the last MLP block, and before the head of a ViT
Gradients = dict[str, dict[str, Array]]  # LayerNorm to network (trained, fresh) to a number per feature
SIDES = ("trained", "fresh")
_SCHEMA = 1
_WHAT = (
    "E[dL/dz_i] over all training samples of the last task and all positions, by LayerNorm; fresh: the network that "
    "the run began with, on the same data"
)


def of_run(run: Result, data_dir: Path, device: str) -> Gradients | None:
    """Gradients of a run's trained network and of the one it began with: read where they are kept, or computed.

    Args:
        run: A result with its folder.
        data_dir: Where data sets are.
        device: Where to compute.

    Returns:
        LayerNorm, in the order in which they run, to ``trained`` and ``fresh`` [H]; empty for a network without any,
        None where neither the numbers nor the network are left.

    Raises:
        UserError: What the folder holds is damaged.
    """
    folder = run.folder
    assert folder is not None
    kept = folder / FILE
    if kept.is_file():
        return _read(kept, run.id)
    if not (folder / "final.pt").is_file():
        return None
    from plastibench.training.saved_run import trained_and_fresh

    print(f"plastibench: LayerNorm gradients of {run.id}", file=sys.stderr)
    trained, fresh, data = trained_and_fresh(folder, device, data_dir=data_dir)
    sides = {"trained": layernorm_gradients(trained, data), "fresh": layernorm_gradients(fresh, data)}
    names = [name for name in sides["fresh"] if name in sides["trained"]]
    layers = {name: {side: _rounded(values[name]) for side, values in sides.items()} for name in names}
    if layers:
        content = {"schema": _SCHEMA, "id": run.id, "what": _WHAT, "samples": len(data), "layers": layers}
        try:
            write_text(kept, json.dumps(content) + "\n")
        except RunError:  # of someone else's runs, say: they are drawn all the same
            print(f"plastibench: {kept} cannot be written; it will be computed again next time", file=sys.stderr)
    return _arrays(layers)


def layernorm_gradients(network: Network, data: TensorDictBase, last: int = LAST) -> dict[str, Array]:
    """E[∂L/∂z_i] of the LayerNorms that run last, over all of ``data`` in pieces.

    Args:
        network: The network; left as it was.
        data: All samples that count.
        last: How many LayerNorms.

    Returns:
        Name to a number per feature [H], in the order in which they run.
    """
    from torch import nn

    from plastibench.nn.dataflow import trace
    from plastibench.nn.unit_statistics import measure_units

    units = [unit for unit in trace(network, data[:3]) if isinstance(unit.module, nn.LayerNorm) and unit.trained]
    statistics = measure_units(network, data, units[-last:]) if units else {}
    return {name: values.signed_gradient.double().cpu().numpy() for name, values in statistics.items()}


def _rounded(values: Array) -> list[float]:
    """Six digits of each number: what is drawn is the same whether it was just computed or kept."""
    return [float(f"{value:.6g}") for value in values]


def _arrays(layers: Mapping[str, Mapping[str, list[float]]]) -> Gradients:
    return {name: {side: np.array(sides[side], float) for side in SIDES} for name, sides in layers.items()}


def _read(path: Path, run_id: str) -> Gradients:
    try:
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != _SCHEMA or content["id"] != run_id:
            raise ValueError(f"of schema {content['schema']} and run {content['id']}")
        found = _arrays(content["layers"])
        for name, sides in found.items():
            if any(v.ndim != 1 or not v.size or not np.isfinite(v).all() for v in sides.values()):
                raise ValueError(f"{name} must have finite numbers, at least one")
            if len({v.size for v in sides.values()}) > 1:
                raise ValueError(f"{name} has more numbers of one network than of the other")
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {error}); delete it, and it is made anew"
        ) from error
