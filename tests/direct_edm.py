"""The forward pass of EDM's DDPM++ from its papers, on tensors under the names of published snapshots, float64.

Song et al. 2021, https://arxiv.org/abs/2011.13456, appendix H; Karras et al. 2022, https://arxiv.org/abs/2206.00364.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["direct_ddpmpp", "ddpmpp_weights"]


def ddpmpp_weights(classes: int = 4, augmentation: int = 9) -> dict[str, Tensor]:
    """Random weights of a network for images (3, 8, 8): 8 and 16 channels, one block a level, attention at 4x4."""
    generator, weights = torch.Generator().manual_seed(5), dict[str, Tensor]()

    def layer(name: str, *shape: int, bias: bool = True) -> None:
        fan = math.prod(shape[1:])
        weights[f"{name}.weight"] = torch.randn(shape, generator=generator) / (math.sqrt(fan) if shape[1:] else 1)
        if bias:
            weights[f"{name}.bias"] = 0.3 * torch.randn(shape[0], generator=generator)

    def block(name: str, inside: int, outside: int, *, attention: bool = False, skip: bool = False) -> None:
        layer(f"{name}.norm0", inside)
        layer(f"{name}.conv0", outside, inside, 3, 3)
        layer(f"{name}.affine", outside, 32)
        layer(f"{name}.norm1", outside)
        layer(f"{name}.conv1", outside, outside, 3, 3)
        if skip or inside != outside:
            layer(f"{name}.skip", outside, inside, 1, 1)
        if attention:
            layer(f"{name}.norm2", outside)
            layer(f"{name}.qkv", 3 * outside, outside, 1, 1)
            layer(f"{name}.proj", outside, outside, 1, 1)

    layer("map_layer0", 32, 8)
    layer("map_layer1", 32, 32)
    if classes:
        layer("map_label", 8, classes)
    if augmentation:
        layer("map_augment", 8, augmentation, bias=False)
    layer("enc.8x8_conv", 8, 3, 3, 3)
    block("enc.8x8_block0", 8, 8)
    block("enc.4x4_down", 8, 8, skip=True)
    block("enc.4x4_block0", 8, 16, attention=True)
    block("dec.4x4_in0", 16, 16, attention=True)
    block("dec.4x4_in1", 16, 16)
    block("dec.4x4_block0", 32, 16)
    block("dec.4x4_block1", 24, 16, attention=True)
    block("dec.8x8_up", 16, 16, skip=True)
    block("dec.8x8_block0", 24, 8)
    block("dec.8x8_block1", 16, 8)
    layer("dec.8x8_aux_norm", 8)
    layer("dec.8x8_aux_conv", 3, 8, 3, 3)
    return weights


def direct_ddpmpp(
    weights: dict[str, Tensor], x: Tensor, c_noise: Tensor, one_hot: Tensor | None, vector: Tensor | None = None
) -> Tensor:
    """The output (B, 3, 8, 8), float64, for labels (B, K) and augmentation parameters (B, A)."""
    w = {name: tensor.double() for name, tensor in weights.items()}

    def linear(name: str, h: Tensor) -> Tensor:
        return F.linear(h, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def conv(name: str, h: Tensor) -> Tensor:
        kernel = w[f"{name}.weight"]
        return F.conv2d(h, kernel, w[f"{name}.bias"], padding=kernel.shape[-1] // 2)

    def norm(name: str, h: Tensor) -> Tensor:
        return F.group_norm(h, min(32, h.shape[1] // 4), w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)

    def block(name: str, h: Tensor) -> Tensor:
        def resample(a: Tensor) -> Tensor:
            if name.endswith("down"):
                return (a[..., ::2, ::2] + a[..., 1::2, ::2] + a[..., ::2, 1::2] + a[..., 1::2, 1::2]) / 4
            return a.repeat_interleave(2, 2).repeat_interleave(2, 3) if name.endswith("up") else a

        y = conv(f"{name}.conv0", resample(F.silu(norm(f"{name}.norm0", h))))
        y = F.silu(norm(f"{name}.norm1", y + linear(f"{name}.affine", e)[..., None, None]))
        h = resample(h)
        h = (conv(f"{name}.skip", h) if f"{name}.skip.weight" in w else h) + conv(f"{name}.conv1", y)
        h = h / 2**0.5
        if f"{name}.qkv.weight" in w:
            B, C = h.shape[:2]
            q, k, v = conv(f"{name}.qkv", norm(f"{name}.norm2", h)).reshape(B, C, 3, -1).unbind(2)
            y = v @ (q.mT @ k / C**0.5).softmax(2).mT
            h = (h + conv(f"{name}.proj", y.reshape(h.shape))) / 2**0.5
        return h

    angles = c_noise.double()[:, None] * 1e-4 ** (torch.arange(4, dtype=torch.float64) / 3)
    e = torch.cat([angles.sin(), angles.cos()], 1)
    if one_hot is not None:
        e = e + linear("map_label", one_hot.double() * one_hot.shape[1] ** 0.5)
    if vector is not None:
        e = e + linear("map_augment", vector.double())
    e = F.silu(linear("map_layer1", F.silu(linear("map_layer0", e))))
    h = conv("enc.8x8_conv", x.double())
    skips = [h]
    for name in ("8x8_block0", "4x4_down", "4x4_block0"):
        h = block(f"enc.{name}", h)
        skips.append(h)
    for name in ("4x4_in0", "4x4_in1", "4x4_block0", "4x4_block1", "8x8_up", "8x8_block0", "8x8_block1"):
        h = block(f"dec.{name}", torch.cat([h, skips.pop()], 1) if "block" in name else h)
    return conv("dec.8x8_aux_conv", F.silu(norm("dec.8x8_aux_norm", h)))
