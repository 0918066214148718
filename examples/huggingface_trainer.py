"""Intervene during training with the Trainer of Hugging Face transformers.

pip install 'plastibench[transformers]'

    python examples/huggingface_trainer.py
"""

from __future__ import annotations

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from plastibench.integrations.transformers import PlasticityCallback


def main() -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
    )
    callback = PlasticityCallback("rnr", every=20, size=64, options={"quantile": 0.2})
    trainer = Trainer(
        model=BertForSequenceClassification(config),
        args=TrainingArguments("out", max_steps=60, logging_steps=20, report_to=[], use_cpu=True, learning_rate=1e-3),
        train_dataset=sentences(256),
        callbacks=[callback],
    )
    trainer.train()
    report = callback.attached.report
    print(f"last intervention: {report.revived_fraction:.0%} of units, {report.parameters:,} parameters")


def sentences(count: int) -> list[dict[str, torch.Tensor]]:
    """Sequences of tokens; the label says whether token 7 occurs."""
    words = torch.randint(20, (count, 12))
    return [{"input_ids": line, "labels": (line == 7).any().long()} for line in words]


if __name__ == "__main__":
    main()
