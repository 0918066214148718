"""What a diagnosis looks at: networks of a run, a timm model, or an agent's network with weights from a file."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from plastibench.config import registry
from plastibench.config.errors import UserError, did_you_mean
from plastibench.config.options import build
from plastibench.config.spec import RunSpec
from plastibench.diagnosis.samples import Samples, read_samples
from plastibench.diagnosis.state_dicts import load_weights, read_state, without_prefix
from plastibench.envs.task_stream import TaskStream
from plastibench.nn.network import Network, eval_mode, seeded
from plastibench.nn.units import output_layers
from plastibench.training import checkpoint
from plastibench.training.offpolicy import OffPolicyTrainer
from plastibench.training.supervised import PROBE
from plastibench.utils.seeding import derive

USUAL_SAMPLES = 64
_ACTED = 1000  # steps that are played to have transitions to look at


@dataclass
class Subject:
    """A network and what it is looked at with.

    Attributes:
        title: What it is.
        network: The network.
        batch: Probe batch.
        data: Where the batch comes from.
        initial: Parameters before training, where they are known.
        notes: What a person should know: where labels come from, what did not fit.
    """

    title: str
    network: Network
    batch: TensorDictBase
    data: str
    initial: dict[str, Tensor] | None = None
    notes: list[str] = field(default_factory=list)


def timm_model(
    name: str, data: str, device: str, *, weights: Path | None, samples: int, image_size: int, data_dir: Path
) -> Subject:
    """A timm model, untrained or with weights from a file.

    Raises:
        UserError: No such model, or weights or data that do not fit.
    """
    import timm

    if not timm.is_model(name):
        raise UserError(f"no timm model '{name}'{did_you_mean(name, timm.list_models())}")
    state = read_state(weights) if weights is not None else {}
    known = timm.get_pretrained_cfg(name)
    channels, height, width = known.input_size if known is not None else (3, 224, 224)
    options: dict[str, Any] = {}
    if known is not None and isinstance(known.classifier, str):
        head = _shape_of(state, f"{known.classifier}.weight")
        options = {"num_classes": head[0]} if head else {}
    if known is not None and isinstance(known.first_conv, str):
        first = _shape_of(state, f"{known.first_conv}.weight")
        channels = first[1] if len(first) == 4 else channels
    shape = (channels, image_size or height, image_size or width)
    found = read_samples(data, samples, shape, data_dir)
    if not options and not state and found.classes:
        options = {"num_classes": found.classes}

    def make() -> nn.Module:
        try:
            model: nn.Module = timm.create_model(name, in_chans=channels, img_size=shape[1:], **options)
        except TypeError:  # models that take any image size have no such option
            model = timm.create_model(name, in_chans=channels, **options)
        return model

    title = f"timm:{name}" + (f" with {weights}" if weights else " (untrained)")
    return _from_samples(title, make, found, device, weights, state)


def agent_model(
    name: str,
    values: Mapping[str, Any],
    data: str,
    device: str,
    *,
    weights: Path | None,
    samples: int,
    image_size: int,
    data_dir: Path,
) -> Subject:
    """The network of a classifier of plastibench, with weights from a file.

    Raises:
        UserError: No such agent, or weights or data that do not fit.
    """
    entry = registry.agents[name]
    config: Any = build(entry.load(), {**entry.defaults, **values}, f"agent {name}")
    if not hasattr(config, "module"):
        raise UserError(f"--agent {name} is no classifier; diagnose its run folder instead")
    state = read_state(weights) if weights is not None else {}
    usual = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "fashion-mnist": (1, 28, 28), "tiny-imagenet": (3, 64, 64)}
    channels, height, width = usual.get(data, (3, 32, 32))
    shape = (channels, image_size or height, image_size or width)
    found = read_samples(data, samples, shape, data_dir)
    with seeded(0):
        alike = config.module(shape, 2)
    head = without_prefix(state, set(alike.state_dict())).get(f"{output_layers(alike, ())[-1]}.weight")
    classes = len(head) if head is not None else found.classes or 10
    title = f"{name}" + (f" with {weights}" if weights else " (untrained)")
    return _from_samples(title, functools.partial(config.module, shape, classes), found, device, weights, state)


def _shape_of(state: Mapping[str, Tensor], ending: str) -> tuple[int, ...]:
    """The shape of the tensor of that name, below whatever prefix; nothing where there is none."""
    return next((tuple(v.shape) for k, v in state.items() if k == ending or k.endswith(f".{ending}")), ())


def _from_samples(
    title: str,
    make: Callable[[], nn.Module],
    found: Samples,
    device: str,
    weights: Path | None,
    state: Mapping[str, Tensor],
) -> Subject:
    with seeded(0):
        module = make()
    notes = load_weights(module, state, weights) if weights is not None else ["untrained: no --weights"]
    network = Network(module.to(device), None, _cross_entropy, fresh=make)
    batch, more = labelled(network, found, device)
    return Subject(title, network, batch, found.name, None, notes + more)


def _cross_entropy(module: nn.Module, batch: TensorDictBase) -> Tensor:
    return F.cross_entropy(module(batch["image"]), batch["label"])


def labelled(network: Network, found: Samples, device: str) -> tuple[TensorDictBase, list[str]]:
    """A batch with labels; where there are none that fit, with the network's own predictions, and a note."""
    images = found.images.to(device)
    try:
        with eval_mode(network.module), torch.no_grad():
            outputs = torch.cat([network.module(part) for part in images.split(64)])
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"the network cannot take images of shape {list(images.shape[1:])} ({reason})") from error
    if outputs.ndim != 2:
        raise UserError(f"the network returns {list(outputs.shape)}; expected [samples, classes]")
    notes = []
    if found.labels is not None and found.classes == outputs.shape[1]:
        labels = found.labels.to(device)
    else:
        why = "no labels"
        if found.labels is not None:
            why = f"{found.classes} classes, the network {outputs.shape[1]} outputs"
        notes.append(
            f"{found.name} has {why}: the network's own predictions stand in for them, and all that comes of the loss "
            "(gradients, curvature, next-task probe) is only as good as these"
        )
        labels = outputs.argmax(1)
    return TensorDict({"image": images, "label": labels}, batch_size=[len(images)]), notes


