"""Every method on every kind of module: it acts, or it refuses in one line and leaves the module as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from plastibench.config.errors import UserError
from plastibench.config.registry import interventions
from plastibench.interventions.attach import attach
from plastibench.nn.network import Network
from tests.support.networks import drawn

OPTIONS = {
    "continual-backprop": {"rate": 0.5, "maturity": 1},
    "continual-backprop-adaptable": {"rate": 0.5, "maturity": 1},
    "self-normalized-resets": {"first": 1},
    "neuroplastic-expansion": {"every": 1},
}


class Words(nn.Module):
    """Embedding, a body over tokens, and an MLP on their mean."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.words, self.body = nn.Embedding(12, 8), body
        self.hidden, self.head = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words)
        if isinstance(self.body, nn.MultiheadAttention):
            x = self.body(x, x, x, need_weights=False)[0]
        elif isinstance(self.body, nn.RNNBase):
            x = self.body(x)[0]
        return self.head(F.relu(self.hidden(x.mean(1))))


class Scaled(nn.Linear):
    """Saves a value that is not a tensor, as layers in low precision do."""

    def get_extra_state(self) -> dict[str, str]:
        return {"recipe": "delayed"}

    def set_extra_state(self, state: dict[str, str]) -> None:
        assert state == self.get_extra_state()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.hidden, self.out = nn.Embedding(12, 8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.words.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.out(F.relu(self.hidden(self.words(words).mean(1)))))


def mlp(wrap: Callable[[nn.Module], nn.Module] = lambda layer: layer, *, last: bool = False) -> nn.Sequential:
    """Three Linear modules; the hidden ones are wrapped, or with ``last`` all of them."""
    head = nn.Linear(16, 3)
    hidden = wrap(nn.Linear(10, 16)), nn.ReLU(), wrap(nn.Linear(16, 16)), nn.ReLU()
    return nn.Sequential(*hidden, wrap(head) if last else head)


def frozen() -> nn.Sequential:
    module = mlp()
    module[0].requires_grad_(False)
    return module


def conv(kind: type[nn.Module], places: int, *more: nn.Module) -> nn.Sequential:
    layers = kind(1, 8, 3), *more, nn.ReLU(), nn.Flatten(), nn.Linear(8 * places, 8), nn.ReLU(), nn.Linear(8, 3)
    return nn.Sequential(*layers)


VECTORS, IMAGES, TOKENS = (10,), (1, 6, 6), (5,)
KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (mlp, VECTORS),
    "conv1d": (lambda: conv(nn.Conv1d, 8), (1, 10)),
    "conv2d": (lambda: conv(nn.Conv2d, 16), IMAGES),
    "conv3d": (lambda: conv(nn.Conv3d, 8), (1, 4, 4, 4)),
    "conv-transpose": (lambda: conv(nn.ConvTranspose2d, 64), IMAGES),
    "embedding": (lambda: Words(nn.Identity()), TOKENS),
    "layer-norm": (lambda: mlp(lambda layer: nn.Sequential(layer, nn.LayerNorm(16))), VECTORS),
    "batch-norm": (lambda: conv(nn.Conv2d, 16, nn.BatchNorm2d(8)), IMAGES),
    "group-norm": (lambda: conv(nn.Conv2d, 16, nn.GroupNorm(2, 8)), IMAGES),
    "rnn": (lambda: Words(nn.RNN(8, 8, batch_first=True)), TOKENS),
    "lstm": (lambda: Words(nn.LSTM(8, 8, batch_first=True)), TOKENS),
    "gru": (lambda: Words(nn.GRU(8, 8, batch_first=True)), TOKENS),
    "attention": (lambda: Words(nn.MultiheadAttention(8, 2, batch_first=True)), TOKENS),
    "weight-norm": (lambda: mlp(parametrizations.weight_norm), VECTORS),
    "weight-norm-everywhere": (lambda: mlp(parametrizations.weight_norm, last=True), VECTORS),
    "old-weight-norm": (lambda: mlp(nn.utils.weight_norm), VECTORS),
    "spectral-norm": (lambda: mlp(parametrizations.spectral_norm), VECTORS),
    "old-spectral-norm": (lambda: mlp(nn.utils.spectral_norm), VECTORS),
    "orthogonal": (lambda: mlp(parametrizations.orthogonal), VECTORS),
    "tied": (Tied, TOKENS),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(3)), VECTORS),
    "frozen": (frozen, VECTORS),
    "bfloat16": (lambda: mlp().bfloat16(), VECTORS),
    "half": (lambda: mlp().half(), VECTORS),
    "double": (lambda: mlp().double(), VECTORS),
    "extra-state": (lambda: mlp(lambda layer: Scaled(layer.in_features, layer.out_features)), VECTORS),
}
SHORT = ["rnr", "reset-linear", "shrink-perturb", "distil", "continual-backprop", "ema", "crelu"]
COMPUTED = [name for name in KINDS if "norm-" in f"{name}-" and name.split("-")[0] in ("weight", "old", "spectral")]

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:.*Lazy modules.*:UserWarning")


