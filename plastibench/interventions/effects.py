"""Track whether the hooks of a method have any effect on its network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from plastibench.config.own_code import is_own
from plastibench.interventions.base import Intervention, overrides
from plastibench.nn.network import Network
from plastibench.nn.parameters import saved_tensors

_UPDATE_HOOKS = ("before_update", "after_update")


class Effects:
    """Counts the calls of a method's hooks, and compares the network before and after each call until one differs.

    ``intervene`` is watched in every method. Hooks that run at each update are watched only in methods outside
    plastibench, because the comparison costs time until the first change.

    Attributes:
        calls: Number of calls of each watched hook.
        changed: Whether a call of the hook has changed the network; for ``penalty``, whether it returned a term.
    """

    def __init__(self, intervention: Intervention) -> None:
        self.name = type(intervention).__name__
        watched = ["intervene"] if overrides(intervention, "intervene") else []
        parts = (intervention, *intervention.wrapped())
        if all(is_own(type(part).__module__) for part in parts):
            watched += [hook for hook in ("penalty", *_UPDATE_HOOKS) if overrides(intervention, hook)]
        self.acts_otherwise = any(
            overrides(intervention, hook) and hook not in watched for hook in ("penalty", *_UPDATE_HOOKS, "evaluated")
        )
        self.prepared = False  # whether `prepare` changed the network
        self.calls = dict.fromkeys(watched, 0)
        self.changed = dict.fromkeys(watched, False)

    def prepare(self, intervention: Intervention, network: Network) -> None:
        """Call the method's ``prepare``, and note whether it changes the network."""
        before = _snapshot(network, with_gradients=False)
        intervention.prepare(network)
        self.prepared = not _same(before, _snapshot(network, with_gradients=False))

    @contextlib.contextmanager
    def watch(self, hook: str, network: Network) -> Iterator[None]:
        """Watch a call of a hook."""
        if hook not in self.calls or self.changed[hook]:
            if hook in self.calls:
                self.calls[hook] += 1
            yield
            return
        before = _snapshot(network, with_gradients=hook == "before_update")
        yield
        self.calls[hook] += 1
        self.changed[hook] = not _same(before, _snapshot(network, with_gradients=hook == "before_update"))

    def count_penalty(self, term: Tensor | None) -> None:
        """Count a call of ``penalty``."""
        if "penalty" in self.calls:
            self.calls["penalty"] += 1
            self.changed["penalty"] = self.changed["penalty"] or term is not None

    def complaint(self, role: str) -> str:
        """Return a warning if the method has had no effect so far; otherwise an empty string."""
        if self.acts_otherwise or any(self.changed.values()) or not self.calls:
            return ""
        equal = "" if self.prepared else ": the run equals none"
        if not any(self.calls.values()):
            return f"never acted on the {role}{equal}"
        calls = " and ".join(
            f"{count:,} {'interventions' if hook == 'intervene' else f'calls of {hook}'}"
            for hook, count in self.calls.items()
            if count
        )
        return f"{calls} changed nothing in the {role}{equal}"

    def state_dict(self) -> dict[str, Any]:
        """State for an exact resume."""
        return {"calls": dict(self.calls), "changed": dict(self.changed)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from :meth:`state_dict`."""
        self.calls.update(state["calls"])
        self.changed.update(state["changed"])


@torch.no_grad()
def _snapshot(network: Network, *, with_gradients: bool) -> dict[str, Tensor]:
    """Copy all parameters and buffers, and compute sums over the optimizer's state, which is too large to copy."""
    parameters = dict(network.module.named_parameters())
    found = {name: value.detach().clone() for name, value in saved_tensors(network.module).items()}
    if with_gradients:
        found |= {f"{n}.grad": p.grad.clone() for n, p in parameters.items() if p.grad is not None}
    moments = {} if network.optimizer is None else network.optimizer.state
    for name, parameter in parameters.items():
        for key, value in moments.get(parameter, {}).items():
            if isinstance(value, Tensor):
                found[f"{name}.{key}"] = value.detach().abs().double().sum()
    return found


def _same(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> bool:
    if before.keys() != after.keys():
        return False
    pairs = ((value, after[name]) for name, value in before.items())
    return all(a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all()) for a, b in pairs)  # NaN too
