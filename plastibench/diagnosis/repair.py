"""Apply an intervention to a loaded network once, and report what it changed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plastibench.config.errors import RunError, UserError
from plastibench.diagnosis.loading import DiagnosisTarget
from plastibench.interventions.attach import attach
from plastibench.interventions.base import Report, overrides
from plastibench.nn.all_or_nothing import all_or_nothing
from plastibench.nn.network import Network, eval_mode
from plastibench.nn.parameters import saved_tensors
from plastibench.utils import atomic_io
from plastibench.utils.tables import percent
from plastibench.utils.wording import plural

SUFFIXES = (".safetensors", ".pt", ".pth")


@dataclass(frozen=True)
class Repair:
    """What an intervention did to a network.

    Attributes:
        title: Description of the network.
        intervention: Name of the intervention.
        report: Report of the intervention.
        changed: Number of scalars in the state dict whose value has changed.
        total: Number of scalars of the state dict.
        drift: Relative change of the outputs on the batch, |after - before| / |before|; None if the module does not
            return one tensor.
        agreement: Fraction of predictions (largest outputs) that did not change; None if the outputs are not [..., K].
        samples: Number of samples of the batch.
        data: Where the batch comes from.
        notes: Caveats from loading the network.
    """

    title: str
    intervention: str
    report: Report
    changed: int
    total: int
    drift: float | None
    agreement: float | None
    samples: int
    data: str
    notes: tuple[str, ...]

    def as_text(self) -> str:
        """The report for the terminal."""
        lines = [f"{self.title}: {self.intervention}"]
        units = f"; {percent(self.report.revived_fraction, 0)} % of units reinitialized" if self.report.units else ""
        changed = percent(self.changed / self.total, 0)
        lines.append(f"  {self.changed:,} of {plural(self.total, 'value')} changed ({changed} %){units}")
        if self.drift is not None:
            same = f", {percent(self.agreement, 0)} % of predictions unchanged" if self.agreement is not None else ""
            on = f"on {plural(self.samples, 'sample')} of {self.data}"
            lines.append(f"  {on}: outputs changed by {percent(self.drift)} %{same}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def repair(target: DiagnosisTarget, intervention: str, options: Mapping[str, Any]) -> Repair:
    """Apply an intervention to a network in place.

    Args:
        target: The network and its data.
        intervention: A registered name.
        options: Options of the intervention.

    Raises:
        UserError: The method works only during training or cannot act on this network, which is then unchanged; or it
            changes the architecture.
    """
    network, batch = target.network, target.batch
    before = {name: value.detach().clone() for name, value in saved_tensors(network.module).items()}
    expected = _outputs(network, batch)
    with all_or_nothing(network), attach(intervention, network, **options) as handle:
        if not overrides(handle.intervention, "intervene"):
            raise UserError(f"{intervention} works only during training; attach it to your training loop instead")
        report = handle.intervene(batch, expect_steps=False)
        after = saved_tensors(network.module)
        if after.keys() != before.keys() or any(after[name].shape != before[name].shape for name in before):
            raise UserError(
                f"{intervention} changes the architecture, which a weights file cannot store; use pb.apply in Python"
            )
    changed = sum(int((after[name] != value).sum()) for name, value in before.items())
    drift = agreement = None
    if expected is not None and (found := _outputs(network, batch)) is not None:
        drift = float((found - expected).norm() / expected.norm().clamp_min(1e-12))
        if found.ndim > 1 and found.shape[-1] > 1:
            agreement = float((found.argmax(-1) == expected.argmax(-1)).float().mean())
    total = sum(value.numel() for value in before.values())
    return Repair(
        target.title,
        intervention,
        report,
        changed,
        total,
        drift,
        agreement,
        len(batch),
        target.data,
        tuple(target.notes),
    )


def save_weights(module: torch.nn.Module, path: Path) -> None:
    """Write the state dict of a module: a ``.safetensors``, ``.pt`` or ``.pth`` file, atomically.

    A path without a suffix becomes a folder, if the module can save itself as Hugging Face's models do.

    Raises:
        RunError: The file cannot be written.
    """
    if not path.suffix:
        _save_folder(module, path)
        return
    state = {name: value.detach().cpu().contiguous() for name, value in saved_tensors(module).items()}
    with atomic_io.atomic(path) as file:
        if path.suffix == ".safetensors":
            from safetensors.torch import save

            file.write(save(_without_shared(state), {"format": "pt"}))
        else:
            torch.save({**module.state_dict(), **state}, file)


def check_output(path: Path) -> None:
    """Check the output path before anything is loaded.

    Raises:
        UserError: The suffix is not supported, or the parent folder does not exist.
    """
    if path.suffix not in ("", *SUFFIXES):
        raise UserError(f"--out {path}: use a name that ends in {', '.join(SUFFIXES)}")
    if not path.suffix and path.exists():
        raise UserError(f"--out {path} exists; name a new folder")
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: the folder {path.parent} does not exist; create it first")


def _save_folder(module: Any, path: Path) -> None:
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        module.save_pretrained(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _without_shared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory, such as tied embeddings, which the format does not allow."""
    seen: set[int] = set()
    kept = {}
    for name, value in state.items():
        shared = value.untyped_storage().data_ptr() in seen
        seen.add(value.untyped_storage().data_ptr())
        kept[name] = value.clone() if shared else value
    return kept


@torch.no_grad()
def _outputs(network: Network, batch: Any) -> Tensor | None:
    """Return the module's output when the loss calls it: a tensor, or the logits of a Hugging Face model."""
    seen: list[Any] = []
    hook = network.module.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        with eval_mode(network.module):
            network.loss(network.module, batch)
    finally:
        hook.remove()
    output = seen[0].get("logits") if len(seen) == 1 and isinstance(seen[0], Mapping) else (seen or [None])[0]
    return output.float() if len(seen) == 1 and isinstance(output, Tensor) else None
