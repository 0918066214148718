"""Base class of classifier configs: training options, and the method that builds the agent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from plastibench.agents.classifier_options import ClassifierOptions
from plastibench.config.errors import UserError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ClassifierConfig(ClassifierOptions):
    """Base of all classifiers' configs; a subclass defines the network in ``module``.

    Attributes:
        stackable: Whether several runs can share a process; see :mod:`plastibench.agents.shared_process`.
    """

    stackable: ClassVar[bool] = False

    def build(self, env: Any, seed: int, device: torch.device) -> Any:
        """Create the :class:`~plastibench.agents.classifier.Classifier` for a task stream.

        Raises:
            UserError: The env is not a task stream.
        """
        from plastibench.agents.classifier import Classifier
        from plastibench.envs.task_stream import TaskStream

        if not isinstance(env, TaskStream):
            raise UserError(
                "agent: a classifier needs a task stream (cl-*, …); for rl-* environments use dqn-* or sac-*"
            )
        return Classifier(self, env, seed, device)
