"""Facts about a method: kind, hooks and cost, as shown by ``plastibench list interventions``."""

from __future__ import annotations

from dataclasses import dataclass

from plastibench.config.registry import Entry

HOOKS = ("prepare", "penalty", "before_update", "after_update", "intervene", "evaluated")  # in call order


@dataclass(frozen=True)
class Facts:
    """Facts about one method.

    Attributes:
        kind: What the method acts on, for example ``units``.
        hooks: The hooks that the method overrides.
        extra_memory: State that the method keeps between updates plus parameters that it adds, in copies of the
            parameters of ``vit-nano``. Negative if it removes parameters.
        extra_compute: Noticeable extra computation, in a few words.
    """

    kind: str
    hooks: tuple[str, ...]
    extra_memory: float = 0.0
    extra_compute: str = ""

    @property
    def cost(self) -> str:
        """Memory and computation in a few words."""
        digits = 2 if self.extra_memory > 0 else 1
        memory = f"{self.extra_memory:+.{digits}g}× parameters" if abs(self.extra_memory) >= 0.005 else ""
        return ", ".join(filter(None, [memory, self.extra_compute])) or "–"


def facts(entry: Entry) -> Facts:
    """The facts that the class of a method declares. Built-in classes are not imported."""
    if entry.source is None:
        return _of_class(entry.load())
    attributes, methods = entry.source.attributes, entry.source.methods
    return Facts(
        entry.kind,
        tuple(hook for hook in HOOKS if methods.get(hook, "Intervention") != "Intervention"),
        attributes.get("extra_memory", 0.0),
        attributes.get("extra_compute", ""),
    )


def _of_class(cls: type) -> Facts:
    from plastibench.interventions.base import Intervention

    return Facts(
        getattr(cls, "kind", "custom"),
        tuple(hook for hook in HOOKS if getattr(cls, hook, None) is not getattr(Intervention, hook)),
        getattr(cls, "extra_memory", 0.0),
        getattr(cls, "extra_compute", "?"),
    )
