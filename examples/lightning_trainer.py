"""Intervene during training with Lightning's Trainer.

pip install 'plastibench[lightning]'

    python examples/lightning_trainer.py
"""

from __future__ import annotations

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from plastibench.integrations.lightning import PlasticityCallback


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        loss = F.cross_entropy(self.model(batch[0]), batch[1])
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def main() -> None:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(512, 64), torch.randint(10, (512,)))
    callback = PlasticityCallback(
        "redo", loss=lambda module, batch: F.cross_entropy(module.model(batch[0]), batch[1]), every=20
    )
    trainer = lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(Classifier(), DataLoader(data, batch_size=32, shuffle=True))
    report = callback.attached.report
    print(f"last intervention: {report.revived_fraction:.0%} of units, {report.parameters:,} parameters")


if __name__ == "__main__":
    main()
