from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from plastibench.config.errors import UserError
from tests.integrations.methods import Pull, Recording, Slow, pull
from tests.support import networks

lightning = pytest.importorskip("lightning.pytorch")
from plastibench.integrations.lightning import PlasticityCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::FutureWarning")


class Classifier(lightning.LightningModule):
    """An MLP with dropout, trained on (image, label) pairs."""

    def __init__(self, *, penalised: bool = False, as_dict: bool = False, optimizers: int = 1) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)
        )
        self.penalised, self.as_dict, self.optimizer_count = penalised, as_dict, optimizers
        self.batches: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, labels = batch
        self.batches.append(images.clone())
        found = F.cross_entropy(self(images), labels)
        found = found + pull(self) if self.penalised else found
        return {"loss": found, "more": 1} if self.as_dict else found

    def configure_optimizers(self) -> Any:
        made = [torch.optim.AdamW(self.parameters(), lr=1e-2) for _ in range(self.optimizer_count)]
        return made[0] if len(made) == 1 else made


def loss(module: Any, batch: Any) -> torch.Tensor:
    images, labels = batch
    return F.cross_entropy(module(images), labels)


def module(**options: Any) -> Classifier:
    return networks.drawn(lambda: Classifier(**options))


def loader(shuffle: bool) -> DataLoader:
    batch = networks.images(32, classes=3)
    return DataLoader(TensorDataset(batch["image"], batch["label"]), batch_size=8, shuffle=shuffle)


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., Any]:
    """Four updates an epoch, on the CPU, without a word; the global random state is seeded first."""

    def run(network: Any, *callbacks: Any, resume: str | None = None, shuffle: bool = True, **arguments: Any) -> Any:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        quiet |= {"enable_checkpointing": False, "accelerator": "cpu", "devices": 1, "max_epochs": 2}
        trainer = lightning.Trainer(default_root_dir=tmp_path, callbacks=list(callbacks), **{**quiet, **arguments})
        torch.manual_seed(0)
        trainer.fit(network, loader(shuffle), ckpt_path=resume)
        return trainer

    return run


def test_interventions_draw_other_numbers_than_the_initialization(fit: Callable[..., Any]) -> None:
    callback = PlasticityCallback(Recording(), loss, steps=(1,), seed=7)
    fit(module(), callback)
    torch.manual_seed(7)
    assert callback.attached.intervention.drawn not in torch.rand(10_000).tolist()


# What runs when ---------------------------------------------------------------------------------------------------


def test_intervenes_after_scheduled_steps(fit: Callable[..., Any]) -> None:
    callback = PlasticityCallback(Recording(), loss, every=3, steps=(1,), epochs=(2,), size=20)
    fit(module(), callback)
    witness = callback.attached.intervention
    assert [when for when, _ in witness.seen] == [1, 3, 6, 8]
    assert witness.updates == callback.attached.steps == len(witness.gradients) == 8
    for _, batch in witness.seen:
        assert batch["0"].shape == (20, 1, 8, 8) and batch["1"].shape == (20,)


def test_accumulated_batches_are_one_step(fit: Callable[..., Any]) -> None:
    callback = PlasticityCallback(Recording(), loss, every=1, epochs=(1,))
    fit(module(), callback, accumulate_grad_batches=2)
    assert [when for when, _ in callback.attached.intervention.seen] == [1, 2, 3, 4]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_interventions_see_clipped_gradients(fit: Callable[..., Any], precision: str) -> None:
    """Lightning makes them in a closure, which the optimizer's step calls."""
    callback = PlasticityCallback(Recording(), loss)
    fit(module(), callback, gradient_clip_val=1e-3, precision=precision)
    norms = torch.stack([gradient.norm() for gradient in callback.attached.intervention.gradients])
    torch.testing.assert_close(norms, torch.full((8,), 1e-3), rtol=1e-3, atol=0.0)


def test_interventions_do_not_change_the_data_order(fit: Callable[..., Any]) -> None:
    plain, ours = module(), module()
    fit(plain)
    after = torch.get_rng_state()
    fit(ours, PlasticityCallback("reset-head", loss, epochs=(2,)))
    assert torch.equal(after, torch.get_rng_state())
    for expected, seen in zip(plain.batches, ours.batches, strict=True):
        assert torch.equal(expected, seen)
    assert networks.changed(networks.state(plain), ours) == {"net.6.weight", "net.6.bias"}


def test_rnr_uses_the_given_loss(fit: Callable[..., Any]) -> None:
    callback = PlasticityCallback("rnr", loss, steps=(3,), options={"quantile": 0.25})
    fit(module(), callback)
    assert {name: int(mask.sum()) for name, mask in callback.attached.report.units.items()} == {"net.1": 4, "net.4": 4}


