"""Norms of weights, their distance from initialization, and their effective learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from plastibench.metrics.metric_inputs import MetricInputs
from plastibench.metrics.plasticity import PlasticityReport
from plastibench.metrics.spectra import eigenvalues
from plastibench.nn.network import Network


@torch.no_grad()
def weight_metrics(inputs: MetricInputs) -> PlasticityReport:
    """Measure the group ``weights``, overall and per layer; weight-cosine needs the initial parameters."""
    network, initial = inputs.network, inputs.initial
    # The largest singular value of a Gram matrix is accurate to about 6 digits in float32, in half the time.
    precision = torch.float32 if inputs.observation is not None and inputs.observation.sampled else torch.float64
    result = PlasticityReport()
    parameters = dict(network.module.named_parameters())
    result.overall.update(_measure(parameters, network, initial))
    for unit in inputs.units:
        own = {f"{unit.name}.{name}".lstrip("."): p for name, p in unit.module.named_parameters(recurse=False)}
        layer = result.layers.setdefault(unit.name, {})
        layer.update(_measure(own, network, initial))
        weight = unit.module.weight
        if isinstance(weight, Tensor) and weight.ndim > 1:
            layer["spectral-norm"] = spectral_norm(weight, precision)
        elif isinstance(unit.module, nn.LayerNorm):
            layer.update(_scales([unit.module]))
    norms = [layer["spectral-norm"] for layer in result.layers.values() if "spectral-norm" in layer]
    if norms:
        result.overall["spectral-norm"] = max(norms)
    result.overall.update(_scales([m for m in network.module.modules() if isinstance(m, nn.LayerNorm)]))
    return result


def spectral_norm(weight: Tensor, dtype: torch.dtype = torch.float64) -> float:
    """Compute the largest singular value of a weight as a matrix [out, rest], in precision ``dtype``."""
    matrix = weight.detach().flatten(1).to(dtype)
    gram = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
    return float(eigenvalues(gram)[-1].sqrt())


def _measure(
    parameters: Mapping[str, nn.Parameter], network: Network, initial: Mapping[str, Tensor] | None
) -> dict[str, float]:
    vector = _flat(parameters.values())
    norm = vector.norm()
    found = {"weight-rms": float(norm / max(1, len(vector)) ** 0.5)}
    if initial is not None and all(name in initial for name in parameters):
        start = _flat(initial[name] for name in parameters)
        found["weight-cosine"] = float(vector @ start / (norm * start.norm()).clamp_min(1e-300))
    updates = [adam_update(network.optimizer, p) for p in parameters.values()]
    known = [update for update in updates if update is not None]
    if known and norm > 0:
        found["effective-learning-rate"] = float(_flat(known).norm() / norm)
    return found


def adam_update(optimizer: torch.optim.Optimizer | None, parameter: nn.Parameter) -> Tensor | None:
    """Recompute the last update of Adam or AdamW from its state, without weight decay: lr m̂ / (sqrt(v̂) + eps).

    Returns None if the parameter has no state. Optimizers that use the same moments differently (NAdam, LAMB) are not
    supported and give None too.
    """
    if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        return None
    state = optimizer.state.get(parameter)
    if not state or not float(state["step"]):
        return None
    group = next(group for group in optimizer.param_groups if any(p is parameter for p in group["params"]))
    step, (beta1, beta2) = float(state["step"]), group["betas"]
    first = state["exp_avg"].double() / (1 - beta1**step)
    second = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"].double() / (1 - beta2**step)
    return float(group["lr"]) * first / (second.sqrt() + group["eps"])


def _scales(norms: Sequence[nn.LayerNorm]) -> dict[str, float]:
    scales = [norm.weight for norm in norms if norm.elementwise_affine]
    if not scales:
        return {}
    values = _flat(scales)
    return {
        "layernorm-scale-mean": float(values.mean()),
        "layernorm-scale-std": float(values.std(correction=0)),
        "layernorm-scale-min": float(values.min()),
    }


def _flat(tensors: object) -> Tensor:
    return torch.cat([tensor.detach().flatten().double() for tensor in tensors])  # type: ignore[attr-defined]
