"""What a run asks of its trainer, be it epochs on a task stream or steps in an environment."""

from __future__ import annotations

from typing import Any, Protocol

from tensordict import TensorDictBase


class Trainer(Protocol):
    """What happens when: how data arrives, when the agent learns, is evaluated and is worked on.

    Attributes:
        axis: What :attr:`place` counts; names a column of ``metrics.csv``.
        unit: What the rate in the progress line counts.
        task: Number of the current task, from 0.
        place: How far the run is, for the curves: epochs of the task, or steps in the environment.
        config: The options of the env, with a ``version``.
        data: Digest of the data it draws from; none where an environment is its own source.
    """

    axis: str
    unit: str
    task: int
    config: Any

    @property
    def data(self) -> str | None:
        """See above."""

    @property
    def place(self) -> float:
        """Where the run is on its axis."""

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""

    @property
    def length(self) -> int:
        """Updates (or steps) of the whole run, for the time left."""

    def begin(self) -> None:
        """Receive the first task."""

    def advance(self) -> None:
        """Go on by the smallest stretch after which the state can be saved."""

    def representative(self) -> TensorDictBase:
        """A fresh representative batch, with all that the networks' losses need."""

    def probe(self) -> TensorDictBase:
        """The batch on which plasticity is measured."""

    def counts(self) -> dict[str, int]:
        """What was consumed, for the result's ``cost``."""

    def result(self) -> dict[str, Any]:
        """The course's own part of ``result.json``, with its ``summary``."""

    def close(self) -> None:
        """Let go of what is open."""

    def state_dict(self) -> dict[str, Any]:
        """All that an exact resume needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
