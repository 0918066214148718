"""Metrics: what a run measures. Pure functions in the modules beside this one; here their names and definitions."""

from __future__ import annotations

from collections.abc import Iterable

from plastibench.config.errors import UserError, did_you_mean

PERFORMANCE = {
    "accuracy": "share of evaluation images (clean test set; relabel-*: training set) that are classified rightly; "
    "they may differ from task to task (permuted-*, incremental-*)",
    "accuracy-after": "the same right after the intervention, for the task that has just ended",
    "drop": "accuracy at the end of a task minus accuracy right after the intervention that follows, in points",
    "agreement": "share of evaluation images whose predicted class the intervention left as it was",
    "output-kl": "mean KL divergence from the outputs before the intervention to those after it, in nats",
    "recovery": "epochs until an evaluation, on the new task's images, reaches the accuracy before the switch again",
    "auc": "area under the accuracy curve of a task over its epochs, divided by their number",
    "train-accuracy": "accuracy on the (noisy) training labels, over the representative batch",
    "loss": "training loss, mean of the updates since the last evaluation",
    "gradient-norm": "norm of the whole gradient before clipping, mean of the updates since the last evaluation",
}
RETURNS = {
    "return": "mean return of full greedy episodes in environments of their own",
    "training-return": "mean return of the episodes that ended in training since the last evaluation",
    "return-after": "the return right after an intervention, on the same seeds as right before it",
    "normalised-return": "final return between those of a random (0) and a perfect policy (1), where both are known",
    "q-bias": "mean of what the critic expected minus the discounted return that followed (van Hasselt et al. 2016); "
    "of SAC in episodes of drawn actions, with the entropy's part",
    "q-churn": "mean change of the critic's values on 512 transitions through one update (Tang & Berseth 2024)",
    "policy-churn": "share of 512 transitions whose greedy action one update changed (Schaul et al. 2022)",
    "entropy": "mean entropy of the policy over the batches since the last evaluation (SAC)",
    "temperature": "mean weight of the entropy over the updates since the last evaluation (SAC)",
    "agent-steps": "steps of the agent so far, summed over environments",
    "environment-steps": "frames of the environments so far: steps times frames skipped",
}
PLASTICITY = {
    "dormant-ratio": "share of units with E|h_i| <= 0.1 of their layer's mean (ReDo, Sokar et al. 2023)",
    "gradient-dormant-ratio": "share of units with E|∂L/∂z_i| <= 0.01 of their layer's mean (ReGraMa, pre-activation)",
    "low-gradient-ratio": "share of units with E|∂L/∂z_i| <= 0.1 of their layer's mean",
    "effective-rank": "exp of the entropy of the normalised singular values of the head's input (Roy & Vetterli 2007)",
    "srank": "singular values of the head's input that hold 99 % of their sum (Kumar et al. 2021, δ = 0.01)",
    "weight-norm": "Euclidean norm of all parameters",
    "weight-distance": "||θ - θ0|| / ||θ0|| with the initial parameters θ0, of added ones those they began with",
    "layernorm-gradient-spread": "standard deviation over features of E[∂L/∂z_i], last LayerNorm (paper, Fig. 3)",
}

