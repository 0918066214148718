"""Metrics: names, groups and definitions.

- ``PERFORMANCE`` and ``RETURNS`` are recorded by the training loop of every run.
- ``PLASTICITY`` is measured in every run at the end of each task.
- ``INTERVENTIONS`` is what an intervention reports about a network and its modules.
- The groups in ``GROUPS`` are measured on request: ``--metrics ranks,fau`` or ``--metrics all``.

To add a metric, write a function that takes :class:`plastibench.metrics.metric_inputs.MetricInputs` and returns a
:class:`plastibench.metrics.plasticity.PlasticityReport`, and add it to ``MEASUREMENTS`` with its definition. Importing
this package does not import torch.

Notation: z_i is the output of unit i (its pre-activation) and h_i its activation, the output of the nonlinearity that
follows (z_i if none follows). L is the loss of one sample and g the gradient of the mean loss over the batch. E is the
mean over rows: samples, times tokens or positions. Φ [N, D] is the input of the head on N samples, with singular
values σ_1 >= σ_2 >= ... All parameters together are θ, with initial values θ0. ε is the machine epsilon of float32.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from plastibench.config import renamed
from plastibench.config.errors import UserError, did_you_mean

PERFORMANCE = {
    "accuracy": "fraction of evaluation images that are classified correctly; they are the clean test set "
    "(relabel-*: the training set), transformed or restricted like the task (permuted-*, incremental-*)",
    "accuracy-after": "accuracy on the task that has just ended, right after the intervention at the task boundary",
    "drop": "accuracy at the end of a task minus accuracy-after",
    "agreement": "fraction of evaluation images whose predicted class is the same before and after the intervention",
    "output-kl": "mean over evaluation images of KL(p_before || p_after), p the softmax outputs before and after the "
    "intervention, in nats",
    "recovery": "epochs of the new task until its accuracy reaches the accuracy at the end of the previous task",
    "auc": "area under the accuracy curve of a task over its epochs, divided by the number of epochs",
    "train-accuracy": "fraction of the representative batch that is classified as its (possibly noisy) training labels",
    "loss": "training loss, mean over the updates since the last evaluation",
    "gradient-norm": "Euclidean norm of the gradient of all parameters before clipping, mean over the updates since "
    "the last evaluation",
}
RETURNS = {
    "return": "mean return of complete episodes of the greedy policy in separate environments",
    "training-return": "mean return of the training episodes that ended since the last evaluation",
    "return-after": "return right after an intervention, on the same seeds as right before it",
    "normalized-return": "(R - R_random) / (R_optimal - R_random) for the final return R, if both references are known",
    "q-bias": "mean over visited states of Q(s, a) minus the discounted return that followed (van Hasselt et al. "
    "2016); for SAC in episodes of sampled actions, including the entropy bonus",
    "q-churn": "mean of |Q_after - Q_before| over 512 transitions for one update (Tang & Berseth 2024)",
    "policy-churn": "fraction of 512 transitions whose greedy action changes in one update (Schaul et al. 2022)",
    "entropy": "entropy of the policy, mean over the batches since the last evaluation (SAC)",
    "temperature": "weight α of the entropy, mean over the updates since the last evaluation (SAC)",
    "agent-steps": "number of agent steps so far, summed over parallel environments",
    "environment-steps": "number of environment frames so far: agent steps times frame skip",
}
PLASTICITY = {
    "dormant-ratio": "fraction of units with E|h_i| <= 0.1 mean_k E|h_k|, the mean over the units k of the same layer "
    "(ReDo, Sokar et al. 2023)",
    "gradient-dormant-ratio": "fraction of units with E|∂L/∂z_i| <= 0.01 mean_k E|∂L/∂z_k|, the mean over the units k "
    "of the same layer (ReGraMa, Liu et al. 2025, on pre-activations)",
    "low-gradient-ratio": "fraction of units with E|∂L/∂z_i| <= 0.1 mean_k E|∂L/∂z_k|, the mean over the units k of "
    "the same layer",
    "effective-rank": "exp(-Σ_i p_i log p_i) with p_i = σ_i / Σ_k σ_k, σ the singular values of the head's input Φ "
    "(Roy & Vetterli 2007)",
    "srank": "smallest k with σ_1 + ... + σ_k >= 0.99 Σ_i σ_i, σ the singular values of the head's input Φ "
    "(Kumar et al. 2021, δ = 0.01)",
    "weight-norm": "||θ||, the Euclidean norm of all parameters; of a layer, that of its weight",
    "weight-distance": "||θ - θ0|| / ||θ0||, θ0 the initial parameters; added parameters start at their first values",
    "layernorm-gradient-spread": "standard deviation over features i of E[∂L/∂z_i], z the output of the last LayerNorm "
    "(paper, Figure 3)",
}

INTERVENTIONS = {
    "seconds": "wall-clock time of the intervention",
    "cpu-seconds": "CPU time of the process during the intervention",
    "gpu-seconds": "GPU time of the intervention",
    "parameters": "number of scalars that were reinitialized, shrunk or refitted",
    "revived-fraction": "fraction of the examined units that were reinitialized",
    "revived": "number of units of the module that were reinitialized",
    "units": "number of units of the module that were examined",
    "residual": "relative error of the refitted layer: ||new - old outputs|| / ||old outputs|| on the representative "
    "batch (wrappers such as recouple and rnr)",
    "norm_ratio": "norm of the refitted weights divided by their norm before (wrappers such as recouple and rnr)",
    "norm": "norm of the weight after orthogonalization (fire)",
    "factor": "mean factor by which weights were shrunk (dash)",
    "clipped": "fraction of the weights that were clipped (weight-clipping)",
    "moved_fraction": "mean fraction by which weights moved towards fresh ones (calibrated-partial-resets)",
    "steps": "number of gradient steps towards the old outputs (distil)",
}


@dataclass(frozen=True)
class Measurement:
    """Optional metrics that one function computes together.

    Attributes:
        group: The group that selects them.
        function: ``module.function`` in this package, imported when it is needed.
        definitions: Name of each metric to its definition.
        needs: What it reads from an observation (:mod:`plastibench.metrics.observation`), besides features.
    """

    group: str
    function: str
    definitions: Mapping[str, str]
    needs: str = ""


MEASUREMENTS = (
    Measurement(
        "activity",
        "activity.unit_activity",
        {
            "dormant-ratio-layer-mean": "mean over layers of the dormant-ratio of each layer (dormant-ratio itself "
            "pools the units of all layers)",
            "fau": "fraction of active units: mean over units with a nonlinearity of the fraction of rows with h_i > 0 "
            "(Ma et al. 2024)",
            "dead-unit-ratio": "fraction of units with a nonlinearity that have h_i = 0 on every row "
            "(Kumar et al. 2023)",
            "zero-activation-ratio": "mean over units with a nonlinearity of the fraction of rows with h_i = 0 "
            "(Lee et al. 2024)",
            "duplicate-ratio": "fraction of units i with |corr(h_i, h_j)| > 0.95 for a later unit j of the same layer, "
            "on up to 4,096 rows; n equal units count n - 1 times (after ajoudaki/loss-of-plasticity, which uses "
            "uncentred cosines)",
        },
        needs="activations",
    ),
    Measurement(
        "activity",
        "activity.attention",
        {
            "attention-entropy": "-Σ_t a_t log a_t / log T for attention weights a over T tokens; mean over layers, "
            "heads, samples and queries",
            "collapsed-head-ratio": "fraction of attention heads whose mean attention-entropy is below 0.1 "
            "(see Zhai et al. 2023)",
        },
        needs="attention",
    ),
    Measurement(
        "gradients",
        "gradients.zero_gradients",
        {
            "zero-gradient-ratio": "fraction of entries of the mean gradient g that are exactly 0 (Lee et al. 2024)",
            "tiny-gradient-ratio": "fraction of entries of the mean gradient g with |g_j| < 1e-8 RMS(g)",
        },
        needs="gradient",
    ),
    Measurement(
        "gradients",
        "gradients.gradient_similarity",
        {
            "gradient-cosine": "cosine similarity of the gradients of two samples, mean over all pairs of 64 samples "
            "(Lyle et al. 2023)",
            "gradient-conflict-ratio": "fraction of the pairs of 64 samples whose gradients have a negative cosine",
            "gradient-effective-rank": "effective rank of the gradients of 64 samples, each scaled to norm 1",
        },
    ),
    Measurement(
        "gradients",
        "gradients.ntk_ranks",
        {
            "ntk-effective-rank": "effective rank of the gradients of the summed outputs of 32 samples; their singular "
            "values are the square roots of the eigenvalues of the empirical NTK (gracebml/LoP-NeurIPS)",
            "ntk-numerical-rank": "number of eigenvalues of the empirical NTK of 32 samples above 32 ε times the "
            "largest",
        },
    ),
    Measurement(
        "ranks",
        "ranks.head_ranks",
        {
            "stable-rank": "||Φ||_F² / ||Φ||_2², Φ the head's input (called srank in some code)",
            "approximate-rank": "smallest k with σ_1² + ... + σ_k² >= 0.99 Σ_i σ_i², σ the singular values of the "
            "head's input Φ (Yang et al. 2020)",
            "feature-rank": "number of singular values of Φ / sqrt(N) above 0.01 (Lyle et al. 2022); depends on the "
            "scale of the features",
            "numerical-rank": "number of singular values of the head's input Φ [N, D] above max(N, D) ε σ_1",
        },
    ),
    Measurement(
        "ranks",
        "ranks.layer_ranks",
        {
            "layer-rank-fraction": "effective rank of the activations h of a layer divided by its maximum, "
            "min(units, rows), on up to 4,096 rows; mean over layers",
        },
        needs="activations",
    ),
    Measurement(
        "weights",
        "weights.weight_metrics",
        {
            "spectral-norm": "largest singular value of a weight as a matrix [out, rest]; overall, the largest of all "
            "layers",
            "weight-rms": "root mean square of the parameters",
            "weight-cosine": "cosine similarity of the parameters and their initial values, θᵀθ0 / (||θ|| ||θ0||)",
            "layernorm-scale-mean": "mean of the scales γ of all LayerNorms",
            "layernorm-scale-std": "standard deviation of the scales γ of all LayerNorms",
            "layernorm-scale-min": "smallest of the scales γ of all LayerNorms",
            "effective-learning-rate": "lr ||m / (sqrt(v) + eps)|| / ||θ||, m and v the bias-corrected moments of Adam "
            "or AdamW",
        },
    ),
    Measurement(
        "curvature",
        "curvature.top_eigenvalue",
        {
            "hessian-top-eigenvalue": "largest eigenvalue of the Hessian of the mean loss on 256 samples, by 20 steps "
            "of Lanczos",
        },
    ),
    Measurement(
        "curvature",
        "curvature.trace",
        {
            "hessian-trace": "trace of the Hessian of the mean loss on 256 samples, by Hutchinson's estimator with 30 "
            "random sign vectors",
            "hessian-trace-error": "standard error of hessian-trace divided by |hessian-trace|",
        },
    ),
    Measurement(
        "curvature",
        "curvature.rank_proxy",
        {
            "curvature-rank-proxy": "smallest k such that the k largest eigenvalues of the Gram matrix of 64 "
            "sample gradients hold 99 % of their sum; a proxy for the rank of the Hessian (Lewandowski et al. 2024)",
        },
    ),
    Measurement(
        "curvature",
        "curvature.sharpness",
        {"sam-sharpness": "L(θ + 0.05 g / ||g||) - L(θ), L the mean loss on 256 samples (Foret et al. 2021)"},
    ),
    Measurement(
        "probes",
        "probes.random_targets",
        {
            "plasticity-probe-loss": "mean squared error of a copy of the network after 100 Adam steps (lr 1e-3) on "
            "the targets a + sin(1e5 f(x)), f a freshly initialized network and a the mean output of the copy before "
            "training; mean over 3 targets (Lyle et al. 2023)",
            "plasticity-probe-gap": "plasticity-probe-loss minus that of a freshly initialized network on the same f; "
            "positive: less plastic, or larger outputs, which take many steps to shrink",
            "plasticity-probe-fresh-gap": "plasticity-probe-gap of a copy that has the output layers of the freshly "
            "initialized network",
        },
    ),
    Measurement(
        "probes",
        "probes.next_task",
        {
            "next-task-probe-loss-gap": "training loss on the current data after 100 Adam steps (lr 1e-3) on it, copy "
            "minus freshly initialized network; positive: less plastic",
            "next-task-probe-accuracy-gap": "accuracy on the current data after the same steps, copy minus freshly "
            "initialized network (classifiers only); negative: less plastic (Ash & Adams 2020)",
        },
    ),
)
GROUPS: dict[str, dict[str, str]] = {}
for _measurement in MEASUREMENTS:
    GROUPS.setdefault(_measurement.group, {}).update(_measurement.definitions)
REQUESTED = {name: definition for group in GROUPS.values() for name, definition in group.items()}
METRICS = PERFORMANCE | RETURNS | PLASTICITY | REQUESTED


def select(names: Iterable[str]) -> tuple[str, ...]:
    """Expand names of metrics and groups to the optional metrics to measure, without duplicates.

    Metrics of ``PLASTICITY`` are accepted but not returned, because they are always
    measured. Old names are replaced with the
    current ones, with a line on stderr.

    Raises:
        UserError: A name is neither a group nor a metric that can be requested.
    """
    found: dict[str, None] = {}
    for given in names:
        name = _current(given)
        if name == "all":
            found.update(dict.fromkeys(REQUESTED))
        elif name in GROUPS:
            found.update(dict.fromkeys(GROUPS[name]))
        elif name in REQUESTED:
            found[name] = None
        elif name not in PLASTICITY:
            hint = did_you_mean(name, [*GROUPS, "all", *REQUESTED])
            groups = f"groups: {', '.join(GROUPS)}, all; for single metrics: plastibench list metrics"
            raise UserError(f"unknown metric '{name}'{hint} ({groups})")
    return tuple(found)


@functools.cache  # one line per name and process
def _current(name: str) -> str:
    if name not in renamed.METRICS:
        return name
    print(f"plastibench: metric '{name}' is deprecated; use '{renamed.METRICS[name]}'", file=sys.stderr)
    return renamed.METRICS[name]
