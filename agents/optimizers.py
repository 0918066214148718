"""Options for an agent's optimizer: a PyTorch optimizer by name, or any class as ``module:Class``."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from plastibench.config.errors import UserError, did_you_mean
from plastibench.config.options import option
from plastibench.utils.user_imports import load_own

if TYPE_CHECKING:
    import torch
    from torch import nn

# PyTorch's optimizers for dense gradients that need no closure.
NAMES = (
    *("adadelta", "adafactor", "adagrad", "adam", "adamax", "adamw", "asgd", "muon", "nadam", "radam", "rmsprop"),
    *("rprop", "sgd"),
)
Grouping = Callable[["nn.Module"], "list[list[nn.Parameter]]"]


@dataclass(frozen=True)
class OptimizerOptions:
    """Options of the optimizer. An option that is None keeps its default and does not change the id of a run."""

    optimizer: str | None = option(
        None,
        "adadelta, adafactor, adagrad, adam, adamax, adamw, asgd, muon, nadam, radam, rmsprop, rprop, sgd, or "
        "module:Class; muon updates 2-D weights, and adamw the rest (default: adamw for classifiers, adam for RL "
        "agents)",
    )
    momentum: float | None = option(None, "momentum of sgd, rmsprop or muon (default: PyTorch's)", low=0)
    decay: Literal["all", "matrices"] | None = option(
        None, "parameters to decay: all, or only matrices and filters (default: all)"
    )

    def __post_init__(self) -> None:
        if self.optimizer is not None:
            _check_name(self.optimizer)


def _check_name(name: str) -> None:
    """Raise ValueError if a name is neither a PyTorch optimizer nor of the form ``module:Class``."""
    if ":" not in name and name not in NAMES:
        hint = did_you_mean(name, NAMES)
        raise ValueError(f"unknown optimizer '{name}'{hint} (available: {', '.join(NAMES)}, or your own module:Class)")


def grouping(options: OptimizerOptions) -> Grouping | None:
    """Return the function that assigns a module's parameters to groups; None means one group.

    The function depends on names and shapes only, so a module that an intervention has rebuilt is grouped in the same
    way, and a resumed run finds the optimizer's state in the same places.
    """
    muon, matrices = options.optimizer == "muon", options.decay == "matrices"
    if not (muon or matrices):
        return None

    def groups(module: nn.Module) -> list[list[nn.Parameter]]:
        skipped: set[str] = getattr(module, "no_weight_decay", set)()  # timm: position embedding and class token
        found: list[list[nn.Parameter]] = [[] for _ in range(muon + 1 + matrices)]
        for name, parameter in module.named_parameters():
            decays = parameter.ndim > 1 and name not in skipped
            if not parameter.requires_grad:
                continue
            found[0 if muon and parameter.ndim == 2 else muon + (matrices and not decays)].append(parameter)
        return found

    return groups


def make_optimizer(
    options: OptimizerOptions,
    module: nn.Module,
    default: str,
    *,
    lr: float,
    weight_decay: float,
    eps: float | None = None,
    extra: Sequence[torch.Tensor] = (),
) -> torch.optim.Optimizer:
    """Create the optimizer of a module.

    Args:
        options: The optimizer options.
        module: The module; frozen parameters are left out.
        default: The optimizer if the options name none: ``adam`` or ``adamw``.
        lr: Learning rate.
        weight_decay: Weight decay; the optimizer determines whether it is decoupled.
        eps: Epsilon, if it is an option of the agent; optimizers without one ignore the usual 1e-8.
        extra: Tensors outside the module; they form the last group, without weight decay.

    Raises:
        UserError: The optimizer does not exist, lacks a given option, or cannot be used.
    """
    name = options.optimizer or default
    try:
        _check_name(name)  # again, because a subclass may override __post_init__
    except ValueError as error:
        raise UserError(f"agent: {error}") from error
    own = ":" in name
    kind = load_own(name, "--agent.optimizer") if own else _torch_optimizer(name)
    if options.decay == "matrices" and not weight_decay:
        raise UserError("agent: decay has no effect without weight decay; set --agent.weight-decay")
    grouped = grouping(options)
    groups = [[p for p in module.parameters() if p.requires_grad]] if grouped is None else grouped(module)
    decays = [weight_decay] * len(groups)
    if options.decay == "matrices":
        decays[-1] = 0.0
    given: dict[str, Any] = {"weight_decay": weight_decay, "momentum": options.momentum, "eps": eps}
    if name == "muon":
        from plastibench.agents.combined_optimizer import CombinedOptimizer

        adamw = _torch_optimizer("adamw")
        for_muon = {**given, "eps": None}  # Muon's epsilon has another meaning
        for_adamw = {**given, "momentum": None}
        all_groups = _with_decay(groups, decays)
        made: torch.optim.Optimizer = CombinedOptimizer(
            kind(all_groups[:1], lr=lr, adjust_lr_fn="match_rms_adamw", **_accepted(kind, name, for_muon)),
            adamw(all_groups[1:], lr=lr, **_accepted(adamw, "adamw", for_adamw)),
        )
    else:
        keywords = {"lr": lr, **_accepted(kind, name, given)}
        if own:
            _try(kind, name, keywords)
        made = kind(_with_decay(groups, decays) if grouped else groups[0], **keywords)
    if extra:
        made.add_param_group({"params": [*extra], **({"weight_decay": 0.0} if "weight_decay" in made.defaults else {})})
    return made


def _torch_optimizer(name: str) -> Any:
    import torch

    found = {cls: getattr(torch.optim, cls) for cls in dir(torch.optim)}
    kind = next((kind for cls, kind in found.items() if cls.lower() == name), None)
    if kind is None:
        raise UserError(f"--agent.optimizer {name} needs a newer PyTorch than {torch.__version__}")
    return kind


def _with_decay(groups: list[list[nn.Parameter]], decays: list[float]) -> list[dict[str, Any]]:
    return [{"params": group, "weight_decay": decay} for group, decay in zip(groups, decays, strict=True)]


def _accepted(kind: Any, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Select the given options that an optimizer has.

    Raises:
        UserError: The optimizer lacks an option that was set to a value other than its neutral one.
    """
    known = inspect.signature(kind).parameters
    neutral = {"weight_decay": 0.0, "momentum": None, "eps": 1e-8}
    # Not PyTorch's fused SGD: it fails if an intervention has cleared the momentum of some parameters.
    found: dict[str, Any] = {"fused": True} if name in ("adam", "adamw") else {}
    for key, value in given.items():
        if value is None:
            continue
        number = key in known and isinstance(known[key].default, int | float)
        if number and not (key == "eps" and value == neutral["eps"] and name not in ("adam", "adamw")):
            found[key] = value
        elif not number and value != neutral[key]:
            flag = key.replace("_", "-")
            remedy = "set it to 0" if key == "weight_decay" else "leave it out"
            raise UserError(f"agent: optimizer {name} has no {flag}; {remedy}: --agent.{flag}")
    return found


def _try(kind: Any, name: str, keywords: dict[str, Any]) -> None:
    """Test the user's optimizer: take a step on a small tensor, and save its state.

    Raises:
        UserError: The step fails, or the state cannot be saved.
    """
    import torch
    from torch import nn

    where = f"--agent.optimizer {name}"
    try:
        tried = nn.Parameter(torch.ones(2, 2))
        tried.grad = torch.ones(2, 2)
        optimizer = kind([tried], **keywords)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"{type(optimizer).__name__} is not a torch.optim.Optimizer")
        optimizer.step()
        content = io.BytesIO()
        torch.save(optimizer.state_dict(), content)
        torch.load(io.BytesIO(content.getvalue()), weights_only=True)
    except Exception as error:  # user code may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"{where} cannot be used ({reason}); it must step without a closure, and its state may contain only "
            "tensors and numbers"
        ) from error
