"""Train with your own optimizer.

Run it with ``python own_optimizer.py``; it takes seconds. On the command line:

    plastibench run relabel-digits --agent mlp --agent.optimizer own_optimizer.py:Lion --agent.lr 1e-4
"""

from __future__ import annotations

import torch

import plastibench as pb


class Lion(torch.optim.Optimizer):
    """Lion optimizer: steps by the sign of an averaged gradient (Chen et al. 2023).

    A step needs no closure, and the state consists of tensors, so that interrupted runs resume exactly.
    """

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        """Make one step."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                average = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                direction = average.lerp(p.grad, 1 - beta1).sign_()
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"])
                average.lerp_(p.grad, 1 - beta2)


def main():
    """Compare it with two optimizers of PyTorch."""
    small = {"epochs": 2, "stop_after": 3, "train_size": 100}
    for optimizer, lr in (("own_optimizer:Lion", 1e-4), ("adamw", 1e-3), ("muon", 1e-3)):
        options = {"optimizer": optimizer, "lr": lr}
        result = pb.train("relabel-digits", "mlp", env_options=small, agent_options=options, progress=False)
        print(f"{optimizer}: training accuracy on the last task {100 * result.final:.1f} %")


if __name__ == "__main__":
    main()
