"""Load networks from the user's own code and from folders of Hugging Face transformers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from plastibench.config.errors import UserError
from plastibench.config.own_code import describe
from plastibench.diagnosis.loading import DiagnosisTarget, from_samples
from plastibench.diagnosis.sample_limit import limited
from plastibench.diagnosis.samples import read_samples
from plastibench.diagnosis.state_dicts import load_weights, read_state
from plastibench.nn.network import Network, as_batch, eval_mode, seeded
from plastibench.utils.user_imports import load_own

_LENGTH = 128  # tokens of a text
_TRIED = 2  # samples


def own_model(
    name: str,
    data: str,
    device: str,
    *,
    weights: Path | None,
    samples: int,
    image_size: int,
    data_dir: Path,
    limit: bool = False,
) -> DiagnosisTarget:
    """Call the user's function, and load weights into the model that it returns.

    The function takes no arguments and returns an image model, or ``(model, batch, loss_fn)`` for any other model:
    ``batch`` is a dict of tensors, and ``loss_fn(model, batch)`` the mean training loss.

    Args:
        name: ``module:function`` or ``file.py:function``.
        data: Images, as :func:`read_samples` takes them; unused if the function returns a batch.
        device: Where to put the network.
        weights: A file of weights; None: keep the weights that the function returns.
        samples: Number of images.
        image_size: Height and width of the images; 0: 224.
        data_dir: Folder of datasets.
        limit: Use fewer samples if the network is large.

    Raises:
        UserError: The function fails or returns something else, or weights or data do not fit.
    """
    function = load_own(name, "TARGET")
    with seeded(0):
        try:
            found = function()
        except Exception as error:  # user code may raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(f"{name}() failed ({reason})") from error
    model, *rest = found if isinstance(found, tuple) else (found,)
    if not isinstance(model, nn.Module) or len(rest) not in (0, 2):
        raise UserError(f"{name}() must return a model or (model, batch, loss_fn); it returned {type(found).__name__}")
    state = read_state(weights) if weights is not None else {}
    title = name + (f" with {weights}" if weights else "")
    if not rest:
        first = next((child for child in model.modules() if isinstance(child, nn.Conv2d)), None)
        size = image_size or 224
        images = read_samples(data, samples, (first.in_channels if first is not None else 3, size, size), data_dir)

        def build() -> nn.Module:
            made = function()
            assert isinstance(made, nn.Module)
            return made

        return from_samples(title, build, images, device, weights, state, module=model, limit=limit)
    batch, loss = rest
    notes = load_weights(model, state, weights) if weights is not None else []
    network = Network(model.to(device), None, loss, fresh=lambda: function()[0])
    own = _own_batch(name, batch).to(device)
    _check_loss(name, network, own[:_TRIED])
    if limit:
        own, more = limited(network, own)
        notes = [*notes, *more]
    return DiagnosisTarget(title, network, own, "its own batch", None, notes)


def _own_batch(name: str, batch: Any) -> TensorDictBase:
    try:
        return as_batch(batch)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{name}() returns a batch that cannot be used ({reason}); return a dict of tensors with the same first "
            "dimension"
        ) from error


def _check_loss(name: str, network: Network, batch: TensorDictBase) -> None:
    """Check that the user's loss runs on a few samples and is a number."""
    try:
        with eval_mode(network.module), torch.no_grad():
            loss = network.loss(network.module, batch)
    except Exception as error:  # user code may raise anything
        raise UserError(f"{name}: loss_fn fails on its batch: {describe(error)}") from error
    if not isinstance(loss, Tensor) or loss.ndim:
        what = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)[:40]
        raise UserError(f"{name}: loss_fn returns {what}; return the mean loss over the batch, a tensor without axes")


