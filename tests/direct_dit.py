"""The forward pass of DiT from its paper, on tensors under the names of published checkpoints, float64.

Peebles and Xie 2023, https://arxiv.org/abs/2212.09748, section 3 (adaLN-Zero).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["direct_dit", "dit_weights", "sines"]


def sines(channels: int, side: int) -> Tensor:
    """Positions (1, side^2, channels): half for the column, half for the row, each sines and then cosines."""
    powers = 10_000 ** -(torch.arange(channels // 4, dtype=torch.float64) / (channels / 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * powers
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    columns, rows = waves.expand(side, side, -1), waves[:, None].expand(side, side, -1)
    return torch.cat([columns, rows], 2).reshape(1, side**2, channels)


def dit_weights(
    channels: int = 16, depth: int = 2, *, out: int = 8, side: int = 4, classes: int = 10
) -> dict[str, Tensor]:
    """Random weights of a DiT of latents (4, 2 side, 2 side) with patches of 2."""
    generator = torch.Generator().manual_seed(4)
    shapes = {
        "x_embedder.proj": (channels, 4, 2, 2),
        "t_embedder.mlp.0": (channels, 256),
        "t_embedder.mlp.2": (channels, channels),
        "final_layer.adaLN_modulation.1": (2 * channels, channels),
        "final_layer.linear": (4 * out, channels),
    }
    for i in range(depth):
        shapes |= {
            f"blocks.{i}.attn.qkv": (3 * channels, channels),
            f"blocks.{i}.attn.proj": (channels, channels),
            f"blocks.{i}.mlp.fc1": (4 * channels, channels),
            f"blocks.{i}.mlp.fc2": (channels, 4 * channels),
            f"blocks.{i}.adaLN_modulation.1": (6 * channels, channels),
        }
    weights = {"y_embedder.embedding_table.weight": torch.randn(classes + 1, channels, generator=generator)}
    for name, shape in shapes.items():
        weights[f"{name}.weight"] = torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
        weights[f"{name}.bias"] = 0.3 * torch.randn(shape[0], generator=generator)
    return weights | {"pos_embed": sines(channels, side).float()}


def direct_dit(weights: dict[str, Tensor], x: Tensor, t: Tensor, labels: Tensor, *, heads: int) -> Tensor:
    """The output (B, out, H, W), float64, for x (B, 4, H, W), times (B,) and labels (B,), the last one for none."""
    w = {name: tensor.double() for name, tensor in weights.items()}

    def linear(name: str, h: Tensor) -> Tensor:
        return F.linear(h, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(h: Tensor) -> Tensor:
        return F.layer_norm(h, h.shape[-1:], eps=1e-6)

    B, _, H, W = x.shape
    h = F.conv2d(x.double(), w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=2).flatten(2).mT
    h = h + w["pos_embed"]
    angles = t.double()[:, None] * 10_000 ** -(torch.arange(128, dtype=torch.float64) / 128)
    e = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], 1))))
    e = F.silu(e + w["y_embedder.embedding_table.weight"][labels])[:, None]
    for i in range(len({name.split(".")[1] for name in w if name.startswith("blocks.")})):
        a, b, gate, c, d, other = linear(f"blocks.{i}.adaLN_modulation.1", e).chunk(6, -1)
        q, k, v = (
            linear(f"blocks.{i}.attn.qkv", norm(h) * (1 + b) + a)
            .reshape(B, -1, 3, heads, h.shape[-1] // heads)
            .permute(2, 0, 3, 1, 4)
        )
        y = ((q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v).transpose(1, 2).flatten(2)
        h = h + gate * linear(f"blocks.{i}.attn.proj", y)
        y = F.gelu(linear(f"blocks.{i}.mlp.fc1", norm(h) * (1 + d) + c), approximate="tanh")
        h = h + other * linear(f"blocks.{i}.mlp.fc2", y)
    shift, scale = linear("final_layer.adaLN_modulation.1", e).chunk(2, -1)
    patches = linear("final_layer.linear", norm(h) * (1 + scale) + shift).reshape(B, H // 2, W // 2, 2, 2, -1)
    return torch.einsum("bhwpqc->bchpwq", patches).reshape(B, -1, H, W)
