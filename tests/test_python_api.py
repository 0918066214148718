"""What ``import plastibench as pb`` offers: train, apply, attach, list_*, load_results."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import plastibench as pb
from plastibench.config.errors import UserError

SMALL = {"tasks": 2, "epochs": 2, "train_size": 120}


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"x": torch.randn(64, 8, generator=generator), "y": torch.randint(4, (64,), generator=generator)}


def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"])


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], model: nn.Module) -> bool:
    now = model.state_dict()
    return one.keys() == now.keys() and all(torch.equal(one[name], now[name]) for name in one)


# train ------------------------------------------------------------------------------------------------------------


def test_train_returns_the_result_and_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = pb.train(
        "relabel-digits", "mlp", "rnr", quantile=0.3, seed=3, env_options=SMALL, runs_dir=None, progress=False
    )
    positions, accuracies = result.curve()
    assert result.seed == 3 and result.options.intervention["quantile"] == 0.3
    assert accuracies[-1] == result.summary.final_accuracy and positions[-1] == 4
    assert list(tmp_path.iterdir()) == []


def test_train_equals_the_command_line(say: Any, tmp_path: Path) -> None:
    ours = pb.train("relabel-digits", "mlp", "reset", env_options=SMALL, runs_dir=tmp_path / "a", progress=False)
    flags = [f"--env.{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    assert (
        say(
            "run", "relabel-digits", "--agent", "mlp", "--intervention", "reset", *flags, "--runs-dir", tmp_path / "b"
        ).status
        == 0
    )
    (theirs,) = pb.load_results(tmp_path / "b")
    assert ours.id == theirs.id and ours.tasks == theirs.tasks


def test_train_continues_and_does_not_repeat(tmp_path: Path) -> None:
    first = pb.train("relabel-digits", "mlp", env_options=SMALL, runs_dir=tmp_path, progress=False)
    again = pb.train("relabel-digits", "mlp", env_options=SMALL, runs_dir=tmp_path, progress=False)
    assert again.cost.seconds == first.cost.seconds


def test_train_works_in_a_thread_and_leaves_signal_handlers_alone() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    results: list[Any] = []

    def work() -> None:
        results.append(pb.train("relabel-digits", "mlp", env_options=SMALL, runs_dir=None, progress=False))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    here = pb.train("relabel-digits", "mlp", env_options=SMALL, runs_dir=None, progress=False)
    assert results[0].summary == here.summary
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_option_that_neither_run_nor_intervention_has_is_rejected() -> None:
    with pytest.raises(UserError, match="quantil'; did you mean 'quantile'"):
        pb.train("relabel-digits", "mlp", "rnr", quantil=0.3, runs_dir=None)


def test_an_option_of_the_env_or_agent_is_rejected_with_its_place() -> None:
    with pytest.raises(UserError, match="'epochs' is an option of the env; pass env_options="):
        pb.train("relabel-digits", "mlp", "rnr", epochs=1, runs_dir=None)
    with pytest.raises(UserError, match="'lr' is an option of the agent; pass agent_options="):
        pb.train("relabel-digits", "mlp", lr=0.1, runs_dir=None)


def test_an_intervention_option_named_like_a_run_option_can_be_passed_separately() -> None:
    result = pb.train(
        "relabel-digits",
        "mlp",
        "neuroplastic-expansion",
        intervention_options={"every": 7},
        env_options=SMALL,
        runs_dir=None,
        progress=False,
    )
    assert result.options.intervention["every"] == 7 and result.every == 0


# apply ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reset", "shrink-perturb", "knowledge-evolution"])
def test_apply_edits_the_model_in_place_without_data(model: nn.Module, name: str) -> None:
    before = state(model)
    assert pb.apply(name, model) is model and not same(before, model)


def test_apply_projects_attention_without_data() -> None:
    from timm.models import vision_transformer

    vit = vision_transformer.VisionTransformer(img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2)
    before = state(vit)
    pb.apply("fire", vit)
    changed = {name for name, tensor in vit.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"blocks.0.attn.qkv.weight"}


@pytest.mark.parametrize("name", ["rnr", "redo", "dash", "reset-head"])
def test_apply_says_what_is_missing_and_changes_nothing(model: nn.Module, name: str) -> None:
    before = state(model)
    with pytest.raises(UserError, match="pass batch="):
        pb.apply(name, model)
    assert same(before, model)


def test_apply_with_a_batch_but_no_loss_says_so(model: nn.Module) -> None:
    before = state(model)
    with pytest.raises(UserError, match="pass loss_fn="):
        pb.apply("rnr", model, batch())
    assert same(before, model)


def test_apply_refuses_methods_that_act_during_training(model: nn.Module) -> None:
    with pytest.raises(UserError, match="apply: upgd-adam works only during training; use attach"):
        pb.apply("upgd-adam", model)


def test_apply_changes_the_architecture(model: nn.Module) -> None:
    pb.apply("layernorm", model)
    assert any(isinstance(module, nn.LayerNorm) for module in model.modules())


# attach -----------------------------------------------------------------------------------------------------------


def test_attach_takes_a_module_its_optimizer_and_loss(model: nn.Module) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    handle = pb.attach("l2-init+rnr", model, optimizer, loss_fn, rnr__quantile=0.5)
    for _ in range(3):
        loss = loss_fn(model, batch()) + handle.penalty(batch())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    before = state(model)
    report = handle.intervene(batch())
    assert handle.steps == 3 and report.parameters > 0 and not same(before, model)


def test_attach_takes_either_a_network_or_a_module_with_its_parts(model: nn.Module) -> None:
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(UserError, match="a Network already has its optimizer, loss and outputs"):
        pb.attach("none", pb.Network(model, optimizer, loss_fn), optimizer)


def test_attach_without_a_loss_names_it_when_a_method_needs_it(model: nn.Module) -> None:
    handle = pb.attach("rnr", model, torch.optim.Adam(model.parameters()))
    with pytest.raises(UserError, match="pass loss_fn="):
        handle.intervene(batch())


def test_attach_refuses_what_is_not_the_models_optimizer(model: nn.Module) -> None:
    with pytest.raises(UserError, match="the optimizer is a function; pass name, model, optimizer, loss_fn"):
        pb.attach("redo", model, loss_fn)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="none of the model's parameters"):
        pb.attach("rnr", model, torch.optim.Adam(nn.Linear(2, 2).parameters()), loss_fn)
    handle = pb.attach("rnr", model, torch.optim.Adam(model.parameters()), loss_fn)
    before = handle.optimizer
    with pytest.raises(UserError, match="none of the model's parameters"):
        handle.optimizer = torch.optim.Adam(nn.Linear(2, 2).parameters())
    assert handle.optimizer is before


def test_a_tuple_is_not_a_batch(model: nn.Module) -> None:
    handle = pb.attach("rnr", model, torch.optim.Adam(model.parameters()), loss_fn)
    with pytest.raises(UserError, match="a batch must be a TensorDict or a dict"):
        handle.intervene(tuple(batch().values()))


def test_several_attached_methods_act_at_every_step(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handles = [pb.attach(name, model, optimizer, loss_fn) for name in ("soft-shrink-perturb", "weight-clipping")]
    loss_fn(model, batch()).backward()
    optimizer.step()
    assert [handle.steps for handle in handles] == [1, 1]


# Names ------------------------------------------------------------------------------------------------------------


def test_lists_take_patterns() -> None:
    assert pb.list_interventions("rnr*")[0] == "rnr" and "rnr-mlp" in pb.list_interventions("rnr*")
    assert "vit-tiny" in pb.list_agents("vit*") and "cl-cifar100" in pb.list_envs()