# Measured when --metrics asks for it. Rows are samples, tokens or positions; h is what the nonlinearity behind a
# module makes of its output, or the output where none follows.
ACTIVITY = {
    "dormant-ratio-layer-mean": "mean over layers of each layer's dormant-ratio (dormant-ratio counts all units alike)",
    "fau": "fraction of active units: mean over units with a nonlinearity of the share of rows with h_i > 0 (Ma 2024)",
    "dead-unit-ratio": "share of units with a nonlinearity whose h_i is exactly 0 on every row (Kumar et al. 2023)",
    "zero-activation-ratio": "share of entries that nonlinearities make exactly 0 (Lee et al. 2024)",
    "duplicate-ratio": "share of units with |correlation| > 0.95 to a later unit of their layer, on up to 4,096 rows "
    "(after ajoudaki/loss-of-plasticity, which takes uncentred cosines): of n copies n-1 count",
    "attention-entropy": "entropy of the attention over keys, over log T; mean over layers, heads, samples and queries",
    "collapsed-head-ratio": "share of attention heads whose mean entropy is below 0.1 log T (see Zhai et al. 2023)",
}
GRADIENTS = {
    "zero-gradient-ratio": "share of entries of the batch's mean gradient that are exactly 0 (Lee et al. 2024)",
    "tiny-gradient-ratio": "share of its entries below 1e-8 of the root mean square of all entries",
    "gradient-cosine": "mean cosine between the gradients of two samples, over all pairs of 64 (Lyle et al. 2023)",
    "gradient-conflict-ratio": "share of those pairs whose cosine is negative",
    "gradient-effective-rank": "effective rank of the 64 gradients, each brought to length 1",
    "ntk-effective-rank": "effective rank of the gradients of the summed outputs of 32 samples: the singular values "
    "are roots of the empirical NTK's eigenvalues (gracebml/LoP-NeurIPS)",
    "ntk-numerical-rank": "eigenvalues of that NTK above 32 float32 epsilons of the largest",
}
RANKS = {
    "stable-rank": "||Φ||_F² / ||Φ||_2² of the head's input Φ (some codes call srank so)",
    "approximate-rank": "squared singular values of the head's input that hold 99 % of their sum (Yang et al. 2020)",
    "feature-rank": "singular values of Φ / sqrt(N) above 0.01 (Lyle et al. 2022); depends on the scale",
    "numerical-rank": "singular values of the head's input above max(N, D) float32 epsilons of the largest",
    "layer-rank-fraction": "effective rank of what a layer hands on over the largest possible, on up to 4,096 rows; "
    "mean over layers",
}
WEIGHTS = {
    "spectral-norm": "largest singular value of a weight [out, everything else]; overall the largest of all layers",
    "weight-rms": "root mean square of the parameters",
    "weight-cosine": "cosine between the parameters and the initial ones",
    "layernorm-scale-mean": "mean of the scales γ of all LayerNorms",
    "layernorm-scale-std": "standard deviation of these scales",
    "layernorm-scale-min": "smallest of these scales",
    "effective-learning-rate": "lr ||m / (sqrt(v) + ε)|| / ||w||, with the bias-corrected moments of Adam or AdamW",
}
CURVATURE = {
    "hessian-top-eigenvalue": "largest eigenvalue of the loss's Hessian, by 20 steps of Lanczos, on 256 samples",
    "hessian-trace": "trace of that Hessian, by Hutchinson's estimate with 30 random signs",
    "hessian-trace-error": "standard error of that estimate over its size",
    "curvature-rank-proxy": "eigenvalues of the Gram matrix of 64 samples' gradients that hold 99 % of their sum: a "
    "stand-in for the Hessian's rank (Lewandowski et al. 2024)",
    "sam-sharpness": "L(θ + 0.05 g / ||g||) - L(θ) on 256 samples (Foret et al. 2021)",
}
PROBES = {
    "plasticity-probe-loss": "squared error to a + sin(1e5 f(x)), f a fresh network and a the mean output, left after "
    "100 steps of a fresh Adam (lr 1e-3) on a copy with its outputs as they are; mean of 3 targets (Lyle et al. 2023)",
    "plasticity-probe-gap": "the same minus what a fresh network leaves on the same f; positive: less plastic, or of "
    "larger outputs, which take many steps to shrink",
    "plasticity-probe-fresh-gap": "that gap where the copy's output layers are those of the fresh network",
    "next-task-probe-loss-gap": "loss on the present data after 100 such steps of the training loss, copy minus fresh",
    "next-task-probe-accuracy-gap": "accuracy there, copy minus fresh (classifiers only); negative: less plastic "
    "(Ash & Adams 2020)",
}
GROUPS = {
    "activity": ACTIVITY,
    "gradients": GRADIENTS,
    "ranks": RANKS,
    "weights": WEIGHTS,
    "curvature": CURVATURE,
    "probes": PROBES,
}
METRICS = PERFORMANCE | RETURNS | PLASTICITY | ACTIVITY | GRADIENTS | RANKS | WEIGHTS | CURVATURE | PROBES


def select(names: Iterable[str]) -> tuple[str, ...]:
    """The metrics beyond the usual ones that names and groups stand for, each once.

    Raises:
        UserError: Neither a group nor a metric that can be asked for.
    """
    single = {name for group in GROUPS.values() for name in group}
    found: dict[str, None] = {}
    for name in names:
        if name == "all":
            found.update(dict.fromkeys(metric for group in GROUPS.values() for metric in group))
        elif name in GROUPS:
            found.update(dict.fromkeys(GROUPS[name]))
        elif name in single:
            found[name] = None
        elif name not in PLASTICITY:  # those are measured in any case
            hint = did_you_mean(name, [*GROUPS, "all", *single])
            raise UserError(f"no metrics '{name}'{hint} (groups: {', '.join(GROUPS)}, all; or names of their metrics)")
    return tuple(found)
