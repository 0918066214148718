from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from plastibench.config.errors import UserError
from plastibench.nn.network import as_evaluated
from tests.integrations.methods import Pull, Recording, Slow, pull
from tests.support import networks

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from plastibench.integrations.transformers import PlasticityCallback  # noqa: E402


def model(seed: int = 0) -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(**sizes, vocab_size=20, max_position_embeddings=8, num_labels=3)
    return networks.drawn(lambda: transformers.BertForSequenceClassification(config), seed)


def samples(count: int = 32, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    words, labels = torch.randint(20, (count, 6), generator=generator), torch.randint(3, (count,), generator=generator)
    return [{"input_ids": line, "labels": label} for line, label in zip(words, labels, strict=True)]


class Seen(transformers.Trainer):
    """Notes every batch that is trained on."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.__dict__.setdefault("batches", []).append(inputs["input_ids"].clone())
        return super().training_step(model, inputs, *args, **kwargs)


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., Any]:
    """Four updates an epoch, on the CPU, without a word."""

    def make(*callbacks: Any, kind: type = Seen, network: Any = None, folder: str = "out", **arguments: Any) -> Any:
        quiet = {"report_to": "none", "disable_tqdm": True, "logging_strategy": "no", "save_strategy": "no"}
        fixed = {"use_cpu": True, "lr_scheduler_type": "constant", "learning_rate": 1e-2, "max_steps": 6}
        given = {**quiet, **fixed, "per_device_train_batch_size": 8, **arguments}
        return kind(
            model=network or model(),
            args=transformers.TrainingArguments(output_dir=str(tmp_path / folder), **given),
            train_dataset=samples(),
            callbacks=list(callbacks),
        )

    return make


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return networks.state(trainer.model)


def test_interventions_draw_other_numbers_than_the_initialization(trainer: Callable[..., Any]) -> None:
    callback = PlasticityCallback(Recording(), draw=lambda: transformers.default_data_collator(samples()), steps=(1,))
    trainer(callback, max_steps=1).train()
    torch.manual_seed(0)
    assert callback.attached.intervention.drawn not in torch.rand(100).tolist()


# What runs when ---------------------------------------------------------------------------------------------------


def test_intervenes_after_scheduled_steps(trainer: Callable[..., Any]) -> None:
    callback = PlasticityCallback(Recording(), every=4, steps=(1,), epochs=(2,), size=20)
    trainer(callback, max_steps=9).train()
    witness = callback.attached.intervention
    assert [when for when, _ in witness.seen] == [1, 4, 8]  # 8 is the end of the second epoch, too
    assert witness.updates == callback.attached.steps == len(witness.gradients) == 9
    for _, batch in witness.seen:
        assert batch["input_ids"].shape == (20, 6) and batch["labels"].shape == (20,)


def test_accumulated_batches_are_one_step(trainer: Callable[..., Any]) -> None:
    callback = PlasticityCallback(Recording(), every=2, epochs=(1, 3))
    trainer(callback, max_steps=6, gradient_accumulation_steps=2).train()
    assert [when for when, _ in callback.attached.intervention.seen] == [2, 4, 6]
    assert callback.attached.steps == 6


def test_interventions_see_clipped_gradients(trainer: Callable[..., Any]) -> None:
    callback = PlasticityCallback(Recording())
    trainer(callback, max_grad_norm=1e-3).train()
    norms = torch.stack([gradient.norm() for gradient in callback.attached.intervention.gradients])
    torch.testing.assert_close(norms, torch.full((6,), 1e-3), rtol=1e-3, atol=0.0)


def test_interventions_do_not_change_the_data_order(trainer: Callable[..., Any]) -> None:
    plain = trainer(folder="plain")  # seeds the global random state
    plain.train()
    after = torch.get_rng_state()
    ours = trainer(PlasticityCallback("reset-head", steps=(6,)), folder="ours")
    ours.train()
    assert torch.equal(after, torch.get_rng_state())
    for expected, seen in zip(plain.batches, ours.batches, strict=True):
        assert torch.equal(expected, seen)
    assert networks.changed(weights(plain), ours.model) == {"classifier.weight", "classifier.bias"}


def test_rnr_acts_on_all_layers(trainer: Callable[..., Any]) -> None:
    callback = PlasticityCallback("rnr", steps=(3,), options={"quantile": 0.25})
    trainer(callback, max_steps=3).train()
    units = callback.attached.report.units
    assert (
        int(units["bert.encoder.layer.0.intermediate.dense"].sum()) == 8
        and int(units["bert.encoder.layer.0.attention.self.query"].sum()) == 4
    )


@pytest.mark.sample(1)
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("by_items", [False, True])
def test_penalty_is_part_of_the_loss(trainer: Callable[..., Any], accumulate: int, by_items: bool) -> None:
    """The reference adds it in ``compute_loss``, which the Trainer leaves to its users."""

    base = type(model())

    class Mean(base):
        def forward(self, input_ids: Any = None, labels: Any = None) -> Any:
            return super().forward(input_ids=input_ids, labels=labels)

    class OverItems(base):
        def forward(self, input_ids: Any = None, labels: Any = None, **kwargs: Any) -> Any:
            output = super().forward(input_ids=input_ids, labels=labels)
            num_items_in_batch = kwargs.get("num_items_in_batch")
            if num_items_in_batch is not None:
                output["loss"] = output["loss"] * len(labels) / num_items_in_batch
            return output

    class ByHand(Seen):
        def compute_loss(self, module: Any, inputs: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().compute_loss(module, inputs, **kwargs)
            return loss + pull(module) / (accumulate if by_items else 1)

    def network() -> Any:
        found = model()
        found.__class__ = OverItems if by_items else Mean
        return found

    found = {}
    for label, kind, callbacks in (("plain", Seen, []), ("by hand", ByHand, []), ("ours", Seen, [Pull()])):
        callbacks = [PlasticityCallback(method) for method in callbacks]
        training = trainer(*callbacks, kind=kind, network=network(), gradient_accumulation_steps=accumulate)
        assert training.model_accepts_loss_kwargs == by_items
        training.train()
        found[label] = weights(training)
    for name, tensor in found["ours"].items():
        torch.testing.assert_close(tensor, found["by hand"][name], rtol=1e-4, atol=1e-5)
    assert any(not torch.allclose(found["ours"][name], found["plain"][name], atol=1e-3) for name in found["plain"])


def test_methods_that_monitor_activations_work(trainer: Callable[..., Any]) -> None:
    plain = trainer(folder="plain")
    ours = trainer(PlasticityCallback("continual-backprop", options={"rate": 0.2, "maturity": 1}), folder="ours")
    plain.train()
    ours.train()
    assert "bert.encoder.layer.0.intermediate.dense.weight" in networks.changed(weights(plain), ours.model)


def test_scores_are_computed_in_full_precision(trainer: Callable[..., Any]) -> None:
    callback = PlasticityCallback(Recording(), steps=(1,))
    training = trainer(callback, bf16=True, max_steps=1)
    training.train()
    network, (_, batch) = callback.attached.network, callback.attached.intervention.seen[0]
    plain = model()
    plain.load_state_dict(network.module.state_dict())
    with as_evaluated(network.module):
        loss = network.loss(network.module, batch)
    expected = plain.eval()(**dict(batch.items())).loss
    assert torch.equal(loss, expected)
    assert not torch.equal(loss, network.module.eval()(**dict(batch.items())).loss), "else bf16 is not on"


def test_state_is_kept_when_training_starts_again(trainer: Callable[..., Any]) -> None:
    callback = PlasticityCallback(Recording(), every=4)
    training = trainer(callback, max_steps=4)
    training.train()
    training.train_dataset = samples(seed=1)
    training.train()
    witness = callback.attached.intervention
    assert witness.updates == callback.attached.steps == 8 and [when for when, _ in witness.seen] == [4, 8]


def test_model_init_gets_a_new_intervention_per_training(tmp_path: Path) -> None:
    callback = PlasticityCallback("upgd-adam", steps=(1,))
    arguments = transformers.TrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, max_steps=1, save_strategy="no"
    )
    training = transformers.Trainer(
        model_init=lambda: model(), args=arguments, train_dataset=samples(), callbacks=[callback]
    )
    first = callback.attached
    training.train()
    assert callback.attached is not first and callback.attached.network.module is training.model
    assert callback.attached.steps == 1 and first.steps == 0


class Words(torch.nn.Module):
    """A model whose structure can be changed."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(20, 8)
        self.net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.net(self.words(input_ids).mean(1))
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("name", ["crelu", "layernorm"])
def test_parameters_added_to_a_model_init_model_are_trained(tmp_path: Path, name: str) -> None:
    callback = PlasticityCallback(name)
    arguments = transformers.TrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, max_steps=2, save_strategy="no"
    )
    training = transformers.Trainer(model_init=Words, args=arguments, train_dataset=samples(), callbacks=[callback])
    training.train()
    owned = {id(p) for group in training.optimizer.param_groups for p in group["params"]}
    assert all(id(p) in owned for p in training.model.parameters() if p.requires_grad)


