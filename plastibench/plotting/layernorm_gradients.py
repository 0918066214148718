"""Mean gradients of the last two LayerNorms of a finished run, computed once and saved in its folder.

The quantity is that of the paper's Figure 3: E[∂L/∂z_i], the signed gradient of a sample's loss with respect to each
output of the LayerNorm, averaged over all training samples of the last task and all positions (tokens), in eval mode.
:mod:`plastibench.metrics.plasticity` measures the same on a probe batch during a run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plastibench.config.errors import RunError, UserError
from plastibench.plotting.series import Array
from plastibench.results.result import Result
from plastibench.utils.atomic_io import write_text

if TYPE_CHECKING:
    from tensordict import TensorDictBase

    from plastibench.nn.network import Network

FILE = "layernorm-gradients.json"
LAST = 2  # LayerNorms from the end; in a ViT those before the last MLP block and before the head
Gradients = dict[str, dict[str, Array]]  # LayerNorm to network (trained, fresh) to one value per feature [H]
NETWORKS = ("trained", "fresh")
_SCHEMA = 1
_WHAT = (
    "E[dL/dz_i] over all training samples of the last task and all positions, by LayerNorm; fresh: the initial network "
    "of the run, on the same data"
)


def gradients_of_run(run: Result, data_dir: Path, device: str) -> Gradients | None:
    """Gradients in a run's trained network and in its initial network, read from its folder or computed.

    Args:
        run: A result with its folder.
        data_dir: Folder of datasets.
        device: Device to compute on.

    Returns:
        LayerNorm, in order of execution, to ``trained`` and ``fresh`` [H]; empty if the network has no LayerNorm, None
        if neither the gradients nor the network were saved.

    Raises:
        UserError: A file in the folder is corrupt.
    """
    folder = run.folder
    assert folder is not None
    saved = folder / FILE
    if saved.is_file():
        return _read(saved, run.id)
    if not (folder / "final.pt").is_file():
        return None
    from plastibench.training.saved_run import trained_and_fresh

    print(f"plastibench: LayerNorm gradients of {run.id}", file=sys.stderr)
    trained, fresh, data = trained_and_fresh(folder, device, data_dir=data_dir)
    networks = {"trained": layernorm_gradients(trained, data), "fresh": layernorm_gradients(fresh, data)}
    names = [name for name in networks["fresh"] if name in networks["trained"]]
    layers = {name: {network: _rounded(values[name]) for network, values in networks.items()} for name in names}
    if layers:
        content = {"schema": _SCHEMA, "id": run.id, "what": _WHAT, "samples": len(data), "layers": layers}
        try:
            write_text(saved, json.dumps(content) + "\n")
        except RunError:  # a read-only folder can be plotted too
            print(f"plastibench: {saved} cannot be written; the next plot computes it again", file=sys.stderr)
    return _arrays(layers)


def layernorm_gradients(network: Network, data: TensorDictBase, last: int = LAST) -> dict[str, Array]:
    """E[∂L/∂z_i] of the last LayerNorms in order of execution, computed in chunks.

    Args:
        network: The network; it is not changed.
        data: The samples to average over.
        last: Number of LayerNorms.

    Returns:
        Name to one value per feature [H], in order of execution.
    """
    from torch import nn

    from plastibench.nn.dataflow import trace
    from plastibench.nn.unit_statistics import measure_units

    units = [unit for unit in trace(network, data[:3]) if isinstance(unit.module, nn.LayerNorm) and unit.trained]
    statistics = measure_units(network, data, units[-last:]) if units else {}
    return {name: values.signed_gradient.double().cpu().numpy() for name, values in statistics.items()}


def _rounded(values: Array) -> list[float]:
    """Round to six digits, so that computed and saved gradients give the same plot."""
    return [float(f"{value:.6g}") for value in values]


def _arrays(layers: Mapping[str, Mapping[str, list[float]]]) -> Gradients:
    return {
        name: {network: np.array(values[network], float) for network in NETWORKS} for name, values in layers.items()
    }


def _read(path: Path, run_id: str) -> Gradients:
    try:
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != _SCHEMA or content["id"] != run_id:
            raise ValueError(f"schema {content['schema']} of run {content['id']}")
        found = _arrays(content["layers"])
        for name, networks in found.items():
            if any(v.ndim != 1 or not v.size or not np.isfinite(v).all() for v in networks.values()):
                raise ValueError(f"{name} needs a list of finite numbers")
            if len({v.size for v in networks.values()}) > 1:
                raise ValueError(f"{name} has different numbers of features in the two networks")
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {error}); delete it to compute it again"
        ) from error