def test_fresh_weights_come_from_the_builder(fit: Callable[..., Any]) -> None:
    network = module()
    fit(network, PlasticityCallback("reset", loss, epochs=(2,), fresh=networks.constant(Classifier, 0.25)))
    assert all((parameter == 0.25).all() for parameter in network.parameters())


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("as_dict", [False, True])
def test_penalty_is_part_of_the_loss(fit: Callable[..., Any], accumulate: int, as_dict: bool) -> None:
    """The reference adds it in the training step itself."""
    plain, by_hand, ours = module(), module(penalised=True, as_dict=as_dict), module(as_dict=as_dict)
    fit(plain, accumulate_grad_batches=accumulate)
    fit(by_hand, accumulate_grad_batches=accumulate)
    fit(ours, PlasticityCallback(Pull(), loss), accumulate_grad_batches=accumulate)
    assert not networks.changed(networks.state(by_hand), ours)
    assert networks.changed(networks.state(plain), ours)


def test_penalty_is_removed_after_the_fit(fit: Callable[..., Any]) -> None:
    network = module()
    fit(network, PlasticityCallback(Pull(), loss))
    assert "training_step" not in network.__dict__
    with pytest.raises(ZeroDivisionError):
        fit(network, PlasticityCallback(Pull(), loss), Fails())
    assert "training_step" not in network.__dict__


class Fails(lightning.Callback):
    """Ends a fit with an error."""

    def on_train_batch_end(self, *_: Any) -> None:
        raise ZeroDivisionError


def test_methods_that_monitor_activations_work(fit: Callable[..., Any]) -> None:
    plain, ours = module(), module()
    fit(plain)
    fit(ours, PlasticityCallback("continual-backprop", loss, options={"rate": 0.2, "maturity": 1}))
    assert networks.changed(networks.state(plain), ours)


def test_state_is_kept_in_the_next_fit(fit: Callable[..., Any]) -> None:
    callback, network = PlasticityCallback(Recording(), loss, epochs=(1,)), module()
    fit(network, callback, max_epochs=1)
    fit(network, callback, max_epochs=1)
    witness = callback.attached.intervention
    assert witness.updates == callback.attached.steps == 8 and [when for when, _ in witness.seen] == [4, 8]


def test_another_module_gets_another_intervention(fit: Callable[..., Any]) -> None:
    callback = PlasticityCallback(Recording(), loss)
    fit(module(), callback, max_epochs=1)
    first = callback.attached
    fit(module(), callback, max_epochs=1)
    assert callback.attached is not first and first.steps == callback.attached.steps == 4


# Going on after an interruption -----------------------------------------------------------------------------------


