"""Measure the peak extra memory and the CPU time of a part of RnR: the points of concepts/growing.md.

python docs/measure_growing.py MODEL PART SAMPLES    # each call is one process; Linux only
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from plastibench.config.options import build
from plastibench.config.registry import agents
from plastibench.interventions.revive import Revive
from plastibench.interventions.rnr import RnR
from plastibench.nn.dataflow import trace
from plastibench.nn.least_squares import Solver
from plastibench.nn.memory import refit_plan
from plastibench.nn.network import Network
from plastibench.nn.refit import refit, snapshot
from plastibench.nn.row_order import row_order

VOCABULARY = 50_257


def _agent(name: str, shape: tuple[int, int, int], classes: int, **options: object) -> nn.Module:
    entry = agents[name]
    module: nn.Module = build(entry.load(), {**entry.defaults, **options}, name).module(shape, classes)
    return module


def _timm(name: str, **options: object) -> nn.Module:
    import timm

    module: nn.Module = timm.create_model(name, num_classes=1000, **options)
    return module


def _gpt2(width: int, depth: int) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=256, n_embd=width, n_layer=depth, n_head=width // 64, use_cache=False
    )
    return GPT2LMHeadModel(config)


# builder, shape of an image (or length of a sequence), samples of an update
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "vit-nano": (partial(_agent, "vit-nano", (1, 8, 8), 10), (1, 8, 8), 64),
    "vit-tiny": (partial(_agent, "vit-tiny", (3, 32, 32), 100), (3, 32, 32), 256),
    "vit-small": (partial(_agent, "vit-small", (3, 32, 32), 100), (3, 32, 32), 256),
    "vit-tiny, 2 blocks": (partial(_agent, "vit-tiny", (3, 32, 32), 100, depth=2), (3, 32, 32), 256),
    "ViT-S/16, 2 blocks": (partial(_timm, "vit_small_patch16_224", depth=2), (3, 224, 224), 16),
    "GPT-2, 2 blocks": (partial(_gpt2, 768, 2), (256,), 4),
}


def network_of(name: str) -> Network:
    """The network with AdamW, after one update, so that the optimizer has its state."""
    builder, _, _ = MODELS[name]
    torch.manual_seed(0)
    module = builder()
    network = Network(module, torch.optim.AdamW(module.parameters(), lr=1e-4), _loss, fresh=builder)
    _update(network, batch_of(name, 2))
    return network


def batch_of(name: str, count: int) -> TensorDict:
    """Random inputs and labels."""
    shape = MODELS[name][1]
    if len(shape) == 1:
        tokens = torch.randint(VOCABULARY, (count, *shape))
        return TensorDict({"input_ids": tokens, "labels": tokens}, batch_size=[count])
    return TensorDict({"image": torch.randn(count, *shape), "label": torch.randint(10, (count,))}, batch_size=[count])


def _loss(module: nn.Module, batch: TensorDictBase) -> Tensor:
    if "image" in batch:
        return F.cross_entropy(module(batch["image"]), batch["label"])
    loss: Tensor = module(**batch).loss
    return loss


def _update(network: Network, batch: TensorDictBase) -> None:
    network.update(network.loss(network.module, batch), batch)


def score(network: Network, batch: TensorDictBase) -> None:
    """Score and revive."""
    Revive("low-gradient-quantile").intervene(network, batch)


def recouple(network: Network, batch: TensorDictBase, memory: float | None) -> None:
    """Everything that RnR does after revive; here, the first 40 % of the units of each layer are negated instead."""
    layers = trace(network, batch)
    plan = refit_plan(network, batch, memory)
    order = row_order(network, batch, layers, plan.chunk)
    before = snapshot(layers)
    masks = {}
    with torch.no_grad():
        for layer in layers[:-1]:
            count = len(before[layer.name][0])
            masks[layer.name] = torch.arange(count) < 0.4 * count
            layer.module.weight[: int(0.4 * count)].neg_()
    refit(network, batch, layers, before, masks, lambda _: True, Solver(), order, plan)


PARTS: dict[str, Callable[[Network, TensorDictBase], object]] = {
    "score": score,
    "one pass": partial(recouple, memory=1e6),
    "streamed": partial(recouple, memory=0.1),
    "rnr": lambda network, batch: RnR().intervene(network, batch),
    "rnr, 2 blocks": lambda network, batch: RnR(refit=r"blocks\.[01]\..*").intervene(network, batch),
}


def peak_extra_memory(part: Callable[[], object]) -> int:
    """Bytes by which the resident memory of the process grows at most while a function runs (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _resident("VmHWM")
    part()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def measure(name: str, part: str, samples: int, updates: int = 3) -> dict[str, float]:
    """Peak extra memory in MiB and CPU time, absolute and in updates."""
    network, batch = network_of(name), batch_of(name, samples)
    own = batch_of(name, MODELS[name][2])
    start = time.process_time()
    memory = peak_extra_memory(lambda: PARTS[part](network, batch))
    seconds = time.process_time() - start
    times = []
    for _ in range(updates):
        start = time.process_time()
        _update(network, own)
        times.append(time.process_time() - start)
    found = {"MiB": memory / 2**20, "CPU s": seconds}
    return {**found, "updates": seconds / statistics.median(times)} if times else found


def main() -> None:
    """Print the values of one part as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("samples", type=int)
    parser.add_argument("--updates", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(args.model, args.part, args.samples, args.updates)
    print(json.dumps({"model": args.model, "part": args.part, "samples": args.samples, **found}))


if __name__ == "__main__":
    main()
