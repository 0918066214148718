"""Keep a PyTorch model plastic in your own training loop, with checkpoints.

python examples/own_training_loop.py
python examples/own_training_loop.py --method none
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import plastibench as pb

TASKS, EPOCHS = 8, 20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", default="rnr")
    method = parser.parse_args().method
    torch.manual_seed(0)
    images = torch.tensor(load_digits().data[:400], dtype=torch.float32) / 16  # [400, 64]
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    handle = pb.attach(method, model, optimizer, loss_fn)
    for task in range(TASKS):
        data = {"x": images, "y": torch.randint(10, (len(images),))}  # new random labels: only learning ability counts
        if task > 0:
            handle.intervene(data)
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(images)).split(32):
                batch = {name: value[rows] for name, value in data.items()}
                loss = loss_fn(model, batch) + handle.penalty(batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        accuracy = float((handle.evaluated(data["x"]).argmax(1) == data["y"]).float().mean())
        print(f"task {task + 1}: accuracy {accuracy:.0%}")
        state = {"handle": handle.state_dict(), "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, "checkpoint.pt")  # to resume, load the handle first: some methods change the architecture


def loss_fn(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch["x"]), batch["y"])


if __name__ == "__main__":
    main()
