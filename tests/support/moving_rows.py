"""Networks whose rows do not keep their place: routing, packing, pruning, statistics over the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

TOKENS, WIDTH = 8, 8


def tokens_of(x: Tensor) -> Tensor:
    """The rows of an 8x8 image as tokens. [B, 8, 8]."""
    return x.reshape(len(x), TOKENS, WIDTH)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Experts(nn.Module):
    """A mixture of experts between an embedding and a head.

    Args:
        top: Experts per token.
        capacity: Tokens that an expert takes, relative to an even distribution; None: all that are routed to it.
    """

    def __init__(self, top: int = 1, capacity: float | None = None) -> None:
        super().__init__()
        self.top, self.capacity = top, capacity
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.router = nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(Mlp() for _ in range(3))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.embed(tokens_of(x)))
        rows = x.flatten(0, 1)
        weights, chosen = self.router(rows).softmax(-1).topk(self.top, -1)
        mixed = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            row, slot = (chosen == number).nonzero(as_tuple=True)
            if self.capacity is None:
                mixed = mixed.index_add(0, row, expert(rows[row]) * weights[row, slot, None])
                continue
            size = int(self.capacity * len(rows) / len(self.experts))
            row, slot = row[:size], slot[:size]
            buffer = torch.cat([rows[row], rows.new_zeros(size - len(row), WIDTH)])
            mixed = mixed.index_add(0, row, expert(buffer)[: len(row)] * weights[row, slot, None])
        return self.head(self.norm(x + mixed.reshape(x.shape)).mean(1))


class Packed(nn.Module):
    """Layers that act on a packed batch of sequences whose lengths depend on the sample."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = tokens_of(x)
        lengths = 2 + (x[:, 0, 0].abs() * 100).long() % 6
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        packed = packed._replace(data=F.relu(self.inner(F.relu(self.embed(packed.data)))))
        padded, _ = pad_packed_sequence(packed, batch_first=True)
        return self.head(padded.sum(1))


class Pruned(nn.Module):
    """Keeps the tokens with the highest scores: a fixed number per sample, or all above a threshold."""

    def __init__(self, fixed: bool = True) -> None:
        super().__init__()
        self.fixed = fixed
        self.embed, self.score = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.mlp, self.head = Mlp(), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.embed(tokens_of(x)))
        score = self.score(x).squeeze(-1)
        if self.fixed:
            kept = score.topk(4, 1).indices
            return self.head(self.mlp(x.gather(-2, kept[..., None].expand(-1, -1, WIDTH))).mean(1))
        sample, token = (score > score.detach().mean(1, keepdim=True)).nonzero(as_tuple=True)
        pooled = x.new_zeros(len(x), WIDTH).index_add(0, sample, self.mlp(x[sample, token]))
        return self.head(pooled)


class PrunedTransformer(nn.Module):
    """Attention over the first token and the tokens with the highest scores; the head reads the first token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.score = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norm, self.mlp, self.head = nn.LayerNorm(WIDTH), Mlp(), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(tokens_of(x))
        first, others = x[:, :1], x[:, 1:]
        kept = self.score(others).squeeze(-1).topk(3, 1).indices
        x = torch.cat([first, others[torch.arange(len(x))[:, None], kept]], 1)
        x = x + F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))
        return self.head((x + self.mlp(self.norm(x)))[:, 0])


class Merged(nn.Module):
    """Averages the tokens at even places that resemble one at an odd place most into that token, and keeps the others.

    With ``sort``, all tokens are sorted by their scores instead, one sample after the other.
    """

    def __init__(self, sort: bool = False) -> None:
        super().__init__()
        self.sort = sort
        self.embed, self.score = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.mlp, self.head = Mlp(), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.embed(tokens_of(x)))
        if self.sort:
            order = self.score(x).squeeze(-1).argsort(1)
            x = torch.stack([tokens.index_select(0, places) for tokens, places in zip(x, order, strict=True)])
            return self.head(self.mlp(x)[:, 0])
        even, odd = x[:, ::2], x[:, 1::2]
        closeness, partner = (even @ odd.transpose(1, 2)).max(-1)
        order = closeness.argsort(1, descending=True)
        merged, kept = (part[..., None].expand(-1, -1, WIDTH) for part in order.split(2, 1))
        partner = partner.gather(1, order[:, :2])[..., None].expand(-1, -1, WIDTH)
        odd = odd.scatter_reduce(1, partner, even.gather(1, merged), "mean")
        return self.head(self.mlp(torch.cat([even.gather(1, kept), odd], 1)).mean(1))


class PrunedKeys(nn.Module):
    """Attention in which every head looks at the keys with the largest norm only; queries stay in place."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(tokens_of(x))
        q, k, v = (layer(self.norm(x)).unflatten(2, (2, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        kept = k.norm(dim=-1, keepdim=True).topk(3, 2).indices.expand(-1, -1, -1, WIDTH // 2)
        attended = F.scaled_dot_product_attention(q, k.gather(2, kept), v.gather(2, kept))
        return self.head((x + self.out(attended.transpose(1, 2).flatten(2))).mean(1))


class SomeTokens(nn.Module):
    """Applies an MLP to the tokens with the highest scores only, and adds the results to these tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.score = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.mlp, self.norm, self.out, self.head = Mlp(), nn.LayerNorm(WIDTH), Mlp(), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.embed(tokens_of(x)))
        kept = self.score(x).topk(4, 1).indices.expand(-1, -1, WIDTH)
        x = x.scatter_add(1, kept, self.mlp(x.gather(1, kept)))
        return self.head(self.out(self.norm(x)).mean(1))


class AllExperts(nn.Module):
    """A mixture of experts that computes all experts for every token, and gathers the result of the best one.

    With ``flat``, the tokens of all samples are rows of one matrix.
    """

    def __init__(self, flat: bool = False) -> None:
        super().__init__()
        self.flat = flat
        self.embed, self.router = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(Mlp() for _ in range(3))
        self.norm, self.out, self.head = nn.LayerNorm(WIDTH), Mlp(), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = F.gelu(self.embed(tokens_of(x)))
        x = tokens.flatten(0, 1) if self.flat else tokens
        results = torch.stack([expert(x) for expert in self.experts], -2)
        chosen = self.router(x).argmax(-1)[..., None, None].expand_as(results)[..., :1, :]
        x = x + results.gather(-2, chosen).squeeze(-2)
        return self.head(self.out(self.norm(x.reshape(tokens.shape))).mean(1))


class BatchMean(nn.Module):
    """Subtracts the mean over the batch, in eval mode as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.head = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.first(x.flatten(1)))
        return self.head(F.gelu(self.inner(x - x.mean(0))))


class TimeFirst(nn.Module):
    """PyTorch's encoder with tokens on the first axis and samples on the second."""

    def __init__(self, flat: bool = False) -> None:
        super().__init__()
        self.flat = flat
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 12, dropout=0.0)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = tokens_of(x).transpose(0, 1)
        x = self.embed(x.flatten(0, 1)).reshape(x.shape) if self.flat else self.embed(x)
        return self.head(self.layer(x).mean(0))


def batch_norm(tracked: bool) -> nn.Module:
    """A network with BatchNorm that, if not ``tracked``, uses statistics of the batch in eval mode as well."""
    norm = nn.BatchNorm1d(8, track_running_stats=tracked)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), norm, nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 10))
