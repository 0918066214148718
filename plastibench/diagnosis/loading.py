"""Load networks to diagnose: those of a run, a timm model, or an agent's network with weights from a file."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from plastibench.config import registry
from plastibench.config.errors import UserError, did_you_mean
from plastibench.config.options import build
from plastibench.config.spec import RunSpec
from plastibench.diagnosis.sample_limit import affordable, limit_note, spread
from plastibench.diagnosis.samples import Samples, read_samples
from plastibench.diagnosis.state_dicts import load_weights, read_state, without_prefix
from plastibench.envs.task_stream import TaskStream
from plastibench.nn.network import Network, eval_mode, seeded
from plastibench.nn.units import checked_outputs, output_layers
from plastibench.training.learner import Learner
from plastibench.training.offpolicy import OffPolicyTrainer
from plastibench.training.saved_run import SavedRun, data_of_task, open_run
from plastibench.training.supervised import PROBE
from plastibench.utils.wording import plural

DEFAULT_SAMPLES = 32
THOROUGH_SAMPLES = 64
_ACTED = 1000  # environment steps that are played to collect transitions


@dataclass
class DiagnosisTarget:
    """A network to diagnose, and the data to use.

    Attributes:
        title: Description for reports.
        network: The network.
        batch: Probe batch.
        data: Where the batch comes from.
        initial: Parameters before training, if known.
        notes: Caveats for the reader, such as where labels come from or which weights did not fit.
    """

    title: str
    network: Network
    batch: TensorDictBase
    data: str
    initial: dict[str, Tensor] | None = None
    notes: list[str] = field(default_factory=list)


def timm_model(
    name: str,
    data: str,
    device: str,
    *,
    weights: Path | None,
    samples: int,
    image_size: int,
    data_dir: Path,
    limit: bool = False,
    pretrained: bool = False,
) -> DiagnosisTarget:
    """Load a timm model: untrained, pretrained, or with weights from a file.

    Args:
        name: Name of the model.
        data: Images, as :func:`read_samples` takes them.
        device: Where to put the network.
        weights: A file of weights, which also determines the numbers of classes and channels.
        samples: Number of samples.
        image_size: Height and width of the images; 0 for the model's own.
        data_dir: Folder of datasets.
        limit: Use fewer samples if the network is large.
        pretrained: Download the pretrained weights of this name.

    Raises:
        UserError: The model does not exist, its pretrained weights do not exist or cannot be downloaded, or weights or
            data do not fit the model.
    """
    import timm

    if not timm.is_model(name):
        raise UserError(f"no timm model '{name}'{did_you_mean(name, timm.list_models())}")
    if pretrained and not timm.models.is_model_pretrained(name):
        raise UserError(f"timm has no pretrained weights of '{name}'; drop --pretrained, or pass --weights FILE")
    state = read_state(weights) if weights is not None else {}
    known = timm.get_pretrained_cfg(name)
    channels, height, width = known.input_size if known is not None else (3, 224, 224)
    options: dict[str, Any] = {}
    if known is not None and isinstance(known.classifier, str):
        head = _shape_of(state, f"{known.classifier}.weight")
        options = {"num_classes": head[0]} if head and head[0] else {}
    if known is not None and isinstance(known.first_conv, str):
        first = _shape_of(state, f"{known.first_conv}.weight")
        channels = first[1] if len(first) == 4 and first[1] else channels
    shape = (channels, image_size or height, image_size or width)
    found = read_samples(data, samples, shape, data_dir)
    if not options and not state and not pretrained and found.classes:
        options = {"num_classes": found.classes}

    def create(**given: Any) -> nn.Module:
        try:
            model: nn.Module = timm.create_model(name, in_chans=channels, img_size=shape[1:], **given)
        except TypeError:  # models for any image size do not have this option
            model = timm.create_model(name, in_chans=channels, **given)
        return model

    make = functools.partial(create, **options)
    if not pretrained:
        title = f"timm:{name}" + (f" with {weights}" if weights else " (untrained)")
        return from_samples(title, make, found, device, weights, state, limit=limit)
    try:
        module = create(pretrained=True, **options)
    except Exception as error:  # raised by the libraries that download
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"cannot load the pretrained weights of {name} ({type(error).__name__}: {reason}); download them yourself "
            "and pass --weights FILE"
        ) from error
    network = Network(module.to(device), None, _cross_entropy, fresh=make)
    batch, notes = labelled(network, found, device, limit)
    return DiagnosisTarget(f"timm:{name} (pretrained)", network, batch, found.name, None, notes)


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
    limit: bool = False,
) -> DiagnosisTarget:
    """Build the network of one of plastibench's classifiers and load weights from a file.

    Args:
        name: Name of the agent.
        values: Its options.
        data: Images, as :func:`read_samples` takes them.
        device: Where to put the network.
        weights: A file of weights, which also determines the number of classes; None: untrained.
        samples: Number of samples.
        image_size: Height and width of the images; 0 for the usual size of the dataset.
        data_dir: Folder of datasets.
        limit: Use fewer samples if the network is large.

    Raises:
        UserError: The agent does not exist or is not a classifier, or weights or data do not fit it.
    """
    entry = registry.agents[name]
    config: Any = build(entry.load(), values, f"agent {name}", entry.defaults)
    if not hasattr(config, "module"):
        raise UserError(f"--agent {name} is not a classifier; diagnose its run's folder instead")
    state = read_state(weights) if weights is not None else {}
    shapes = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "fashion-mnist": (1, 28, 28), "tiny-imagenet": (3, 64, 64)}
    channels, height, width = shapes.get(data, (3, 32, 32))
    shape = (channels, image_size or height, image_size or width)
    found = read_samples(data, samples, shape, data_dir)
    with seeded(0):
        example = config.module(shape, 2)
    head = without_prefix(state, set(example.state_dict())).get(f"{output_layers(example, ())[-1]}.weight")
    classes = len(head) if head is not None and head.ndim == 2 and len(head) else found.classes or 10
    title = f"{name}" + (f" with {weights}" if weights else " (untrained)")
    build_module = functools.partial(config.module, shape, classes)
    return from_samples(title, build_module, found, device, weights, state, limit=limit)


def _shape_of(state: Mapping[str, Tensor], ending: str) -> tuple[int, ...]:
    """The shape of the tensor with this name, under any prefix; empty if there is none."""
    return next((tuple(v.shape) for k, v in state.items() if k == ending or k.endswith(f".{ending}")), ())


def from_samples(
    title: str,
    make: Callable[[], nn.Module],
    found: Samples,
    device: str,
    weights: Path | None,
    state: Mapping[str, Tensor],
    module: nn.Module | None = None,
    limit: bool = False,
) -> DiagnosisTarget:
    """Make a diagnosis target from an image classifier.

    Args:
        title: Description for reports.
        make: Builds an untrained model.
        found: The images.
        device: Where to put the network.
        weights: The file of ``state``; None if there is none.
        state: Weights to load, if there is a file.
        module: The model; by default a new one.
        limit: Use fewer samples if the network is large.
    """
    if module is None:
        with seeded(0):
            module = make()
        notes = ["untrained: no weights were given"] if weights is None else []
    else:
        notes = []
    if weights is not None:
        notes = load_weights(module, state, weights)
    network = Network(module.to(device), None, _cross_entropy, fresh=make)
    batch, more = labelled(network, found, device, limit)
    return DiagnosisTarget(title, network, batch, found.name, None, notes + more)


def name_outputs(target: DiagnosisTarget, names: Sequence[str]) -> None:
    """Set the output layers of the network.

    Raises:
        UserError: A name is not a layer with units of the network.
    """
    target.network.outputs = checked_outputs(target.network.module, names)


def _cross_entropy(module: nn.Module, batch: TensorDictBase) -> Tensor:
    return F.cross_entropy(module(batch["image"]), batch["label"])


def _logits(module: nn.Module, images: Tensor) -> Tensor:
    found = module(images)
    if not isinstance(found, Tensor):
        raise UserError(
            f"the network returns a {type(found).__name__}; expected logits [samples, classes] (for other outputs, let "
            "module:function return (model, batch, loss_fn))"
        )
    return found


def labelled(network: Network, found: Samples, device: str, limit: bool = False) -> tuple[TensorDictBase, list[str]]:
    """Make a batch. If samples have no labels that fit the network, its predictions become the labels, with a note.

    Raises:
        UserError: The network does not accept the images, or does not return logits [N, classes].
    """
    images, labels, notes = found.images.to(device), found.labels, list[str]()
    try:
        if limit:
            count = affordable(network.module, lambda: network.module(images[:1]), len(images))
            notes, chosen = limit_note(count, len(images)), spread(len(images), count)
            images, labels = images[chosen], None if labels is None else labels[chosen]
        with eval_mode(network.module), torch.no_grad():
            outputs = torch.cat([_logits(network.module, part) for part in images.split(64)])
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"the network does not accept images of shape {list(images.shape[1:])} ({reason})") from error
    if outputs.ndim != 2:
        raise UserError(f"the network returns {list(outputs.shape)}; expected [samples, classes]")
    if labels is not None and found.classes == outputs.shape[1]:
        labels = labels.to(device)
    else:
        why = "no labels"
        if labels is not None:
            why = (
                f"{plural(found.classes or 0, 'class', 'classes')} and the network {plural(outputs.shape[1], 'output')}"
            )
        notes.append(
            f"{found.name} has {why}, so the network's own predictions are the labels; metrics of the loss (gradients, "
            "curvature, next-task probe) depend on them"
        )
        labels = outputs.argmax(1)
    return TensorDict({"image": images, "label": labels}, batch_size=[len(images)]), notes


def networks_of_run(
    folder: Path, data: str | None, device: str, *, samples: int, data_dir: Path
) -> list[DiagnosisTarget]:
    """The networks of a finished or interrupted run, with its own probe batch or with other images.

    Args:
        folder: The run's folder.
        data: Images to use instead, as :func:`read_samples` takes them; None for the run's own data.
        device: Where to put the networks.
        samples: Number of samples; 0 for the number on which the run measures its metrics.
        data_dir: Folder of datasets.

    Raises:
        UserError: The folder contains no saved run, its files are damaged, or the data does not fit.
    """
    saved = open_run(folder, device, data_dir)
    title = f"{saved.spec.id} ({saved.file.name})"
    if not isinstance(saved.env, TaskStream):
        if data is not None:
            raise UserError("--data does not apply to RL runs; they are diagnosed on their own transitions")
        return _rl_networks(saved, title, samples)
    network: Network = saved.agent.networks["classifier"]
    initial = saved.initial["classifier"]
    if data is not None:
        found = read_samples(data, samples or PROBE, saved.env.image_shape, data_dir)
        network.loss = _cross_entropy
        batch, notes = labelled(network, found, device)
        return [DiagnosisTarget(title, network, batch, found.name, initial, notes)]
    batch = data_of_task(saved.env, saved.spec, saved.task)[: min(samples or PROBE, PROBE)].to(device)
    where = f"first samples of {saved.spec.env[0]}, with their labels in task {saved.task + 1}"
    return [DiagnosisTarget(title, network, batch, where, initial)]


def _rl_networks(saved: SavedRun, title: str, samples: int) -> list[DiagnosisTarget]:
    steps = _steps_to_collect(saved.spec)
    # The buffer only has to hold what is played here, whatever the run itself used.
    small = {"storage": "device", "prioritized": False, "buffer_size": 2 * steps}
    saved.agent.config = dataclasses.replace(saved.agent.config, **small)
    batch = _played(saved.env, saved.agent, saved.spec, saved.task)[: samples or PROBE]
    where = f"transitions of {saved.spec.env[0]}, sampled from {steps:,} new steps of the loaded agent"
    where += f" in task {saved.task + 1}" if saved.env.config.task_count > 1 else ""
    networks: dict[str, Network] = saved.agent.networks
    return [
        DiagnosisTarget(f"{title}: {role}", network, batch, where, saved.initial[role])
        for role, network in networks.items()
    ]


def _steps_to_collect(spec: RunSpec) -> int:
    """Number of environment steps to collect.

    It grows with the number of environments and with n, because the first n-step transition completes later.
    """
    return max(_ACTED, 2 * int(spec.env[1]["envs"]) * int(spec.agent[1]["n_step"]))


def _played(env: Any, agent: Any, spec: RunSpec, task: int) -> TensorDictBase:
    """Transitions that the loaded agent collects now: a run's replay buffer is not on disk."""
    trainer = OffPolicyTrainer(env, Learner(agent), spec.run)
    try:
        agent.set_progress(1.0)
        trainer.collect(task, _steps_to_collect(spec))
        return trainer.probe()
    finally:
        trainer.close()
