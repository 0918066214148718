"""Models with LoRA adapters of PEFT: methods act on what is trained, and say what they skip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plastibench import apply, attach
from plastibench.config.errors import UserError
from plastibench.config.registry import interventions
from plastibench.nn.coverage import warning
from plastibench.nn.network import Network
from tests.support import networks
from tests.support.networks import vector_loss, vectors

peft = pytest.importorskip("peft")

OFTEN = {
    "continual-backprop": {"rate": 0.5, "maturity": 1},
    "continual-backprop-adaptable": {"rate": 0.5, "maturity": 1},
    "self-normalized-resets": {"first": 1},
    "neuroplastic-expansion": {"every": 1},
}
REFUSED = {
    "crelu": "is frozen, and this method would change its shape",
    "deep-fourier": "is frozen, and this method would change its shape",
    "layernorm-affine-free": "base_model.model.1 is frozen",
    "normalize-and-project": "base_model.model.1 is frozen",
    "reset-layernorm": "'layernorm' matches no parameter",
    "redo": "matches no module that can be revived",
    "recouple": "matches no module that can be revived",
    "rnr-attention": "matches no module that can be refitted",
    "rnr-layernorm": "matches no module that can be refitted",
    "continual-backprop": "no hidden units to monitor",
    "continual-backprop-adaptable": "no hidden units to monitor",
    "self-normalized-resets": "no hidden units to monitor",
}


def base() -> nn.Sequential:
    layers = nn.Linear(10, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU()
    return nn.Sequential(*layers, nn.Linear(16, 3))


def adapted(seed: int = 0) -> Any:
    """LoRA on two layers, and a trained copy of the output layer."""
    config = peft.LoraConfig(r=4, target_modules=["0", "3"], modules_to_save=["7"])
    return networks.drawn(lambda: peft.get_peft_model(base(), config), seed)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)


def frozen(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}


@pytest.mark.sample(8)
@pytest.mark.parametrize("name", [name for name in interventions.names() if name != "plasticity-injection"])
def test_methods_leave_frozen_weights_as_they_are(name, capsys):
    """The one that is left out freezes more weights itself."""
    model, batch = adapted(), vectors()
    optimizer, before, trained = optimizer_of(model), frozen(model), None
    try:
        handle = attach(name, model, optimizer, vector_loss, **OFTEN.get(name, {}))
        for step in range(5):
            if step == 3:
                handle.intervene(batch)
            loss = vector_loss(model, batch) + handle.penalty(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    except UserError as error:
        trained = str(error)
    assert frozen(model).keys() == before.keys()
    assert not [n for n, value in frozen(model).items() if not torch.equal(value, before[n])]
    assert (trained is None) == (name not in REFUSED) and REFUSED.get(name, "") in (trained or "")
    if name not in REFUSED:
        assert "803 of 1,086 parameters are frozen and will not be changed" in capsys.readouterr().err


def test_what_is_skipped_is_reported():
    model = adapted()
    found = attach("rnr", model, optimizer_of(model), vector_loss).coverage(vectors())
    reasons = {module.name: module.why_not for module in found.modules}
    assert reasons["base_model.model.0.base_layer"] == reasons["base_model.model.3.base_layer"] == "frozen"
    assert next(module for module in found.modules if module.name.endswith("0.lora_A.default")).covered_by
    assert "cover 26.1 % of 1,086 parameters; not covered: Linear 71.0 % (frozen)" in warning(model)


def test_fresh_adapters_change_nothing_as_those_of_peft():
    """B is zero, and A is drawn."""
    model = adapted()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.fill_(0.5)
    apply("reset", model)
    values = dict(model.named_parameters())
    assert not values["base_model.model.0.lora_B.default.weight"].any()
    drawn = values["base_model.model.0.lora_A.default.weight"]
    assert bool((drawn != 0.5).all()) and float(drawn.std()) > 0.05


def test_a_unit_whose_reader_is_frozen_is_not_hidden():
    """Its outgoing weights could not be set to zero."""
    model, batch = networks.drawn(base), vectors()
    model[3].requires_grad_(False)
    network = Network(model, optimizer_of(model), vector_loss)
    handle, before = attach("continual-backprop", network, rate=0.5, maturity=1), frozen(model)
    for _ in range(5):
        network.update(vector_loss(model, batch), batch)
    assert [layer.name for layer in handle.intervention._watch.hidden] == ["5"]
    assert all(torch.equal(value, before[name]) for name, value in frozen(model).items())
    covered = {module.name: module.covered_by for module in handle.coverage(batch).modules}
    assert covered["1"] == ("revive", "refit") and covered["3"] == () and "redo" in covered["5"]


def test_trainer_trains_adapters_only(tmp_path: Path, capsys):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from plastibench.integrations.transformers import PlasticityCallback

    def bert() -> Any:
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        config = transformers.BertConfig(**sizes, vocab_size=20, max_position_embeddings=8, num_labels=3)
        lora = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"])
        return networks.drawn(lambda: peft.get_peft_model(transformers.BertForSequenceClassification(config), lora))

    built = 0

    def build() -> Any:
        nonlocal built
        built += 1
        return bert()

    generator = torch.Generator().manual_seed(0)
    words = torch.randint(20, (16, 6), generator=generator)
    data = [{"input_ids": line, "labels": torch.tensor(number % 3)} for number, line in enumerate(words)]
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=4, report_to="none", use_cpu=True, per_device_train_batch_size=8, save_strategy="no",
        disable_tqdm=True, learning_rate=1e-2,
    )  # fmt: skip
    model = bert()
    before, start = frozen(model), networks.state(model)
    callback = PlasticityCallback("rnr+l2-init", every=2, size=16, fresh=build)
    trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=[callback])
    assert built == 1  # tried before anything is trained
    trainer.train()
    assert "parameters are frozen and will not be changed" in capsys.readouterr().err
    assert callback.attached.report.parameters > 0
    assert all(torch.equal(value, before[name]) for name, value in frozen(model).items())
    assert not torch.equal(start[(name := next(n for n in start if "lora_B" in n))], networks.state(model)[name])
    callback = PlasticityCallback("rnr", every=2, fresh=base)
    with pytest.raises(UserError, match="fresh= builds a different module"):
        transformers.Trainer(bert(), arguments, train_dataset=data, callbacks=[callback])
    without = PlasticityCallback("rnr", every=2, size=16)
    transformers.Trainer(bert(), arguments, train_dataset=data, callbacks=[without]).train()
    assert without.attached.report.parameters > 0