# Going on after an interruption -----------------------------------------------------------------------------------


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", ["rnr", "upgd+redo", "neuroplastic-expansion"])
def test_resume_is_bit_identical(trainer: Callable[..., Any], name: str) -> None:
    def callback() -> PlasticityCallback:
        return PlasticityCallback(name, every=2)

    whole = trainer(callback(), folder="whole", save_strategy="steps", save_steps=5, max_steps=8)
    whole.train()
    first = trainer(callback(), folder="parts", save_strategy="steps", save_steps=5, max_steps=5)
    first.train()
    second = trainer(callback(), network=model(seed=7), folder="parts", max_steps=8)
    second.train(resume_from_checkpoint=True)
    assert not networks.changed(weights(whole), second.model)
    again = trainer(folder="plain", max_steps=8)
    again.train()
    assert networks.changed(weights(whole), again.model)


@pytest.mark.parametrize(("step", "refused"), [(1, True), (3, False)])
def test_checkpoint_with_other_branches_is_refused(trainer: Callable[..., Any], step: int, refused: bool) -> None:
    def callback() -> PlasticityCallback:
        return PlasticityCallback("plasticity-injection", steps=(step,), options={"part": "head"})

    trainer(callback(), save_strategy="steps", save_steps=2, max_steps=2).train()
    again = trainer(callback(), max_steps=4)
    if refused:
        with pytest.raises(UserError, match="cannot resume plasticity-injection"):
            again.train(resume_from_checkpoint=True)
    else:
        again.train(resume_from_checkpoint=True)
        assert any("branches" in name for name in weights(again))


