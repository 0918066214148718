"""Reference implementations in NumPy, independent of plastibench."""

from __future__ import annotations

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from tests.support.networks import logits, loss


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def with_ones(rows: np.ndarray) -> np.ndarray:
    return np.hstack([rows, np.ones((len(rows), 1))])


def stacked(module: nn.Linear | nn.Conv2d) -> np.ndarray:
    """Weights and bias of a module as the matrix S of rows @ S = outputs. [p(+1), H]."""
    matrix = array(module.weight).reshape(len(module.weight), -1).T
    return matrix if module.bias is None else np.vstack([matrix, array(module.bias)])


def delta_ridge(rows: np.ndarray, targets: np.ndarray, current: np.ndarray, ridge: float) -> np.ndarray:
    """argmin ||rows·S - targets||² + λ||S - current||², with λ relative, as one augmented lstsq (no Gram matrix)."""
    penalty = ridge * np.mean(np.sum(rows**2, axis=0))
    columns = rows.shape[1]
    wide = np.vstack([rows, np.sqrt(penalty) * np.eye(columns)])
    right = np.vstack([targets, np.sqrt(penalty) * current])
    return np.linalg.lstsq(wide, right, rcond=None)[0]


def patches(module: nn.Conv2d, inputs: Tensor) -> np.ndarray:
    """Receptive fields of a convolution. [B·y·x, C·kh·kw]."""
    (kh, kw), (sy, sx), (py, px), (dy, dx) = module.kernel_size, module.stride, module.padding, module.dilation
    padded = np.pad(array(inputs), ((0, 0), (0, 0), (py, py), (px, px)))
    height = (padded.shape[2] - dy * (kh - 1) - 1) // sy + 1
    width = (padded.shape[3] - dx * (kw - 1) - 1) // sx + 1
    rows = [
        image[:, y * sy : y * sy + dy * (kh - 1) + 1 : dy, x * sx : x * sx + dx * (kw - 1) + 1 : dx].ravel()
        for image in padded
        for y in range(height)
        for x in range(width)
    ]
    return np.array(rows)


def layer_norm(rows: np.ndarray, eps: float) -> np.ndarray:
    """x̂ of rows [n, H], without scale and shift."""
    return (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + eps)


def seen(module: nn.Module, name: str, batch: TensorDict) -> tuple[Tensor, Tensor]:
    """Input and output of the named module in its first call on the batch, in eval mode."""
    calls: list[tuple[Tensor, Tensor]] = []
    layer = module.get_submodule(name)
    handle = layer.register_forward_hook(lambda _, args, output: calls.append((args[0].clone(), output.clone())))
    logits(module, batch)
    handle.remove()
    return calls[0]


def refitted(module: nn.Module, inputs: Tensor, targets: Tensor, ridge: float) -> np.ndarray:
    """The least-squares parameters [p(+1), H] that map inputs to targets: delta-ridge, per feature for a LayerNorm."""
    if isinstance(module, nn.Conv2d):
        rows, wanted = patches(module, inputs), array(targets).transpose(0, 2, 3, 1).reshape(-1, len(module.weight))
    else:
        rows = array(inputs).reshape(-1, inputs.shape[-1])
        wanted = array(targets).reshape(-1, targets.shape[-1])
    if isinstance(module, nn.LayerNorm):
        lines = [np.polyfit(x, y, 1) for x, y in zip(layer_norm(rows, module.eps).T, wanted.T, strict=True)]
        return np.array(lines).T
    rows = rows if module.bias is None else with_ones(rows)
    return delta_ridge(rows, wanted, stacked(module), ridge)


@torch.no_grad()
def write(module: nn.Module, solution: np.ndarray) -> None:
    """Write the matrix that :func:`refitted` returned into the module."""
    weight = torch.from_numpy(solution[:-1] if module.bias is not None else solution)
    module.weight.copy_(weight.T.reshape(module.weight.shape))
    if module.bias is not None:
        module.bias.copy_(torch.from_numpy(solution[-1]))


@torch.no_grad()
def copy_units(module: nn.Module, source: nn.Module, mask: Tensor) -> None:
    """Copy the masked rows of weight and bias from another module."""
    module.weight[mask] = source.weight[mask]
    if module.bias is not None:
        module.bias[mask] = source.bias[mask]


def gradient_scores(module: nn.Module, name: str, batch: TensorDict) -> np.ndarray:
    """E|∂L/∂z_i| of the named module, from the gradient of its output."""
    kept: list[Tensor] = []
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    layer = module.get_submodule(name)

    def keep(_: nn.Module, args: object, output: Tensor) -> Tensor:
        kept.append(output)
        output.retain_grad()
        return output * 1.0  # what an in-layer activation writes into

    handle = layer.register_forward_hook(keep)
    loss(module, batch).backward()
    handle.remove()
    module.zero_grad(set_to_none=True)
    for child, mode in modes:
        child.training = mode
    gradient = array(kept[0].grad).__abs__() * len(batch)
    axes = (0, 2, 3) if isinstance(layer, nn.Conv2d) else tuple(range(gradient.ndim - 1))
    return gradient.mean(axes)


def lowest(scores: np.ndarray, quantile: float) -> Tensor:
    mask = np.zeros(len(scores), bool)
    mask[np.argsort(scores, kind="stable")[: int(np.floor(quantile * len(scores) + 1e-9))]] = True
    return torch.from_numpy(mask)