# Runs ------------------------------------------------------------------------------------------------------------


@dataclass
class _Saved:
    """A run as it was left: its agent with the networks that it had then, and what these began with."""

    spec: RunSpec
    source: Path
    state: dict[str, Any]
    env: Any
    config: Any
    agent: Any
    initial: dict[str, dict[str, Tensor]]


def networks_of_run(folder: Path, data: str | None, device: str, *, samples: int, data_dir: Path) -> list[Subject]:
    """The networks of a finished or interrupted run, on its own probe batch or on other images.

    Raises:
        UserError: The folder holds no run, or what it holds is damaged.
    """
    saved = _open(folder, device, data_dir)
    spec, env, agent, initial = saved.spec, saved.env, saved.agent, saved.initial
    title = f"{spec.id} ({saved.source.name})"
    networks: dict[str, Network] = agent.networks
    if data is not None:
        if not isinstance(env, TaskStream):
            raise UserError("--data: a network that acts is looked at with transitions of its own environment")
        found = read_samples(data, samples or PROBE, env.image_shape, data_dir)
        network = networks["classifier"]
        network.loss = _cross_entropy
        batch, notes = labelled(network, found, device)
        return [Subject(title, network, batch, found.name, initial["classifier"], notes)]
    if isinstance(env, TaskStream):
        finished = saved.source.name == "final.pt"
        task = env.config.task_count - 1 if finished else int(saved.state["course"]["position"][0])
        batch = data_of_task(env, spec, task)[: min(samples or PROBE, PROBE)].to(device)
        where = f"the samples of {spec.env[0]} that came first, with their labels in task {task + 1}"
        return [Subject(title, networks["classifier"], batch, where, initial["classifier"])]
    task = env.config.task_count - 1 if saved.source.name == "final.pt" else int(saved.state["course"]["task"])
    batch = _played(env, agent, spec, task)[: samples or PROBE]
    where = f"transitions of {spec.env[0]}, drawn from {_acted(spec):,} steps that the loaded agent played anew"
    where += f" in task {task + 1}" if env.config.task_count > 1 else ""
    return [Subject(f"{title}: {role}", n, batch, where, initial[role]) for role, n in networks.items()]


