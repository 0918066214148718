"""Interventions: one file per method. Importing this package registers their names and imports none of them."""

from plastibench.registry import interventions

_HERE = "plastibench.interventions"

interventions.add("none", f"{_HERE}.none:NoIntervention", "train on as before; the base of every comparison")

_RESET = f"{_HERE}.reset:Reset"
interventions.add(
    "reset", _RESET, "re-draw every parameter (Zhou et al. 2022); with --every SR-SAC (D'Oro et al. 2023)"
)
interventions.add("reset-mlp", _RESET, "re-draw the MLP blocks (paper, Fig. 2)", select="mlp")
interventions.add("reset-mlp-qkv", _RESET, "re-draw MLP blocks and QKV projections (paper, Fig. 2)", select="mlp-qkv")
interventions.add("reset-linear", _RESET, "re-draw every fully connected layer (paper, Fig. 2)", select="linear")
interventions.add("reset-layernorm", _RESET, "set every LayerNorm back to γ=1, β=0", select="layernorm")
interventions.add("reset-head", _RESET, "re-draw the output layer (Lee et al. 2024)", select="head")
interventions.add(
    "reset-last-k", _RESET, "re-draw the last k blocks and the head (Nikishin et al. 2022)", select="last-k"
)
interventions.add(
    "later-layer-forgetting",
    _RESET,
    "re-draw the later half of the blocks and the head (Zhou et al. 2022)",
    select="later",
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

interventions.add(
    "sr-spr",
    _SHRINK,
    "keep 80 %, re-draw the output layers (D'Oro et al. 2023); use with --every and --until",
    keep=0.8,
    noise=0.2,
    heads="redraw",
)
interventions.add(
    "bbf",
    _SHRINK,
    "keep 50 %, re-draw the output layers (Schwarzer et al. 2023); use with --every and --until",
    keep=0.5,
    noise=0.5,
    heads="redraw",
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
_RNR = f"{_HERE}.rnr:RnR"
interventions.add("rnr", _RNR, "Revive And Recouple: re-draw dormant units, refit their readers (the paper)")
interventions.add("rnr-decay", _RNR, "rnr that revives ever fewer: 0.7 times the share after each time", decay=0.7)
interventions.add("rnr-mlp", _RNR, "rnr that recouples MLP blocks alone", refit="mlp")
interventions.add("rnr-attention", _RNR, "rnr that recouples attention blocks alone", refit="attention")
interventions.add("rnr-layernorm", _RNR, "rnr that recouples LayerNorms alone", refit="layernorm")
interventions.add(
    "recouple", f"{_HERE}.recouple:Recouple", "any other intervention, then refit the readers of what it changed"
)

interventions.add(
    "revive-zero",
    _REVIVE,
    "low-gradient-quantile that keeps the outputs by zeroing outgoing weights, as ReDo does, instead of recoupling",
    outgoing="zero",
)
_DISTIL, _REHEARSE = f"{_HERE}.distil:Distil", f"{_HERE}.rehearse:Rehearse"
interventions.add("distil", _DISTIL, "any other intervention, then 20 gradient steps back to the old outputs")
interventions.add("revive-distil", _DISTIL, "low-gradient-quantile, then distil", inner="low-gradient-quantile")
interventions.add("shrink-perturb-distil", _DISTIL, "Shrink & Perturb, then distil", inner="shrink-perturb")
interventions.add("reset-distil", _DISTIL, "a full reset, then distil", inner="reset")
interventions.add("rehearse", _REHEARSE, "any other intervention, then 20 gradient steps on the new labels")
interventions.add("revive-rehearse", _REHEARSE, "low-gradient-quantile, then rehearse", inner="low-gradient-quantile")
interventions.add("reset-rehearse", _REHEARSE, "a full reset, then rehearse", inner="reset")

interventions.add(
    "knowledge-evolution",
    f"{_HERE}.knowledge_evolution:KnowledgeEvolution",
    "re-draw all weights but a fixed 80 % (Taha et al. 2021; Zhou et al. 2022)",
)
interventions.add("fire", f"{_HERE}.fire:Fire", "weights become the nearest isometry (isaac7778/FIRE, ICLR 2026)")
interventions.add("dash", f"{_HERE}.dash:Dash", "shrink weights that point away from new gradients (Shin et al. 2024)")
interventions.add(
    "calibrated-partial-resets",
    f"{_HERE}.calibrated_partial_resets:CalibratedPartialResets",
    "move units a little towards fresh ones, the more the smaller their gradients (LucMc/continual-learning 2026)",
)
_SWR = f"{_HERE}.selective_weight_reinit:SelectiveWeightReinit"
interventions.add(
    "selective-weight-reinit", _SWR, "re-draw single weights of small |θ·∂L/∂θ| (Hernandez-Garcia et al. 2025)"
)
interventions.add(
    "selective-weight-reinit-magnitude",
    _SWR,
    "re-draw single weights of small |θ| (Hernandez-Garcia et al. 2025)",
    utility="magnitude",
)