def huggingface_model(
    folder: Path,
    data: str,
    device: str,
    *,
    samples: int,
    image_size: int,
    data_dir: Path,
    limit: bool = False,
) -> DiagnosisTarget:
    """Load a model that ``save_pretrained`` has written, without executing code from the folder.

    Args:
        folder: The folder, with ``config.json`` and safetensors files; text models also need their tokenizer.
        data: A text file with a sample per line for a text model; images, as :func:`read_samples` takes them, for an
            image model; ``noise`` for random tokens or images.
        device: Where to put the network.
        samples: Number of samples.
        image_size: Height and width of the images; 0 for the model's own.
        data_dir: Folder of datasets.
        limit: Use fewer samples if the network is large.

    Raises:
        UserError: The folder contains no such model, or the data does not fit.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"{folder} is a Hugging Face model; install its library: pip install 'plastibench[transformers]'"
        ) from error
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        cls = getattr(transformers, (config.architectures or ["AutoModel"])[0])
        model = cls.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
        )
    except Exception as error:  # damaged files fail in many ways
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"cannot load the model in {folder} ({reason})") from error
    if getattr(model, "main_input_name", "") == "pixel_values":
        batch, where = _images(folder, model, data, samples, image_size, data_dir)
    else:
        batch, where = _texts(folder, model, data, samples)
    model.to(device).eval()
    batch, notes = batch.to(device), list[str]()
    network = Network(model, None, _loss, fresh=lambda: type(model)(copy.deepcopy(config)))
    if limit:
        batch, notes = limited(network, batch)
    if "labels" not in batch:
        with torch.no_grad():
            logits = model(**dict(batch.items())).logits
        batch["labels"] = logits.argmax(-1)
        notes.append("the network's own predictions are the labels; methods that use gradients depend on them")
    return DiagnosisTarget(str(folder), network, batch, where, None, notes)


def _images(
    folder: Path, model: Any, data: str, samples: int, image_size: int, data_dir: Path
) -> tuple[TensorDictBase, str]:
    own = getattr(model.config, "image_size", 224)
    size = image_size or (own if isinstance(own, int) else own[0])
    found = read_samples(data, samples, (getattr(model.config, "num_channels", 3), size, size), data_dir)
    content: dict[str, Tensor] = {"pixel_values": found.images}
    if found.labels is not None and found.classes == getattr(model.config, "num_labels", None):
        content["labels"] = found.labels
    return TensorDict(content, batch_size=[len(found.images)]), found.name


def _texts(folder: Path, model: Any, data: str, samples: int) -> tuple[TensorDictBase, str]:
    vocabulary = int(model.config.vocab_size)
    if data == "noise":
        tokens = torch.randint(vocabulary, (samples, 16), generator=torch.Generator().manual_seed(0))
        return _with_labels(model, {"input_ids": tokens}), "random tokens"
    path = Path(data)
    if not path.is_file():
        raise UserError(f"--data {data}: expected a text file with one sample per line, or noise")
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()][:samples]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--data {data}: {getattr(error, 'strerror', None) or error}") from error
    if not lines:
        raise UserError(f"--data {data} has no text")
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        encoded = tokenizer(lines, padding=True, truncation=True, max_length=_LENGTH, return_tensors="pt")
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{folder} has no tokenizer that reads {data} ({reason})") from error
    known = {"input_ids", "attention_mask", "token_type_ids"}
    return _with_labels(model, {name: value for name, value in encoded.items() if name in known}), str(path)


def _with_labels(model: Any, content: Mapping[str, Tensor]) -> TensorDictBase:
    """Add labels: language models predict their own input; other models get their own predictions as labels later."""
    batch = dict(content)
    name = type(model).__name__
    if any(kind in name for kind in ("LMHead", "CausalLM", "MaskedLM", "ConditionalGeneration")):
        batch["labels"] = batch["input_ids"].clone()
    return TensorDict(batch, batch_size=[len(batch["input_ids"])])


def _loss(module: nn.Module, batch: TensorDictBase) -> Tensor:
    loss: Tensor = module(**dict(batch.items())).loss
    return loss