def trained_and_fresh(folder: Path, device: str, *, data_dir: Path) -> tuple[Network, Network, TensorDictBase]:
    """The classifier of a run as it was left, the one that it began with, and all training data of the last task.

    Raises:
        UserError: The folder holds no run on a task stream, or what it holds is damaged.
    """
    saved = _open(folder, device, data_dir)
    if not isinstance(saved.env, TaskStream):
        raise UserError(f"{folder}: {saved.spec.env[0]} is no task stream, so that there is no training data of a task")
    begun = saved.config.build(saved.env, saved.spec.run.seed, torch.device(device))  # draws the same weights again
    data = data_of_task(saved.env, saved.spec, saved.env.config.task_count - 1).to(device)
    return saved.agent.networks["classifier"], begun.networks["classifier"], data


def _open(folder: Path, device: str, data_dir: Path) -> _Saved:
    """Build the agent of a run and bring it to the state that was saved last."""
    spec_file = folder / "spec.toml"
    try:
        spec = RunSpec.from_toml(spec_file.read_text(encoding="utf-8"), str(spec_file))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{folder}: no run in it ({spec_file.name}: {getattr(error, 'strerror', error)})") from error
    final, unfinished = folder / "final.pt", folder / "checkpoint.pt"
    if not final.exists() and not unfinished.exists():
        raise UserError(f"{folder}: neither final.pt nor checkpoint.pt in it; the run has not saved anything yet")
    source = final if final.exists() else unfinished
    try:
        state = checkpoint.load(source)
    except UserError as error:
        raise UserError(f"{source}: damaged, cannot be read") from error
    spec = dataclasses.replace(spec, run=dataclasses.replace(spec.run, device=device))
    env = spec.create("env").make(data_dir)
    config = spec.create("agent")
    if hasattr(config, "storage"):  # what is played here is few and not for learning
        acted = _acted(spec)
        config = dataclasses.replace(config, storage="device", prioritized=False, buffer_size=2 * acted)
    agent = config.build(env, spec.run.seed, torch.device(device))
    try:
        initial = _load(spec, agent, state)
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{source} does not fit its spec.toml ({type(error).__name__}: {reason})") from error
    return _Saved(spec, source, state, env, config, agent, initial)


def _load(spec: RunSpec, agent: Any, state: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Bring the agent to the saved state; return the parameters that it began with."""
    networks = list(agent.networks.items())
    roles = spec.run.roles
    interventions = [spec.create("intervention") if roles is None or role in roles else None for role in agent.networks]
    for (_, network), intervention in zip(networks, interventions, strict=True):
        if intervention is not None:  # it may have changed the architecture
            intervention.prepare(network)
    initial = {role: {n: p.detach().clone() for n, p in each.module.named_parameters()} for role, each in networks}
    for intervention, saved in zip(interventions, state.get("interventions", ()), strict=False):
        if intervention is not None:
            intervention.load_state_dict(saved)
    if "agent" in state:
        agent.load_state_dict(state["agent"])
        return initial
    for (_, network), saved in zip(networks, state["networks"], strict=True):
        network.module.load_state_dict(saved)
    agent.load_extra_state(state.get("extra", {}))
    return initial


def data_of_task(env: TaskStream, spec: RunSpec, task: int) -> TensorDictBase:
    """All training images of a task in order of arrival, with their labels then.

    Args:
        env: The stream; it is begun anew.
        spec: Whose seed it has.
        task: Number of the task, from 0.
    """
    observation, _ = env.reset(seed=derive(spec.run.seed, "stream"))
    images = observation["images"]
    for _ in range(task):
        observation = env.step(env.evaluation_labels)[0]
        replaced = len(observation["images"]) == len(observation["labels"])  # as the replay buffer sees it
        images = observation["images"] if replaced else np.concatenate([images, observation["images"]])
    content = {"image": torch.from_numpy(images), "label": torch.from_numpy(observation["labels"])}
    return TensorDict(content, batch_size=[len(images)])


def _acted(spec: RunSpec) -> int:
    """Steps to play: where many environments wait for long returns, the first transitions come late."""
    return max(_ACTED, 2 * int(spec.env[1]["envs"]) * int(spec.agent[1]["n_step"]))


def _played(env: Any, agent: Any, spec: RunSpec, task: int) -> TensorDictBase:
    """Transitions of the agent as it is now; the memory of a run is not on disk."""
    with tempfile.TemporaryDirectory() as folder:
        stand_in: Any = types.SimpleNamespace(spec=spec, folder=Path(folder), total=0, works_on=lambda role: False)
        trainer = OffPolicyTrainer(stand_in, env, agent)
        try:
            agent.set_progress(1.0)
            trainer.remember(task, _acted(spec))
            return trainer.probe()
        finally:
            trainer.close()
