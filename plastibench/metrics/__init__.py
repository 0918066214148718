"""Metrics: what a run measures. Pure functions in the modules beside this one; here their names and definitions."""

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
    "q-bias": "mean of what the critic expected minus the discounted return that followed (van Hasselt et al. 2016)",
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
    "weight-distance": "||θ - θ0|| / ||θ0|| with the initial parameters θ0",
    "layernorm-gradient-spread": "standard deviation over features of E[∂L/∂z_i], last LayerNorm (paper, Fig. 3)",
}
METRICS = PERFORMANCE | RETURNS | PLASTICITY
