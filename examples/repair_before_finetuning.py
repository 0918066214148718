"""Repair a network once before fine-tuning, and measure whether that helps.

The script tests two networks: an MLP that was trained on random labels, and an MLP that was trained only on the digits
0 to 4. Both are then fine-tuned on all ten digits, without a repair and after each method.

    python examples/repair_before_finetuning.py            # 1 seed
    python examples/repair_before_finetuning.py --seeds 5
"""

from __future__ import annotations

import argparse
import copy
import functools
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from scipy import stats
from sklearn.datasets import load_digits
from torch import Tensor, nn

import plastibench as pb

METHODS = ["none", "new network", "reset-head", "shrink-perturb-keep80", "redo", "regrama", "fire", "rnr"]
Batch = dict[str, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=1)
    seeds = range(parser.parse_args().seeds)
    torch.set_num_threads(1)
    print(f"{'':24} {'after random labels':>25} {'after digits 0 to 4':>25}")
    for method in METHODS:
        row = []
        for damage in (random_labels, few_classes):
            found = [accuracy_after(method, damage, seed) for seed in seeds]
            row += [interval([first for first, _ in found]), interval([last for _, last in found])]
        print(f"{method:24} {row[0]:>12} {row[1]:>12} {row[2]:>12} {row[3]:>12}")
    print("test accuracy in % after 1 and after 10 epochs of fine-tuning; mean over seeds ± 95 % confidence interval")


def accuracy_after(method: str, damage: Callable[[int], nn.Module], seed: int) -> tuple[float, float]:
    """Accuracy after the first and after the tenth epoch of fine-tuning."""
    train, test = digits(seed)
    model = new_network(seed + 1000) if method == "new network" else copy.deepcopy(damage(seed))
    if method not in ("none", "new network"):
        pb.apply(method, model, train, loss_fn)
    first = fit(model, train, epochs=1, seed=seed)
    return accuracy(first, test), accuracy(fit(first, train, epochs=9, seed=seed + 1), test)


@functools.cache
def random_labels(seed: int) -> nn.Module:
    """A network that has learned eight sets of random labels."""
    train, _ = digits(seed)
    model, generator = new_network(seed), torch.Generator().manual_seed(seed)
    for _ in range(8):
        labels = torch.randint(10, train["y"].shape, generator=generator)
        fit(model, {"x": train["x"], "y": labels}, epochs=30, seed=seed)
    return model


@functools.cache
def few_classes(seed: int) -> nn.Module:
    """A network that has only seen the digits 0 to 4."""
    train, _ = digits(seed)
    known = train["y"] < 5
    return fit(new_network(seed), {name: value[known] for name, value in train.items()}, epochs=100, seed=seed)


def new_network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def digits(seed: int) -> tuple[Batch, Batch]:
    """500 training images and the rest for testing."""
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(seed))
    x, y = torch.tensor(found.data[order], dtype=torch.float32) / 16, torch.tensor(found.target[order])
    return {"x": x[:500], "y": y[:500]}, {"x": x[500:], "y": y[500:]}


def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch["x"]), batch["y"])


def fit(model: nn.Module, data: Batch, epochs: int, seed: int) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(data["y"]), generator=generator).split(32):
            optimizer.zero_grad()
            loss_fn(model, {name: value[rows] for name, value in data.items()}).backward()
            optimizer.step()
    return model


@torch.no_grad()
def accuracy(model: nn.Module, data: Batch) -> float:
    return 100 * float((model(data["x"]).argmax(1) == data["y"]).float().mean())


def interval(values: list[float]) -> str:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.1f}"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.1f} ± {half:.1f}"


if __name__ == "__main__":
    main()
