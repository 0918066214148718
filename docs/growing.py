"""Memory and time of RnR on large transformers by formula: the extrapolated tables of concepts/growing.md.

python docs/growing.py    # write the tables into the page
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parent / "concepts" / "growing.md"
POINTS = Path(__file__).parent / "concepts" / "growing.json"
MARKS = "<!-- {}: python docs/growing.py -->", "<!-- end of {} -->"
GIB = 2**30
LIMIT = 1 * GIB  # option `memory`
ROWS = 16_384  # rows that are converted to float64 at a time
GPUS = (1, 8, 64)
PEAK_BFLOAT16, PEAK_FULL, USED = 989e12, 67e12, 0.4  # FLOP/s of an H100 SXM; float32 and float64 have the same peak
ERROR = 1.5  # measured memory is within this factor of the formula


@dataclass(frozen=True)
class Transformer:
    """A ViT or a decoder like GPT-2.

    Attributes:
        width: D, width of the residual stream.
        depth: L, number of blocks.
        tokens: T, tokens of a sample.
        vocabulary: V, outputs of every token of a language model; 0 for a ViT.
        others: Parameters outside of the blocks.
        batch: Samples of an update.
        samples: N, samples of the representative batch.
    """

    width: int
    depth: int
    tokens: int
    vocabulary: int = 0
    others: int = 0
    batch: int = 256
    samples: int = 2048

    @property
    def hidden(self) -> int:
        """F, width of an MLP."""
        return 4 * self.width

    @property
    def parameters(self) -> int:
        """P."""
        return 12 * self.depth * self.width**2 + self.others

    # Memory in bytes --------------------------------------------------------------------------------------------------

    @property
    def evaluation(self) -> int:
        """a: the largest activations of a sample that an evaluation holds."""
        return 4 * self.tokens * max(4 * self.width + 2 * self.hidden, self.width + 2 * self.vocabulary)

    @property
    def training(self) -> int:
        """g: the activations of a sample that a forward pass keeps for the backward pass."""
        return 4 * self.tokens * (self.depth * (8 * self.width + 2 * self.hidden) + 2 * self.vocabulary)

    def scoring_chunk(self, limit: float = LIMIT) -> int:
        """c: samples in a forward and backward pass."""
        return _power_of_two(limit / self.training)

    def score(self, samples: int, limit: float = LIMIT) -> float:
        """Gradients of all parameters, new weights, and the activations of c samples."""
        return 3 * 4 * self.parameters + 1.25 * min(samples, self.scoring_chunk(limit)) * self.training

    def one_pass(self, samples: int) -> float:
        """Activations of twice the batch, copies of the parameters, and the sums of a layer."""
        return 2 * samples * self.evaluation + 4 * 4 * self.parameters + self.sums(samples)

    def streamed(self, samples: int, limit: float = LIMIT) -> float:
        """What halted passes hold, the activations of a chunk, copies of the parameters, and the sums of a layer."""
        chunk = max(min(samples, _power_of_two(limit / 8 / (2 * self.evaluation))), -(-samples // 64))
        held = 2 * samples * 3 * 4 * self.tokens * self.width
        return held + 2 * chunk * self.evaluation + 2 * 4 * self.parameters + self.sums(chunk)

    def sums(self, samples: int) -> float:
        """The sums of the layer with the most inputs, its solution, and the rows that are converted to float64."""
        p, units = self.hidden + 1, self.width
        rows = min(ROWS, samples * self.tokens)
        return 8 * (3 * p * p + 4 * p * units + rows * (2 * p + units))

    # Time in FLOPs ----------------------------------------------------------------------------------------------------

    @property
    def forward(self) -> float:
        """FLOPs of a forward pass of a sample: matrix products and attention."""
        products = 2 * self.tokens * (12 * self.depth * self.width**2 + self.vocabulary * self.width)
        return products + 4 * self.depth * self.tokens**2 * self.width

    @property
    def update(self) -> float:
        """FLOPs of an update."""
        return 3 * self.batch * self.forward

    def gram(self, samples: int) -> float:
        """FLOPs of the sums AᵀA and AᵀY in float64, and of the solutions (p³/3 and 2p²H per layer)."""
        width, hidden = self.width, self.hidden
        layers = [(width, 3 * width), (width, width), (width, hidden), (hidden, width)]
        per_row = sum(2 * (p * p + p * units) for p, units in layers)
        return self.depth * (samples * self.tokens * per_row + sum(p**3 / 3 + 2 * p * p * h for p, h in layers))

    def rnr(self, samples: int, streamed: bool) -> tuple[float, float]:
        """FLOPs of RnR in float32 and in float64."""
        passes = 3 + 2 * (2.1 if streamed else 1)  # scores, and both halves
        return samples * passes * self.forward, self.gram(samples)


def _power_of_two(count: float) -> int:
    found = 256
    while found > 1 and found > count:
        found //= 2
    return found
