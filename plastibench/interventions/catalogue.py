"""What kind of method each class is, when it acts, and what it costs: for ``plastibench list``, which imports none.

A test compares hooks and memory with the classes themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

from plastibench.config.registry import Entry


@dataclass(frozen=True)
class Facts:
    """A method at a glance.

    Attributes:
        kind: What it works on.
        hooks: The hooks that it gives a body, in the order in which a run calls them.
        memory: What it keeps between updates (or adds to the network), in copies of the parameters of ``vit-nano``.
        compute: What it computes besides, where that is noticeable.
    """

    kind: str
    hooks: tuple[str, ...]
    memory: float = 0.0
    compute: str = ""

    @property
    def cost(self) -> str:
        """Memory and computation in a few words."""
        memory = "" if self.memory == 0 else f"{self.memory:+.2g} parameters" if self.memory >= 0.005 else ""
        memory = f"{self.memory:+.1g} parameters" if self.memory <= -0.005 else memory
        return ", ".join(filter(None, [memory, self.compute])) or "–"


_ACT, _INNER = ("intervene",), ("prepare", "penalty", "before_update", "after_update", "intervene", "evaluated")
_ONE_PASS, _BACKWARD = "a forward pass each time", "a forward and backward pass each time"

FACTS = {
    "none:NoIntervention": Facts("base", ()),
    "reset:Reset": Facts("reset", _ACT),
    "shrink_perturb:ShrinkPerturb": Facts("reset", ("prepare", "intervene"), 0, "1 copy if noise is initial weights"),
    "knowledge_evolution:KnowledgeEvolution": Facts("reset", _ACT, 0.25),
    "fire:Fire": Facts("reset", _ACT),
    "dash:Dash": Facts("reset", _ACT, 0, _BACKWARD),
    "selective_weight_reinit:SelectiveWeightReinit": Facts("weights", ("after_update", "intervene")),
    "revive:Revive": Facts("units", ("prepare", "intervene"), 0, _BACKWARD),
    "rnr:RnR": Facts("units", ("prepare", "intervene"), 0, f"{_BACKWARD}, and its least-squares fits"),
    "continual_backprop:ContinualBackprop": Facts("units", ("prepare", "penalty", "after_update"), 0.025),
    "self_normalized_resets:SelfNormalizedResets": Facts("units", ("prepare", "penalty", "after_update"), 0.03),
    "calibrated_partial_resets:CalibratedPartialResets": Facts(
        "units", ("penalty", "after_update", "intervene"), 0.012
    ),
    "recouple:Recouple": Facts("after another", _INNER, 0, "least-squares fits each time"),
    "distil:Distil": Facts("after another", _INNER, 0, "20 gradient steps each time"),
    "rehearse:Rehearse": Facts("after another", _INNER, 0, "20 gradient steps each time"),
    "upgd:UPGD": Facts("optimizer", ("prepare", "before_update", "after_update"), 1.0),
    "neuroplastic_expansion:NeuroplasticExpansion": Facts(
        "optimizer", ("prepare", "before_update", "after_update"), 1.23
    ),
    "noisy_updates:NoisyUpdates": Facts(
        "optimizer", ("prepare", "before_update", "after_update"), 0.006, "a normal draw per parameter and update"
    ),
    "soft_shrink_perturb:SoftShrinkPerturb": Facts("optimizer", ("prepare", "after_update"), 1.0),
    "weight_clipping:WeightClipping": Facts("optimizer", ("prepare", "after_update", "intervene")),
    "l2:L2": Facts("regulariser", ("prepare", "penalty", "after_update"), 0, "1 copy if towards initial weights"),
    "wasserstein:Wasserstein": Facts("regulariser", ("prepare", "penalty"), 1.0, "sorts every tensor at every update"),
    "parseval:Parseval": Facts("regulariser", ("prepare", "penalty"), 0, "a Gram matrix per layer and update"),
    "spectral_decoupling:SpectralDecoupling": Facts("regulariser", ("penalty",), 0, "1 forward pass per update"),
    "self_distillation:SelfDistillation": Facts(
        "regulariser", ("prepare", "penalty", "after_update"), 1.0, "2 forward passes per update"
    ),
    "hare_tortoise:HareTortoise": Facts("slow weights", ("prepare", "after_update", "intervene", "evaluated"), 1.0),
    "hare_tortoise:EMA": Facts("slow weights", ("prepare", "after_update", "evaluated"), 1.0),
    "paired_activations:PairedActivations": Facts("architecture", ("prepare",), -0.16),
    "layer_norm:LayerNorms": Facts("architecture", ("prepare",), 0.01),
    "layer_norm:AffineFree": Facts("architecture", ("prepare",), -0.006),
    "normalize_project:NormalizeAndProject": Facts("architecture", ("prepare", "after_update"), -0.006),
    "plasticity_injection:PlasticityInjection": Facts(
        "architecture", ("prepare", "intervene"), 0.5, "the tail three times"
    ),
}


def hooks_of(kind: type) -> tuple[str, ...]:
    """The hooks that a class of a user's own gives a body."""
    from plastibench.interventions.base import Intervention

    return tuple(hook for hook in _INNER if getattr(kind, hook, None) is not getattr(Intervention, hook))


def facts(entry: Entry) -> Facts | None:
    """The facts of a built-in method; None of a user's own."""
    target = entry.target if isinstance(entry.target, str) else ""
    return FACTS.get(target.removeprefix("plastibench.interventions."))
