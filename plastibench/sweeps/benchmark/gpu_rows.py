"""The rows of ``bench gpu``, the most important first: what each measures, and on which run."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from plastibench.config.spec import RunSpec

AGENTS = {"vit-tiny": "cifar100", "vit-small": "tiny_imagenet", "vit-nano": "digits"}  # and its random images
PRECISIONS = ("float32", "tf32", "bfloat16")
MODES = {"eager": "no", "compiled": "default", "graphs": "reduce-overhead"}  # and the value of --agent.compile
STACKS = (4, 16)
_IMAGES = "plastibench.sweeps.benchmark.random_images"
_TINY = {"depth": 1, "dim": 16, "heads": 2, "patch_size": 4, "batch_size": 8}


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        kind: What is measured: ``update``, ``stack``, ``loader``, ``rnr``, ``logits``, ``sync`` or ``runs``.
        agent: Name of the agent.
        precision: Precision of the matrix products.
        mode: ``eager``, ``compiled``, or ``graphs``: compiled with CUDA graphs.
        stack: Number of networks that are updated together.
    """

    kind: str
    agent: str
    precision: str = "float32"
    mode: str = "eager"
    stack: int = 1

    @property
    def name(self) -> str:
        """A name that is unique among the rows."""
        words = [self.kind, self.agent, self.precision, self.mode]
        return " ".join([*words, f"stack {self.stack}"] if self.stack > 1 else words)


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        updates: Updates per measurement.
        rounds: Rounds per measurement.
        rehearsal: Shrink networks and data, so that all rows take seconds on a CPU.
        device: The device.
    """

    updates: int = 10
    rounds: int = 5
    rehearsal: bool = False
    device: str = "cuda"

    def spec(self, row: Row, intervention: str = "none", device: str = "") -> RunSpec:
        """The run that a row measures, on random images."""
        images = "few" if self.rehearsal else AGENTS[row.agent]
        return RunSpec.make(
            "cl-cifar100",
            row.agent,
            intervention,
            env_options={"dataset": "own", "path": f"{_IMAGES}:{images}", "noise": (0.0, 0.0)},
            agent_options=self.agent_options(row),
            device=device or self.device,
            representative=32 if self.rehearsal else 2048,
        )

    def agent_options(self, row: Row) -> dict[str, Any]:
        """The options of the agent of a row."""
        shrunk = _TINY if self.rehearsal else {}
        return {**shrunk, "precision": row.precision, "compile": MODES[row.mode]}


def all_rows() -> list[Row]:
    """All rows, in the order in which they are measured.

    Compiled rows take most of the time. Those in bfloat16 come first, then training runs, then the other compiled ones.
    """
    eager = [Row("update", agent, precision) for agent, precision in itertools.product(AGENTS, PRECISIONS)]
    checks = [
        *(Row("rnr", agent) for agent in AGENTS),
        *(Row("logits", agent) for agent in ("vit-nano", "vit-tiny")),
        *(Row("sync", agent) for agent in ("vit-tiny", "vit-nano", "dqn-mlp")),
    ]
    stacked = [
        Row("stack", agent, precision, mode, stack)
        for mode, precision, agent, stack in itertools.product(MODES, reversed(PRECISIONS), AGENTS, STACKS)
    ]
    loader = [Row("loader", agent, "bfloat16") for agent in AGENTS]
    compiled = [
        Row("update", agent, precision, mode)
        for precision, agent, mode in itertools.product(reversed(PRECISIONS), AGENTS, ("compiled", "graphs"))
    ]
    first, later = compiled[: 2 * len(AGENTS)], compiled[2 * len(AGENTS) :]
    return [*eager, *checks, *first, *loader, *stacked, Row("runs", "vit-tiny", "bfloat16"), *later]