class Reseed(lightning.Callback):
    """The same dropout after a resume; Lightning does not save the global random state."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        torch.manual_seed(trainer.global_step)


@pytest.mark.parametrize(
    "name", ["rnr", "upgd+redo", "neuroplastic-expansion", "continual-backprop", "plasticity-injection"]
)
def test_resume_is_bit_identical(fit: Callable[..., Any], tmp_path: Path, name: str) -> None:
    def callbacks() -> list[Any]:
        options = {"rate": 0.2, "maturity": 1} if name == "continual-backprop" else {}
        return [PlasticityCallback(name, loss, every=3, options=options), Reseed()]

    whole, first, second = module(), module(), networks.drawn(Classifier, seed=7)
    fit(whole, *callbacks(), shuffle=False)
    trainer = fit(first, *callbacks(), shuffle=False, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt", weights_only=False)
    fit(second, *callbacks(), shuffle=False, resume=str(tmp_path / "one.ckpt"))
    assert len(second.batches) == 4
    assert not networks.changed(networks.state(whole), second)
    assert torch.load(tmp_path / "one.ckpt", weights_only=True)["callbacks"]


def test_two_callbacks_have_separate_states() -> None:
    keys = {PlasticityCallback(name, loss).state_key for name in ("rnr", "upgd", "redo+upgd")}
    assert len(keys) == 3


# Mistakes ---------------------------------------------------------------------------------------------------------


def test_several_optimizers_are_refused(fit: Callable[..., Any]) -> None:
    class Manual(Classifier):
        def __init__(self) -> None:
            super().__init__(optimizers=2)
            self.automatic_optimization = False

    with pytest.raises(UserError, match="automatic optimization"):
        fit(Manual(), PlasticityCallback("rnr", loss))


def test_other_strategies_than_ddp_are_refused() -> None:
    class Several:
        world_size = 2
        strategy = lightning.strategies.SingleDeviceStrategy("cpu")

    with pytest.raises(UserError, match="strategy='ddp', not with SingleDeviceStrategy"):
        PlasticityCallback("rnr", loss).setup(Several(), module(), "fit")


def test_warns_that_an_averaged_copy_is_not_validated(
    fit: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    fit(module(), PlasticityCallback(Slow(), loss), max_epochs=1)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("plastibench")]
    assert len(lines) == 1 and "averaged copy" in lines[0]


# Batches ----------------------------------------------------------------------------------------------------------


def test_interventions_are_logged_where_asked(fit: Callable[..., Any], capsys: Any) -> None:
    fit(module(), PlasticityCallback("redo", loss, every=4))
    assert "plastibench" not in capsys.readouterr().out
    fit(module(), PlasticityCallback("redo", loss, every=4, log="stdout"))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("plastibench: ")]
    assert [line.split(":")[1] for line in lines] == [" step 4", " step 8"] and "dormant-ratio" in lines[0]


# Batches of any structure -----------------------------------------------------------------------------------------

IMAGES, LABELS = torch.randn(32, 4), torch.arange(32) % 3
STRUCTURES = {
    "tensor": lambda x, y: torch.cat([x, y[:, None]], 1),
    "nested": lambda x, y: {"inputs": {"x": x, "more": [x, 2 * x]}, "targets": (y,), "scale": 2.0, "names": None},
    "inputs": lambda x, y: ((x, x), y),
}


class Rows(torch.utils.data.Dataset):
    """Samples of a structure; with ``size``, batches of it, and the last one is smaller."""

    def __init__(self, structure: str, size: int = 0) -> None:
        self.structure, self.size = STRUCTURES[structure], size

    def __len__(self) -> int:
        return -(-32 // self.size) if self.size else 32

    def __getitem__(self, index: int) -> Any:
        part = slice(index * self.size, (index + 1) * self.size) if self.size else slice(index, index + 1)
        batch = self.structure(IMAGES[part], LABELS[part])
        if self.size:
            return batch
        return torch.utils._pytree.tree_map(lambda leaf: leaf[0] if isinstance(leaf, torch.Tensor) else leaf, batch)


class AnyBatch(lightning.LightningModule):
    def __init__(self, structure: str) -> None:
        super().__init__()
        self.structure = structure
        self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return of_any(self, batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-2)


def of_any(module: AnyBatch, batch: Any) -> torch.Tensor:
    """The loss; it checks the structure."""
    if module.structure == "tensor":
        x, y = batch[:, :4], batch[:, 4].long()
    elif module.structure == "nested":
        x, y = batch["inputs"]["more"][1] / 2, batch["targets"][0]
        assert batch["names"] is None and float(torch.as_tensor(batch["scale"]).flatten()[0]) == 2
    else:
        (x, again), y = batch
        assert torch.equal(x, again)
    return F.cross_entropy(module.net(x.to(module.net[0].weight.dtype)).float(), y)


def collated(samples: list[Any]) -> Any:
    """Stack tensors; other leaves come from the first sample."""
    stack = lambda *leaves: torch.stack(leaves) if isinstance(leaves[0], torch.Tensor) else leaves[0]  # noqa: E731
    return torch.utils._pytree.tree_map(stack, *samples)


@pytest.mark.sample(6)
@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "16-true"])
@pytest.mark.parametrize("batches", ["samples", "batch_size=None"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_batches_of_any_structure_and_precision(
    structure: str, batches: str, precision: str, fit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if batches == "samples":
        data = DataLoader(Rows(structure), batch_size=12, collate_fn=collated)  # the last batch has 8 samples
    else:
        data = DataLoader(Rows(structure, 12), batch_size=None)
    monkeypatch.setitem(globals(), "loader", lambda shuffle: data)
    if structure == "tensor" and precision != "32-true":
        precision = "bf16-mixed"  # the labels are numbers of the same tensor
    for method in ("rnr", Pull()):
        callback = PlasticityCallback(method, of_any, steps=(2, 5), size=20)
        network = networks.drawn(lambda: AnyBatch(structure))
        fit(network, callback, precision=precision)
        assert callback.attached.steps == 6
        assert all(bool(p.isfinite().all()) for p in network.parameters())
        if method == "rnr":
            assert sum(int(mask.sum()) for mask in callback.attached.report.units.values()) > 0


def test_a_loss_that_does_not_fit_is_refused_before_the_first_step(fit: Callable[..., Any]) -> None:
    network = module()
    for wrong in (lambda module, batch: F.cross_entropy(module(batch["image"]), batch["label"]), lambda *_: 1 / 0):
        with pytest.raises(UserError, match=r"loss\(module, batch\) fails on samples of the training data"):
            fit(network, PlasticityCallback("redo", wrong, every=100))
        assert not network.batches
    with pytest.raises(UserError, match="nothing would be reinitialized"):
        fit(network, PlasticityCallback("redo", loss, fresh=lambda: network))
    with pytest.raises(UserError, match=r"fresh= failed: .*TypeError"):
        fit(network, PlasticityCallback("redo", loss, fresh=lambda: Classifier(3)))
    assert not network.batches


class Named(AnyBatch):
    """Its batches also contain a list with a name for each sample, which cannot be divided like a tensor."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return of_named(self, batch)


def of_named(module: AnyBatch, batch: Any) -> torch.Tensor:
    targets = torch.tensor([int(name) for name in batch["names"]])
    return F.cross_entropy(module.net(batch["x"]), targets)


def test_values_that_cannot_be_divided_are_reported_before_the_first_step(
    fit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"x": IMAGES[index], "names": str(int(LABELS[index]))} for index in range(32)]
    monkeypatch.setitem(globals(), "loader", lambda shuffle: DataLoader(rows, batch_size=8))
    network = Named("named")
    before = networks.state(network)
    with pytest.raises(UserError, match="fails on part of a batch"):
        fit(network, PlasticityCallback("redo", of_named, steps=(3,)))
    assert not networks.changed(before, network)