def loss(module: nn.Module, batch: TensorDict) -> Tensor:
    found = module(batch["x"])
    return F.cross_entropy(found if found.dtype == torch.float64 else found.float(), batch["y"])


def kept(module: nn.Module) -> dict[str, Tensor]:
    """All values, except the estimates of spectral normalization, which PyTorch advances at every access."""
    lazy = nn.parameter.UninitializedTensorMixin
    return {
        name: value.clone()
        for name, value in module.state_dict().items()
        if isinstance(value, Tensor) and not name.endswith(("_u", "_v")) and not isinstance(value, lazy)
    }


def act(name: str, kind: str, builder: bool) -> str:
    """Attach the method, train with it, let it intervene, and train on; return the message if it refuses."""
    build, shape = KINDS[kind]
    module = drawn(build)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(16, *shape, generator=generator) if shape is not TOKENS else None
    if inputs is None:
        inputs = torch.randint(12, (16, 5), generator=generator)
    elif not isinstance(next(module.parameters()), nn.parameter.UninitializedTensorMixin):
        inputs = inputs.to(next(module.parameters()).dtype)
    batch = TensorDict({"x": inputs, "y": torch.randint(3, (16,), generator=generator)}, [16])
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1e-2, momentum=0.9)
    network = Network(module, optimizer, loss, fresh=build if builder else None)
    before = kept(module)
    try:
        attached = attach(name, network, **OPTIONS.get(name, {}))
        for _ in range(4):
            found = loss(module, batch)
            before = kept(module)
            network.update(found, batch)
        before = kept(module)
        attached.intervene(batch)
        network.update(loss(module, batch), batch)
    except UserError as error:
        message = str(error)
    else:
        message = ""
    if message and "hidden units" not in message:  # such methods notice it when they see the first batch
        after = kept(module)
        assert after.keys() == before.keys()
        assert not [key for key, value in before.items() if not torch.equal(value, after[key])]
    assert message or all(bool(value.isfinite().all()) for value in kept(module).values())
    return message


@pytest.mark.parametrize(
    ("kind", "builder"),
    [
        *((kind, bool(number % 2)) for number, kind in enumerate(COMPUTED)),
        ("lazy", True),
        ("half", False),
        ("extra-state", True),
    ],
)
def test_usual_methods_act_on_unusual_modules_or_refuse(kind, builder):
    refused = {name: message for name in SHORT if (message := act(name, kind, builder))}
    assert all("\n" not in message and "0x" not in message for message in refused.values())
    if kind in ("half", "extra-state"):
        assert not refused
    elif kind == "lazy":
        assert set(refused) == set(SHORT) and "run the model on one batch first" in refused["rnr"]
    elif kind in ("weight-norm", "old-weight-norm", "weight-norm-everywhere"):
        assert set(refused) == {"continual-backprop", "crelu"}


@pytest.mark.slow
@pytest.mark.parametrize("builder", [True, False], ids=["builder", "no builder"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", interventions.names())
def test_every_method_acts_on_every_kind_of_module_or_refuses(name, kind, builder):
    message = act(name, kind, builder)
    assert "\n" not in message and "0x" not in message
    assert not message or kind != "linear" or name in {
        "reset-layernorm", "layernorm-affine-free", "rnr-attention", "rnr-layernorm"
    }  # fmt: skip
