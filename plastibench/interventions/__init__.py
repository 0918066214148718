"""Interventions: one file per method. Importing this package registers their names and imports none of them."""

from plastibench.registry import interventions

_HERE = "plastibench.interventions"

interventions.add("none", f"{_HERE}.none:NoIntervention", "train on as before; the base of every comparison")

_RESET = f"{_HERE}.reset:Reset"
interventions.add("reset", _RESET, "re-draw every parameter (Zhou et al. 2022; D'Oro et al. 2023)")
interventions.add("reset-mlp", _RESET, "re-draw the MLP blocks (paper, Fig. 2)", select="mlp")
interventions.add("reset-mlp-qkv", _RESET, "re-draw MLP blocks and QKV projections (paper, Fig. 2)", select="mlp-qkv")
interventions.add("reset-linear", _RESET, "re-draw every fully connected layer (paper, Fig. 2)", select="linear")
interventions.add("reset-layernorm", _RESET, "set every LayerNorm back to γ=1, β=0", select="layernorm")
interventions.add("reset-head", _RESET, "re-draw the output layer (Lee et al. 2024)", select="head")
interventions.add(
    "reset-last-k", _RESET, "re-draw the last k blocks and the head (Nikishin et al. 2022)", select="last-k"
)

_SHRINK = f"{_HERE}.shrink_perturb:ShrinkPerturb"
interventions.add("shrink-perturb", _SHRINK, "θ ← keep·θ + noise·fresh (Ash & Adams 2020)")
interventions.add(
    "shrink-perturb-keep80", _SHRINK, "the paper's α=0.8 read as Ash & Adams do: keep 80 %", keep=0.8, noise=0.2
)
interventions.add(
    "shrink-perturb-keep20",
    _SHRINK,
    "the paper's α=0.8 read as Lee et al. do: keep 20 %, go 80 % back to the initial weights",
    keep=0.2,
    noise=0.8,
    source="initial",
)

_REVIVE = f"{_HERE}.revive:Revive"
interventions.add(
    "redo",
    _REVIVE,
    "re-draw units with small activations, zero their outgoing weights (Sokar et al. 2023)",
    criterion="redo",
    tau=0.1,
    modules="hidden",
    outgoing="zero",
)
interventions.add(
    "regrama", _REVIVE, "re-draw units with small pre-activation gradients (paper 3.3)", criterion="regrama"
)
interventions.add(
    "regrama-post",
    _REVIVE,
    "re-draw units with small post-activation gradients (Liu et al. 2025, as published)",
    criterion="regrama-post",
    tau=0.01,
)
interventions.add(
    "regrama-weight",
    _REVIVE,
    "re-draw units with small weight gradients (Liu et al. 2025, as released)",
    criterion="regrama-weight",
    tau=0.01,
)
interventions.add(
    "low-gradient-quantile",
    _REVIVE,
    "re-draw the fraction of units with the smallest gradients (paper 3.3), without recoupling",
    criterion="low-gradient-quantile",
)
interventions.add(
    "rnr", f"{_HERE}.rnr:RnR", "Revive And Recouple: re-draw dormant units, refit their readers (the paper)"
)
interventions.add(
    "recouple", f"{_HERE}.recouple:Recouple", "any other intervention, then refit the readers of what it changed"
)

_PAIRED = f"{_HERE}.paired_activations:PairedActivations"
interventions.add("crelu", _PAIRED, "activations [relu(z), relu(-z)] of half as many units (Abbas et al. 2023)")
interventions.add(
    "deep-fourier",
    _PAIRED,
    "activations [sin(z), cos(z)] of half as many units (Lewandowski et al. 2024)",
    features="fourier",
)
_LAYERNORM = f"{_HERE}.layer_norm"
interventions.add("layernorm", f"{_LAYERNORM}:LayerNorms", "LayerNorm before every nonlinearity (Lyle et al. 2023)")
interventions.add(
    "layernorm-affine-free", f"{_LAYERNORM}:AffineFree", "LayerNorms lose scale and offset, which the paper blames"
)
interventions.add(
    "normalize-and-project",
    f"{_HERE}.normalize_project:NormalizeAndProject",
    "norms before nonlinearities, weights projected to their initial lengths (Lyle et al. 2024)",
)
interventions.add(
    "plasticity-injection",
    f"{_HERE}.plasticity_injection:PlasticityInjection",
    "freeze the last layers and add a new copy minus itself (Nikishin et al. 2023)",
)