def test_checkpoint_without_state_is_refused(trainer: Callable[..., Any]) -> None:
    trainer(save_strategy="steps", save_steps=2, max_steps=2).train()
    with pytest.raises(UserError, match=r"plastibench\.pt"):
        trainer(PlasticityCallback("rnr"), max_steps=4).train(resume_from_checkpoint=True)


def test_callback_added_after_construction_cannot_resume(trainer: Callable[..., Any]) -> None:
    trainer(PlasticityCallback("rnr"), save_strategy="steps", save_steps=2, max_steps=2).train()
    late = trainer(max_steps=4)
    late.add_callback(PlasticityCallback("rnr"))
    with pytest.raises(UserError, match="to resume"):
        late.train(resume_from_checkpoint=True)


# Mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{"n_gpu": 2}, {"deepspeed": "zero.json"}, {"fsdp": "full_shard"}])
def test_other_ways_to_use_several_devices_are_refused(given: dict[str, Any]) -> None:
    args = SimpleNamespace(**{"world_size": 1, "n_gpu": 0, "deepspeed": None, "fsdp": None, **given})
    with pytest.raises(UserError, match="one process"):
        PlasticityCallback("rnr").on_init_end(args, None, None, model=model())


def test_penalty_with_label_smoothing_is_refused(trainer: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="label smoothing"):
        trainer(PlasticityCallback(Pull()), label_smoothing_factor=0.1)
    trainer(PlasticityCallback("rnr"), label_smoothing_factor=0.1, max_steps=1).train()
    training = trainer(PlasticityCallback(Pull()))
    training.compute_loss_func = lambda outputs, labels, **_: outputs["logits"].sum()
    with pytest.raises(UserError, match="no loss"):
        training.train()


def test_warns_that_an_averaged_copy_is_not_evaluated(
    trainer: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(PlasticityCallback(Slow()))
    error = capsys.readouterr().err
    assert "averaged copy" in error and error.count("\n") == 1


def test_evaluation_loss_has_no_penalty(trainer: Callable[..., Any]) -> None:
    penalised, plain = trainer(PlasticityCallback(Pull()), folder="a"), trainer(folder="b")
    loss = [each.evaluate(samples(8, seed=3))["eval_loss"] for each in (penalised, plain)]
    assert loss[0] == loss[1]


def test_copies_of_the_model_do_not_copy_the_intervention(trainer: Callable[..., Any]) -> None:
    callback = PlasticityCallback(Pull())
    training = trainer(callback)
    copied = copy.deepcopy(training.model).train()
    batch = {name: torch.stack([sample[name] for sample in samples(4)]) for name in ("input_ids", "labels")}
    assert not torch.isnan(copied(**batch).loss) and copied(**batch).loss < 3.0 < pull(copied)


def test_interventions_are_logged_where_asked(trainer: Callable[..., Any], capsys: Any) -> None:
    trainer(PlasticityCallback("redo", every=4, log="stdout"), max_steps=8).train()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("plastibench: ")]
    assert [line.split(":")[1] for line in lines] == [" step 4", " step 8"] and "dormant-ratio" in lines[0]


# Builders ---------------------------------------------------------------------------------------------------------


class Wrapped(torch.nn.Module):
    """A model in a wrapper with the config of the model, as adapters make it; only the classifier is trained."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.config = inner, inner.config
        inner.bert.requires_grad_(False)

    def forward(self, **batch: Any) -> Any:
        return self.inner(**batch)


def test_wrapped_models_are_reinitialized_by_their_layers_or_a_builder(
    trainer: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for fresh in (None, lambda: Wrapped(model(3))):
        network = Wrapped(model())
        before = networks.state(network)
        callback = PlasticityCallback("reset", steps=(2,), fresh=fresh)
        trainer(callback, network=network, max_steps=2, remove_unused_columns=False).train()
        assert networks.changed(before, network) - {"inner.classifier.bias"} == {"inner.classifier.weight"}
        said = capsys.readouterr().err
        assert ("pass fresh= instead" in said) == (fresh is None)
        assert "are frozen and will not be changed" in said


def test_a_builder_that_fails_is_refused_at_the_start(trainer: Callable[..., Any]) -> None:
    network = model()
    for fresh, message in (
        (lambda: network, "nothing would be"),
        (lambda: 1 / 0, "fresh= failed: .*ZeroDivisionError"),
    ):
        with pytest.raises(UserError, match=message):
            trainer(PlasticityCallback("reset", steps=(2,), fresh=fresh), network=network)
