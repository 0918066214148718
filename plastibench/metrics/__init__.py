"""Metrics: what a run measures. Pure functions in the modules beside this one; here their names and definitions."""

PERFORMANCE = {
    "accuracy": "share of evaluation images (clean test set; relabel-*: training set) that are classified rightly",
    "accuracy-after": "the same right after the intervention, for the task that has just ended",
    "drop": "accuracy at the end of a task minus accuracy right after the intervention that follows, in points",
    "agreement": "share of evaluation images whose predicted class the intervention left as it was",
    "output-kl": "mean KL divergence from the outputs before the intervention to those after it, in nats",
    "recovery": "epochs until an evaluation reaches the accuracy before the switch again",
    "auc": "area under the accuracy curve of a task over its epochs, divided by their number",
    "train-accuracy": "accuracy on the (noisy) training labels, over the representative batch",
    "loss": "training loss, mean of the updates since the last evaluation",
    "gradient-norm": "norm of the whole gradient before clipping, mean of the updates since the last evaluation",
}
PLASTICITY = {
    "dormant-ratio": "share of units with E|h_i| <= 0.1 of their layer's mean (ReDo, Sokar et al. 2023)",
    "gradient-dormant-ratio": "share of units with E|∂L/∂z_i| <= 0.01 of their layer's mean (ReGraMa, pre-activation)",
    "low-gradient-ratio": "share of units with E|∂L/∂z_i| <= 0.1 of their layer's mean",
    "effective-rank": "exp of the entropy of the normalised singular values of the head's input (Roy & Vetterli 2007)",
    "srank": "singular values of the head's input that hold 99 % of their sum (Kumar et al. 2021, δ = 0.01)",
    "weight-norm": "Euclidean norm of all parameters",
    "weight-distance": "||θ - θ0|| / ||θ0|| with the initial parameters θ0",
    "layernorm-gradient-spread": "standard deviation over features of E[∂L/∂z_i], last LayerNorm (paper, Fig. 3)",
}
METRICS = PERFORMANCE | PLASTICITY
