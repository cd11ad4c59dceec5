"""The forward pass of ADM with EDM's inputs from the papers, float64, under the names of published snapshots.

Dhariwal and Nichol 2021, https://arxiv.org/abs/2105.05233, section 3; Karras et al. 2022,
https://arxiv.org/abs/2206.00364, table 8.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["adm_weights", "direct_adm"]


def adm_weights(
    classes: int = 4,
    *,
    side: int = 8,
    channels: tuple[int, ...] = (128, 192),
    attention: tuple[int, ...] = (4,),
    blocks: int = 1,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Random weights; `channels` of each level, `attention` at these sides."""
    weights, width = dict[str, Tensor](), 4 * channels[0]

    def layer(name: str, *shape: int, bias: bool = True) -> None:
        seed = torch.Generator(device).manual_seed(len(weights)) if device == "cpu" else None
        scale = math.sqrt(math.prod(shape[1:])) if shape[1:] else 1
        weights[f"{name}.weight"] = torch.randn(shape, generator=seed, device=device) / scale
        if bias:
            weights[f"{name}.bias"] = 0.3 * torch.randn(shape[0], generator=seed, device=device)

    def block(name: str, inside: int, outside: int, *, attended: bool = False) -> None:
        layer(f"{name}.norm0", inside)
        layer(f"{name}.conv0", outside, inside, 3, 3)
        layer(f"{name}.affine", 2 * outside, width)
        layer(f"{name}.norm1", outside)
        layer(f"{name}.conv1", outside, outside, 3, 3)
        if inside != outside:
            layer(f"{name}.skip", outside, inside, 1, 1)
        if attended:
            layer(f"{name}.norm2", outside)
            layer(f"{name}.qkv", 3 * outside, outside, 1, 1)
            layer(f"{name}.proj", outside, outside, 1, 1)

    layer("map_layer0", width, channels[0])
    layer("map_layer1", width, width)
    if classes:
        layer("map_label", width, classes, bias=False)
    sides = [side >> level for level in range(len(channels))]
    layer(f"enc.{side}x{side}_conv", channels[0], 3, 3, 3)
    current, skips = channels[0], [channels[0]]
    for each, outside in zip(sides, channels, strict=True):
        if each != side:
            block(f"enc.{each}x{each}_down", current, current)
            skips.append(current)
        for i in range(blocks):
            block(f"enc.{each}x{each}_block{i}", current, outside, attended=each in attention)
            current = outside
            skips.append(current)
    for each, outside in reversed(list(zip(sides, channels, strict=True))):
        if each == sides[-1]:
            block(f"dec.{each}x{each}_in0", current, current, attended=True)
            block(f"dec.{each}x{each}_in1", current, current)
        else:
            block(f"dec.{each}x{each}_up", current, current)
        for i in range(blocks + 1):
            block(f"dec.{each}x{each}_block{i}", current + skips.pop(), outside, attended=each in attention)
            current = outside
    layer("last_norm", current)  # not the published names, which are not needed
    layer("last_conv", 3, current, 3, 3)
    return weights


def direct_adm(weights: dict[str, Tensor], x: Tensor, c_noise: Tensor, one_hot: Tensor | None) -> Tensor:
    """The output (B, 3, H, W), float64, for labels (B, K)."""
    w = {name: tensor.double() for name, tensor in weights.items()}

    def linear(name: str, h: Tensor) -> Tensor:
        return h @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    def conv(name: str, h: Tensor) -> Tensor:
        kernel = w[f"{name}.weight"]
        return F.conv2d(h, kernel, w[f"{name}.bias"], padding=kernel.shape[-1] // 2)

    def norm(name: str, h: Tensor) -> Tensor:
        groups = h.unflatten(1, (32, -1))
        mean, variance = groups.mean((2, 3, 4), keepdim=True), groups.var((2, 3, 4), keepdim=True, correction=0)
        h = ((groups - mean) / (variance + 1e-5).sqrt()).flatten(1, 2)
        return h * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]

    def block(name: str, h: Tensor) -> Tensor:
        def resample(a: Tensor) -> Tensor:
            if name.endswith("down"):
                return (a[..., ::2, ::2] + a[..., 1::2, ::2] + a[..., ::2, 1::2] + a[..., 1::2, 1::2]) / 4
            return a.repeat_interleave(2, 2).repeat_interleave(2, 3) if name.endswith("up") else a

        y = conv(f"{name}.conv0", resample(F.silu(norm(f"{name}.norm0", h))))
        scale, shift = linear(f"{name}.affine", e)[..., None, None].chunk(2, 1)
        y = conv(f"{name}.conv1", F.silu(norm(f"{name}.norm1", y) * (1 + scale) + shift))
        h = resample(h)
        h = (conv(f"{name}.skip", h) if f"{name}.skip.weight" in w else h) + y
        if f"{name}.qkv.weight" in w:
            B, C = h.shape[:2]
            q, k, v = conv(f"{name}.qkv", norm(f"{name}.norm2", h)).reshape(B, C // 64, 64, 3, -1).unbind(3)
            y = v @ (q.mT @ k / 8).softmax(3).mT
            h = h + conv(f"{name}.proj", y.reshape(h.shape))
        return h

    half = w["map_layer0.weight"].shape[1] // 2
    angles = c_noise.double()[:, None] * 1e-4 ** (torch.arange(half, dtype=torch.float64) / half)
    e = linear("map_layer1", F.silu(linear("map_layer0", torch.cat([angles.cos(), angles.sin()], 1))))
    e = F.silu(e if one_hot is None else e + linear("map_label", one_hot.double()))
    blocks = [name.removesuffix(".affine.weight") for name in w if name.endswith(".affine.weight")]
    h = conv(next(name.removesuffix(".weight") for name in w if "_conv.weight" in name), x.double())
    skips = [h]
    for name in (each for each in blocks if each.startswith("enc")):
        h = block(name, h)
        skips.append(h)
    for name in (each for each in blocks if each.startswith("dec")):
        h = block(name, torch.cat([h, skips.pop()], 1) if "block" in name else h)
    return conv("last_conv", F.silu(norm("last_norm", h)))
