"""The callbacks in two processes that train with DistributedDataParallel give the weights of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from plastibench.utils import distributed
from tests.support import networks
from tests.support.processes import together

transformers = pytest.importorskip("transformers")
lightning = pytest.importorskip("lightning.pytorch")
from plastibench.integrations.lightning import PlasticityCallback as LightningCallback  # noqa: E402
from plastibench.integrations.transformers import PlasticityCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

WORDS = torch.randint(20, (32, 6), generator=torch.Generator().manual_seed(0))


def classifier() -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = transformers.BertConfig(**sizes, **no_dropout, vocab_size=20, max_position_embeddings=8, num_labels=3)
    return transformers.BertForSequenceClassification(config)


def language_model() -> Any:
    """A model whose loss the Trainer normalizes by the number of tokens in all processes."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=20, max_position_embeddings=8))


def train_with_transformers(name: str, build: Any, options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Four updates of two accumulated batches, with an intervention after the second."""
    words = build is language_model
    data = [{"input_ids": line, "labels": line if words else line[0] % 3} for line in WORDS]
    size = distributed.world_size()
    arguments = transformers.TrainingArguments(
        str(folder),
        max_steps=4,
        per_device_train_batch_size=4 // size,
        gradient_accumulation_steps=2,
        average_tokens_across_devices=words,  # otherwise it doubles the loss of this classifier in two processes
        optim="sgd",  # Adam would amplify rounding, since the gradients of key biases are 0
        learning_rate=1e-1,
        lr_scheduler_type="constant",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        save_steps=2,
    )
    callback = PlasticityCallback(name, steps=(2,), size=20, options=options)
    model = networks.drawn(build, distributed.rank())  # DistributedDataParallel starts from the first process
    trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=[callback])
    trainer.train()
    assert callback.attached.steps == 4
    return {"weights": networks.state(trainer.model), "masks": callback.attached.report.units}


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))

    def training_step(self, batch: Any, index: int) -> Any:
        return loss(self, batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def loss(module: Any, batch: Any) -> torch.Tensor:
    return F.cross_entropy(module.net(batch[0].flatten(1)), batch[1])


def train_with_lightning(name: str, options: dict[str, Any], folder: Path, draws: bool = False) -> dict[str, Any]:
    """Four updates of two accumulated batches, with an intervention after the second."""
    data, size = networks.images(32, classes=3), distributed.world_size()
    sampler = range(distributed.rank(), 32, size)  # Lightning's own would shuffle
    loader = DataLoader(TensorDataset(data["image"], data["label"]), batch_size=4 // size, sampler=sampler)
    rows, _ = distributed.shard(32)
    draw = (lambda: (data["image"][rows], data["label"][rows])) if draws else None
    callback = LightningCallback(name, loss, steps=(2,), size=20, options=options, draw=draw)
    trainer = lightning.Trainer(
        default_root_dir=folder,
        callbacks=[callback],
        accelerator="cpu",
        devices=size,
        strategy="ddp" if size > 1 else "auto",
        use_distributed_sampler=False,
        accumulate_grad_batches=2,
        max_steps=4,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = networks.drawn(Module, distributed.rank())
    trainer.fit(module, loader)
    assert callback.attached.steps == 4
    return {"weights": networks.state(module), "masks": callback.attached.report.units}


def train_all(folder: Path) -> dict[str, Any]:
    transformers.utils.logging.set_verbosity_error()
    busy = {"rate": 0.1, "maturity": 1}
    return {
        "rnr": train_with_transformers("rnr", classifier, {}, folder / "rnr"),
        "l2-init": train_with_transformers("l2-init+rnr", language_model, {"l2_init__strength": 0.1}, folder / "l2"),
        "continual-backprop": train_with_lightning("continual-backprop", busy, folder),
        "drawn": train_with_lightning("l2-init+rnr", {"l2_init__strength": 0.1}, folder, draws=True),
    }


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    alone = train_all(tmp_path / "one")
    for found in together(train_all, tmp_path / "two", folder=tmp_path / "group"):
        for name, expected in alone.items():
            assert expected["masks"].keys() == found[name]["masks"].keys(), name
            for unit, mask in expected["masks"].items():
                assert torch.equal(mask, found[name]["masks"][unit]), (name, unit)
            for key, value in expected["weights"].items():
                torch.testing.assert_close(
                    value, found[name]["weights"][key], rtol=1e-3, atol=1e-4, msg=f"{name} {key}"
                )
    states = [torch.load(tmp_path / n / "l2/checkpoint-2/plastibench.pt", weights_only=True) for n in ("one", "two")]
    assert states[0]["steps"] == states[1]["steps"] == 2
