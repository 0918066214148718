"""Interventions: one file per method. Importing this package registers their names and imports none of them."""

from plastibench.config.registry import interventions

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

_BACKPROP = f"{_HERE}.continual_backprop:ContinualBackprop"
interventions.add(
    "continual-backprop", _BACKPROP, "replace units of little use at a constant rate (Dohare et al. 2024, contribution)"
)
interventions.add(
    "continual-backprop-adaptable",
    _BACKPROP,
    "the same, with the utility that counts how fast a unit could adapt (Dohare et al. 2021)",
    utility="adaptable",
)
interventions.add(
    "self-normalized-resets",
    f"{_HERE}.self_normalized_resets:SelfNormalizedResets",
    "re-draw units silent for unusually long by their own standards (Farias & Jozefiak 2025)",
)
_UPGD = f"{_HERE}.upgd:UPGD"
interventions.add("upgd", _UPGD, "SGD that spares useful weights and perturbs the others (Elsayed & Mahmood 2024)")
interventions.add("upgd-adam", _UPGD, "the same gate on the agent's own optimizer, as AdamUPGD", rule="adam")
interventions.add(
    "neuroplastic-expansion",
    f"{_HERE}.neuroplastic_expansion:NeuroplasticExpansion",
    "begin sparse, grow connections where gradients ask for them, prune the weakest (Liu et al. 2025)",
)
_L2 = f"{_HERE}.l2:L2"
interventions.add("l2", _L2, "½λ‖θ‖² in the loss (Krogh & Hertz 1991)")
interventions.add(
    "l2-decoupled", _L2, "θ ← θ − lr·λ·θ after the step (Loshchilov & Hutter 2019)", form="decoupled", strength=0.05
)
interventions.add("l2-init", _L2, "½λ‖θ−θ₀‖² in the loss (Kumar et al. 2023)", towards="initial")
interventions.add(
    "l2-init-decoupled",
    _L2,
    "θ ← θ − lr·λ(θ−θ₀) after the step (Kumar et al. 2023, decoupled)",
    towards="initial",
    form="decoupled",
    strength=1.0,
)
interventions.add(
    "l2-init-norm",
    _L2,
    "λ‖θ−θ₀‖, not squared, in the loss (Kumar et al. 2023, as some repositories have it)",
    towards="initial",
    form="norm",
    strength=1e-2,
)
interventions.add(
    "wasserstein",
    f"{_HERE}.wasserstein:Wasserstein",
    "squared distance of sorted weights from sorted initial weights in the loss (Lewandowski et al. 2024)",
)
interventions.add(
    "weight-clipping",
    f"{_HERE}.weight_clipping:WeightClipping",
    "clamp weights to a multiple of their initial bound after every update (Elsayed et al. 2024)",
)
interventions.add(
    "parseval", f"{_HERE}.parseval:Parseval", "λ Σ ‖WWᵀ − s·I‖² over hidden layers in the loss (Chung et al. 2024)"
)
interventions.add(
    "spectral-decoupling",
    f"{_HERE}.spectral_decoupling:SpectralDecoupling",
    "λ·mean(logits²) in the loss (Pezeshki et al. 2021)",
)
interventions.add(
    "self-distillation",
    f"{_HERE}.self_distillation:SelfDistillation",
    "KL to a moving average of the network in the loss (baseline of Lee et al. 2024)",
)
interventions.add(
    "soft-shrink-perturb",
    f"{_HERE}.soft_shrink_perturb:SoftShrinkPerturb",
    "θ ← keep·θ + noise·initial after every update (Juliani & Ash 2024)",
)
_NOISE = f"{_HERE}.noisy_updates:NoisyUpdates"
interventions.add(
    "shrink-perturb-noise",
    _NOISE,
    "weight decay and Gaussian noise on the weights at every update (Dohare et al. 2024)",
    on="weights",
    sigma=1e-5,
    decay=5e-4,
)
interventions.add(
    "noisy-updates",
    _NOISE,
    "Gaussian noise on gradients or weights at every update (baseline of Elsayed & Mahmood 2024)",
)
_HARE = f"{_HERE}.hare_tortoise"
interventions.add(
    "hare-tortoise",
    f"{_HARE}:HareTortoise",
    "set the weights back to their moving average at every intervention (Lee et al. 2024)",
)
interventions.add("ema", f"{_HARE}:EMA", "evaluate the moving average of the weights (Polyak & Juditsky 1992)")
interventions.add(
    "revive-zero",
    _REVIVE,
    "low-gradient-quantile that keeps the outputs by zeroing outgoing weights, as ReDo does, instead of recoupling",
    outgoing="zero",
)
_DISTIL, _REHEARSE = f"{_HERE}.distil:Distil", f"{_HERE}.rehearse:Rehearse"
interventions.add(
    "distil", _DISTIL, "low-gradient-quantile, or any other, then 20 gradient steps back to the old outputs (a control)"
)
interventions.add("shrink-perturb-distil", _DISTIL, "Shrink & Perturb, then distil", inner="shrink-perturb")
interventions.add("reset-distil", _DISTIL, "a full reset, then distil", inner="reset")
interventions.add(
    "rehearse", _REHEARSE, "low-gradient-quantile, or any other, then 20 gradient steps on the new labels (a control)"
)
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
    "single weights of small |θ| become 0 (Hernandez-Garcia et al. 2025)",
    utility="magnitude",
    factor=1e-3,
    replacement="mean",
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
