"""Memory and time of RnR on transformers by formula: the tables of concepts/growing.md.

python docs/growing.py    # write the tables into the page
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "concepts" / "growing.md"
POINTS = ROOT / "runs" / "reference" / "growing" / "points.jsonl"  # lines printed by docs/measure_growing.py
MARKS = "<!-- {}: python docs/growing.py -->", "<!-- end of {} -->"
GIB, MIB = 2**30, 2**20
LIMIT = 1 * GIB  # default of the option `memory`
STREAMED_LIMIT = 0.1 * GIB  # with which the part `streamed` was measured
PROCESS = 40 * MIB  # code and buffers that a process loads with its first intervention
PASSES, PASS = 32, 3 * MIB  # largest number of halted passes, and what MKL keeps for the thread of each
ROWS = 16_384  # rows that are converted to float64 at a time
GPUS = (1, 8, 64)
BFLOAT16, FULL, USED = 989e12, 67e12, 0.4  # peak FLOP/s of an H100 SXM (float32 and float64: 67e12), and the part used
ERROR = 1.5  # measured memory lies within this factor of the formula, in both directions


@dataclass(frozen=True)
class Transformer:
    """A ViT or a decoder like GPT-2.

    Attributes:
        width: D, width of the residual stream.
        depth: L, number of blocks.
        tokens: T, tokens of a sample.
        vocabulary: V, outputs of every token of a language model; 0 for a ViT.
        others: Parameters outside of the blocks.
        inputs: Numbers in the input of a sample.
        batch: Samples of an update.
        samples: N, samples of the representative batch.
    """

    width: int
    depth: int
    tokens: int
    vocabulary: int = 0
    others: int = 0
    inputs: int = 0
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

    def refit_chunk(self, samples: int, limit: float = LIMIT) -> int:
        """k: samples in a forward pass of a streamed refit."""
        return max(_power_of_two(limit / 8 / (2 * self.evaluation)), -(-samples // PASSES))

    def score(self, samples: int, limit: float = LIMIT) -> float:
        """Gradients of all parameters, their sums, new weights, and the activations of c samples."""
        return PROCESS + 3 * 4 * self.parameters + 1.5 * min(samples, self.scoring_chunk(limit)) * self.training

    def one_pass(self, samples: int) -> float:
        """Activations of twice the batch, copies of the parameters, and the sums of a layer."""
        return PROCESS + 2 * samples * self.evaluation + 4 * 4 * self.parameters + self.sums(samples)

    def streamed(self, samples: int, limit: float = LIMIT) -> float:
        """What halted passes hold, the activations of a chunk, copies of the parameters, and the sums of a layer."""
        chunk = min(samples, self.refit_chunk(samples, limit))
        passes = -(-samples // chunk)
        held = passes * PASS + 2 * samples * 4 * (2 * self.tokens * self.width + self.inputs)
        return PROCESS + held + 2 * chunk * self.evaluation + 2 * 4 * self.parameters + self.sums(chunk)

    def sums(self, samples: int) -> float:
        """The sums of the layer with the most inputs, its solution, and the rows that are converted to float64."""
        p, units = self.hidden + 1, self.width
        rows = min(ROWS, samples * self.tokens)
        return 8 * (6 * p * p + 6 * p * units + rows * (2 * p + units))

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
        passes = 3 + 2 * (3.2 if streamed else 1)  # scores, and both halves
        return samples * passes * self.forward, self.gram(samples)


def _power_of_two(count: float) -> int:
    found = 256
    while found > 1 and found > count:
        found //= 2
    return found


MEASURED = {
    "vit-nano": Transformer(64, 4, 5, others=5_578),
    "vit-tiny": Transformer(192, 12, 65, others=71_716, inputs=3_072),
    "vit-tiny, 2 blocks": Transformer(192, 2, 65, others=46_756, inputs=3_072),
    "ViT-S/16, 2 blocks": Transformer(384, 2, 197, others=816_928, inputs=150_528),
    "GPT-2, 2 blocks": Transformer(768, 2, 256, 50_257, others=38_815_488),
}
LARGE = {
    "ViT-S/16": Transformer(384, 12, 197, others=816_928, inputs=150_528, batch=1024),
    "ViT-B/16": Transformer(768, 12, 197, others=1_600_000, inputs=150_528, batch=1024),
    "ViT-L/16": Transformer(1024, 24, 197, others=2_300_000, inputs=150_528, batch=1024),
    "1B language model": Transformer(2048, 18, 1024, 50_257, others=105_000_000, batch=512, samples=256),
}


def predicted(model: str, part: str, samples: int) -> float:
    """Bytes of a measured part by formula."""
    found = MEASURED[model]
    limit = STREAMED_LIMIT if part == "streamed" else LIMIT
    streams = 2 * samples * found.evaluation > limit
    refit = found.streamed(samples, limit) if streams and part != "one pass" else found.one_pass(samples)
    return {"score": found.score(samples), "rnr": max(found.score(samples), refit)}.get(part, refit)


def measured_table() -> str:
    """Measured and predicted memory, and CPU time."""
    lines = ["| model | part | samples | measured | formula | CPU time |", "| :-- | :-- | --: | --: | --: | --: |"]
    for text in POINTS.read_text(encoding="utf-8").splitlines():
        point = json.loads(text)
        formula = predicted(point["model"], point["part"], point["samples"]) / MIB
        updates = f" ({point['updates']:.0f} updates)" if "updates" in point else ""
        lines.append(
            f"| {point['model']} | {point['part']} | {point['samples']:,} | {point['MiB']:.0f} MiB | {formula:.0f} MiB "
            f"| {point['CPU s']:.0f} s{updates} |"
        )
    return "\n".join(lines)


def memory_table() -> str:
    """Memory per GPU."""
    lines = [
        "| model | P | N | training state, 1 / 8 / 64 GPUs | gathered | score | one pass | streamed | sums |",
        "| :-- | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for name, model in LARGE.items():
        n, p = model.samples, model.parameters
        training = " / ".join(f"{16 * p / count / GIB:.2g}" for count in GPUS)
        parts = (12 * p, model.score(n), model.one_pass(n), model.streamed(n), model.sums(n))
        lines.append(
            f"| {name} | {p / 1e6:,.0f} M | {n:,} | {training} GiB | "
            + " | ".join(f"{value / GIB:.2g} GiB" if value < 100 * GIB else f"{value / GIB:.0f} GiB" for value in parts)
            + " |"
        )
    return "\n".join(lines)


def time_table() -> str:
    """Time of an update and of RnR, which every process computes."""
    lines = [
        "| model | update on 1 / 8 / 64 GPUs | RnR, streamed | of which float64 | RnR in updates, 1 / 8 / 64 GPUs |",
        "| :-- | --: | --: | --: | --: |",
    ]
    for name, model in LARGE.items():
        update = model.update / (USED * BFLOAT16)
        full, double = (flops / (USED * FULL) for flops in model.rnr(model.samples, streamed=True))
        updates = " / ".join(f"{1000 * update / count:,.3g}" for count in GPUS)
        relative = " / ".join(f"{(full + double) / update * count:,.0f}" for count in GPUS)
        lines.append(f"| {name} | {updates} ms | {full + double:.3g} s | {double:.2g} s | {relative} |")
    return "\n".join(lines)


TABLES = {"measured": measured_table, "memory": memory_table, "time": time_table}


def with_tables(page: str) -> str:
    """Replace the tables of the page."""
    for name, table in TABLES.items():
        first, last = (mark.format(name) for mark in MARKS)
        page = f"{page.split(first)[0]}{first}\n{table()}\n{last}{page.split(last)[1]}"
    return page


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
