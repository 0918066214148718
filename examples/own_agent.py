"""Compare methods on your own network.

Run it with ``python own_agent.py``; it takes seconds. On the command line:

    plastibench run relabel-digits --plugin own_agent.py --agent small-cnn --agent.channels 16 --intervention none,rnr
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

import plastibench as pb
from plastibench.agents.classifier_config import ClassifierConfig


@pb.register_agent("small-cnn", "Two convolutions and a linear layer")
@dataclass(frozen=True)
class SmallCNN(ClassifierConfig):
    """Options of the network. Learning rate, schedule, optimizer and precision are inherited options."""

    lr: float = pb.option(1e-3, "peak learning rate", low=0)
    channels: int = pb.option(8, "filters per convolution", low=1)

    def module(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Build the untrained network for images of ``shape`` (C, H, W). Draw only from PyTorch's global generator."""
        return nn.Sequential(
            nn.Conv2d(shape[0], self.channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(self.channels, self.channels, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(self.channels * (shape[1] // 2) * (shape[2] // 2), classes),
        )


def main():
    """Train it with two methods."""
    for method in ("none", "redo"):
        small = {"epochs": 2, "stop_after": 3, "train_size": 100}
        result = pb.train("relabel-digits", "small-cnn", method, env_options=small, progress=False)
        print(f"{method}: training accuracy on the last task {100 * result.final:.1f} %")


if __name__ == "__main__":
    main()
