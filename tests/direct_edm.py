"""The forward passes of EDM's DDPM++ and NCSN++ from the papers, float64, under the names of published snapshots.

Song et al. 2021, https://arxiv.org/abs/2011.13456, appendix H; Karras et al. 2022, https://arxiv.org/abs/2206.00364.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["direct_ddpmpp", "ddpmpp_weights"]


def ddpmpp_weights(
    classes: int = 4, augmentation: int = 9, *, channels: Sequence[int] = (8, 16), fourier: bool = False
) -> dict[str, Tensor]:
    """Random weights of a network for images (3, 8, 8): one block a level, attention at 4x4; `fourier`: NCSN++."""
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

    width = 16 if fourier else 8
    if fourier:
        weights["map_noise.freqs"] = 16 * torch.randn(8, generator=generator)
    layer("map_layer0", 32, width)
    layer("map_layer1", 32, 32)
    if classes:
        layer("map_label", width, classes)
    if augmentation:
        layer("map_augment", width, augmentation, bias=False)
    layer("enc.8x8_conv", 8, 3, 3, 3)
    current, image, skips = 8, 3, [8]
    for side, each in zip(("8x8", "4x4", "2x2"), channels, strict=False):
        if side != "8x8":
            block(f"enc.{side}_down", current, current, skip=True)
            if fourier:
                layer(f"enc.{side}_aux_residual", current, image, 3, 3)
            image = current
            skips.append(current)
        block(f"enc.{side}_block0", current, each, attention=side == "4x4")
        current = each
        skips.append(each)
    for side, each in reversed(list(zip(("8x8", "4x4", "2x2"), channels, strict=False))):
        if side == f"{8 >> len(channels) - 1}x{8 >> len(channels) - 1}":
            block(f"dec.{side}_in0", current, current, attention=True)
            block(f"dec.{side}_in1", current, current)
        else:
            block(f"dec.{side}_up", current, current, skip=True)
        for i in range(2):
            block(f"dec.{side}_block{i}", current + skips.pop(), each, attention=side == "4x4" and i == 1)
            current = each
    layer("dec.8x8_aux_norm", current)
    layer("dec.8x8_aux_conv", 3, current, 3, 3)
    return weights


def direct_ddpmpp(
    weights: dict[str, Tensor], x: Tensor, c_noise: Tensor, one_hot: Tensor | None, vector: Tensor | None = None
) -> Tensor:
    """The output (B, 3, 8, 8), float64, for labels (B, K) and augmentation parameters (B, A)."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    fourier = "map_noise.freqs" in w

    def filtered(a: Tensor, stride: int = 1) -> Tensor:
        taps = torch.tensor([1, 3, 3, 1], dtype=torch.float64) / 8
        return F.conv2d(a, taps.outer(taps).expand(a.shape[1], 1, 4, 4), stride=stride, groups=a.shape[1])

    def linear(name: str, h: Tensor) -> Tensor:
        return F.linear(h, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def conv(name: str, h: Tensor) -> Tensor:
        kernel = w[f"{name}.weight"]
        return F.conv2d(h, kernel, w[f"{name}.bias"], padding=kernel.shape[-1] // 2)

    def norm(name: str, h: Tensor) -> Tensor:
        return F.group_norm(h, min(32, h.shape[1] // 4), w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)

    def block(name: str, h: Tensor) -> Tensor:
        def resample(a: Tensor) -> Tensor:
            if fourier and name.endswith("down"):
                return filtered(F.pad(a, (1, 1, 1, 1)), stride=2)
            if fourier and name.endswith("up"):
                stuffed = a.new_zeros(*a.shape[:2], 2 * a.shape[2], 2 * a.shape[3])
                stuffed[..., ::2, ::2] = 4 * a
                return filtered(F.pad(stuffed, (2, 1, 2, 1)))
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
    if fourier:
        angles = 2 * math.pi * c_noise.double()[:, None] * w["map_noise.freqs"]
    e = torch.cat([angles.sin(), angles.cos()], 1)
    if one_hot is not None:
        e = e + linear("map_label", one_hot.double() * one_hot.shape[1] ** 0.5)
    if vector is not None:
        e = e + linear("map_augment", vector.double())
    e = F.silu(linear("map_layer1", F.silu(linear("map_layer0", e))))
    h = conv("enc.8x8_conv", x.double())
    image, skips = x.double(), [h]
    blocks = [name[:-14] for name in w if name.endswith(".affine.weight")]
    for name in (each for each in blocks if each.startswith("enc")):
        h = block(name, h)
        if fourier and name.endswith("down"):
            residual = name.replace("down", "aux_residual")
            image = F.pad(image, (2, 2, 2, 2))
            h = h + F.conv2d(filtered(image), w[f"{residual}.weight"], w[f"{residual}.bias"], stride=2)
            image = h = h / 2**0.5
        skips.append(h)
    for name in (each for each in blocks if each.startswith("dec")):
        h = block(name, torch.cat([h, skips.pop()], 1) if "block" in name else h)
    return conv("dec.8x8_aux_conv", F.silu(norm("dec.8x8_aux_norm", h)))
